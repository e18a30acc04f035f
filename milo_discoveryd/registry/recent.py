"""A bounded cache that drops its oldest entry first."""

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(dict[Key, Value]):
    """Readers that ask for the same thing do so at about the same time, so first in, first out is enough."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: Key, value: Value) -> Value:
        if len(self) >= self._limit:
            del self[next(iter(self))]
        self[key] = value
        return value
