"""Patterns for cluster names, in which `*` stands for any characters.

Patterns are not regular expressions, so that matching takes linear time and it is easy to see what a pattern covers.
"""

from collections.abc import Iterable
from functools import cached_property

import msgspec

from milo_kube.label_selector import Predicate


class NamePattern(msgspec.Struct, frozen=True, dict=True):
    """A name in which `*` matches any number of characters, including none."""

    text: str

    @cached_property
    def matches(self) -> Predicate[str]:
        first, *others = self.text.split("*")
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

    def may_match_prefix(self, prefix: str) -> bool:
        """Return whether any name with that prefix can match."""
        if not self or any(name.startswith(prefix) for name in self.exact):
            return True
        literals = [pattern.text.partition("*")[0] for pattern in self.patterns]
        return any(prefix.startswith(literal) or literal.startswith(prefix) for literal in literals)

    def __bool__(self) -> bool:
        return bool(self.exact or self.patterns)

    def __str__(self) -> str:
        return ", ".join([*sorted(self.exact), *sorted(pattern.text for pattern in self.patterns)])


def name_patterns(texts: Iterable[str]) -> NamePatterns:
    texts = frozenset(texts)
    with_stars = sorted(text for text in texts if "*" in text)
    return NamePatterns(texts.difference(with_stars), tuple(map(NamePattern, with_stars)))
