"""Indexes of objects by values that a function of the program returns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from sys import getsizeof
from typing import Any, Final, Generic, TypeVar

from milo_kube.user_code import call

Key = TypeVar("Key", bound=Hashable)

IndexFunction = Callable[[Any], Iterable[Hashable]]
"""Returns the values under which an object is found."""
_VALUE_BYTES: Final = 96
"""Estimated memory of a value in an index besides the value itself."""


class ObjectIndex(Generic[Key]):
    """The keys of objects, by the values that the function returned when each object was put in.

    The function is not called again to remove an object: it may read other state, and return other values by then.
    """

    __slots__ = ("_by_value", "_failed", "_function", "_name", "_values")

    def __init__(
        self, name: str, function: IndexFunction, failed: Callable[[str, Key, Exception], None] = lambda *_: None
    ) -> None:
        """`failed` is called when the function raises, or returns a string, bytes or a mapping, whose characters, bytes
        or keys would become the values; the object is then missing from the index."""
        self._name = name
        self._function = function
        self._failed = failed
        self._by_value: dict[Hashable, Key | dict[Key, None]] = {}
        """The key with each value, or the keys if there are several: most indexes are of unique values."""
        self._values: dict[Key, tuple[Hashable, ...]] = {}

    def put(self, key: Key, indexed: Any) -> None:
        self.remove(key)
        values = self._of(key, indexed)
        if values:
            self._values[key] = values
            for value in values:
                found = self._by_value.setdefault(value, key)
                if isinstance(found, dict):
                    found[key] = None
                elif found != key:
                    self._by_value[value] = {found: None, key: None}

    def remove(self, key: Key) -> None:
        for value in self._values.pop(key, ()):
            found = self._by_value[value]
            if isinstance(found, dict) and len(found) > 1:
                del found[key]
            else:
                del self._by_value[value]

    def count(self, key: Key) -> int:
        """Return the number of values of an object."""
        return len(self._values.get(key, ()))

    def size(self, key: Key) -> int:
        """Return approximately how many bytes the values of an object take."""
        return sum(_VALUE_BYTES + getsizeof(value) for value in self._values.get(key, ()))

    def clear(self) -> None:
        self._by_value.clear()
        self._values.clear()

    def keys(self, value: Hashable) -> Iterable[Key]:
        """Return the keys of the objects with this value."""
        found = self._by_value.get(value)
        if found is None:
            return ()
        return found if isinstance(found, dict) else (found,)

    def _of(self, key: Key, indexed: Any) -> tuple[Hashable, ...]:
        try:
            return call(self._returned, indexed)
        except Exception as error:  # noqa: BLE001  (the program's code: an error there affects only this object)
            self._failed(self._name, key, error)
            return ()

    def _returned(self, indexed: Any) -> tuple[Hashable, ...]:
        values = self._function(indexed)
        if isinstance(values, str | bytes | Mapping):
            type_name = "string" if isinstance(values, str) else type(values).__name__
            wanted = list(values) if isinstance(values, Mapping) else [values]
            raise TypeError(f"the function returned the {type_name} {values!r:.80}; return a list: {wanted!r:.80}")
        return tuple(dict.fromkeys(values))  # runs the function, if it is a generator
