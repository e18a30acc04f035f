"""Patterns for cluster names, in which `*` stands for any characters but `#`.

A name of a source and the name of a cluster in it are matched part by part: otherwise `shop-*`, for clusters, would
match all clusters of a source `shop-eu`. Users do not write regular expressions, so that it is easy to see what a
pattern covers. All patterns of a set are one internally: a tenant chooses the names, and each is matched for each rule.
"""

import re
from collections.abc import Iterable
from functools import cached_property

import msgspec

from milo_discoveryd.model.cluster import SOURCE_SEPARATOR, source_of
from milo_kube.label_selector import Predicate

_ANY = f"[^{SOURCE_SEPARATOR}]*"


def _matcher(texts: Iterable[str]) -> Predicate[str]:
    """Return whether a name matches one of the patterns, in linear time."""
    matches = re.compile("|".join(map(_expression, texts))).fullmatch
    return lambda name: matches(name) is not None


def _expression(text: str) -> str:
    first, *others = map(re.escape, text.split("*"))
    if not others:
        return first
    *between, last = others
    # The earliest match of each piece leaves the most characters for the next, so there is no need to backtrack.
    return first + "".join(f"(?>{_ANY}?{piece})" for piece in between) + _ANY + last


class NamePatterns(msgspec.Struct, frozen=True, dict=True):
    """A set of names and patterns. An empty set matches every name."""

    exact: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    @cached_property
    def matches(self) -> Predicate[str]:
        if not self:
            return lambda _: True
        exact = self.exact
        if not self.patterns:
            return exact.__contains__
        covers = _matcher(self.patterns)
        return lambda name: name in exact or covers(name)

    def may_match_source(self, source: str) -> bool:
        """Return whether a cluster of a source with a name can match."""
        if not self or any(source_of(name) == source for name in self.exact):
            return True
        of_sources = [
            pattern.rpartition(SOURCE_SEPARATOR)[0] for pattern in self.patterns if SOURCE_SEPARATOR in pattern
        ]
        return bool(of_sources) and _matcher(of_sources)(source)

    def __bool__(self) -> bool:
        return bool(self.exact or self.patterns)

    def __str__(self) -> str:
        return ", ".join([*sorted(self.exact), *sorted(self.patterns)])


def name_patterns(texts: Iterable[str]) -> NamePatterns:
    texts = frozenset(texts)
    with_stars = sorted(text for text in texts if "*" in text)
    return NamePatterns(texts.difference(with_stars), tuple(with_stars))
