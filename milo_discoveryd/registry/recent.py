"""A bounded cache that drops its oldest entry first."""

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(dict[Key, Value]):
    """A first-in, first-out cache. Readers request the same item at about the same time, so no LRU is needed."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: Key, value: Value) -> Value:
        if len(self) >= self._limit:
            del self[next(iter(self))]
        self[key] = value
        return value
