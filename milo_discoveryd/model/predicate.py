"""Questions that are asked of very many: put together once, so that what isn't asked costs nothing each time."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Predicate: TypeAlias = Callable[[T], bool]


def every(predicates: Sequence[Predicate[T]]) -> Predicate[T]:
    """Holds where all of them do."""
    if not predicates:
        return lambda _: True
    if len(predicates) == 1:
        return predicates[0]
    first, second, *others = predicates
    if not others:
        return lambda asked: first(asked) and second(asked)

    def hold(asked: T) -> bool:
        # A loop: twice as quick as all().
        for predicate in predicates:  # noqa: SIM110
            if not predicate(asked):
                return False
        return True

    return hold
