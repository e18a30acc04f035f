"""Header fields of a received message."""

import sys
from collections.abc import Iterator, Mapping


class Headers(Mapping[str, str]):
    """Header fields by case-insensitive name. Repeated fields are joined with commas.

    The strings are interned: thousands of open watches have much the same fields.
    """

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def add(self, name: bytes, value: bytes) -> None:
        key, text = sys.intern(name.decode("latin-1").lower()), value.decode("latin-1").strip()
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else sys.intern(text)

    def clear(self) -> None:
        self._fields.clear()

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
