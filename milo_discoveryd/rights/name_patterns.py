"""Patterns for cluster names, in which `*` stands for any characters but `#`.

A name of a source and the name of a cluster in it are matched part by part: otherwise `shop-*`, for clusters, would
match all clusters of a source `shop-eu`. Patterns are not regular expressions, so that matching takes linear time and
it is easy to see what a pattern covers.
"""

from collections.abc import Iterable
from functools import cached_property

import msgspec

from milo_discoveryd.model.cluster import SOURCE_SEPARATOR, source_of
from milo_kube.label_selector import Predicate


class NamePattern(msgspec.Struct, frozen=True, dict=True):
    """A name in which `*` matches any number of characters but `#`, including none."""

    text: str

    @cached_property
    def matches(self) -> Predicate[str]:
        of_source, separator, of_name = self.text.rpartition(SOURCE_SEPARATOR)
        covers_source, covers_name = _matcher(of_source), _matcher(of_name)

        def covers(name: str) -> bool:
            source, found, local_name = name.rpartition(SOURCE_SEPARATOR)
            return found == separator and covers_name(local_name) and covers_source(source)

        return covers

    def may_match_source(self, source: str) -> bool:
        """Return whether a cluster of a source with a name can match."""
        of_source, separator, _ = self.text.rpartition(SOURCE_SEPARATOR)
        return bool(separator) and _matcher(of_source)(source)


def _matcher(text: str) -> Predicate[str]:
    first, *others = text.split("*")
    if not others:
        return lambda name: name == first
    *between, last = others
    if not between and not last:
        return lambda name: name.startswith(first)

    def covers(name: str) -> bool:
        if not (len(name) >= len(first) + len(last) and name.startswith(first) and name.endswith(last)):
            return False
        # The earliest match of each piece leaves the most characters for the next, so there is no backtracking.
        at, end = len(first), len(name) - len(last)
        for piece in between:
            found = name.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True

    return covers


class NamePatterns(msgspec.Struct, frozen=True, dict=True):
    """A set of names and patterns. An empty set matches every name."""

    exact: frozenset[str] = frozenset()
    patterns: tuple[NamePattern, ...] = ()

    @cached_property
    def matches(self) -> Predicate[str]:
        if not self:
            return lambda _: True
        if not self.exact and len(self.patterns) == 1:
            return self.patterns[0].matches
        exact, patterns = self.exact, [pattern.matches for pattern in self.patterns]
        return lambda name: name in exact or any(covers(name) for covers in patterns)

    def may_match_source(self, source: str) -> bool:
        """Return whether a cluster of a source with a name can match."""
        if not self or any(source_of(name) == source for name in self.exact):
            return True
        return any(pattern.may_match_source(source) for pattern in self.patterns)

    def __bool__(self) -> bool:
        return bool(self.exact or self.patterns)

    def __str__(self) -> str:
        return ", ".join([*sorted(self.exact), *sorted(pattern.text for pattern in self.patterns)])


def name_patterns(texts: Iterable[str]) -> NamePatterns:
    texts = frozenset(texts)
    with_stars = sorted(text for text in texts if "*" in text)
    return NamePatterns(texts.difference(with_stars), tuple(map(NamePattern, with_stars)))
