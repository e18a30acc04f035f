"""Predicates composed once for many evaluations, so that absent conditions cost nothing per evaluation."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Predicate: TypeAlias = Callable[[T], bool]


def all_of(predicates: Sequence[Predicate[T]]) -> Predicate[T]:
    """Return a predicate that is true if all of them are."""
    if not predicates:
        return lambda _: True
    if len(predicates) == 1:
        return predicates[0]
    first, second, *others = predicates
    if not others:
        return lambda value: first(value) and second(value)

    def holds(value: T) -> bool:
        # A loop is twice as fast as all().
        for predicate in predicates:  # noqa: SIM110
            if not predicate(value):
                return False
        return True

    return holds
