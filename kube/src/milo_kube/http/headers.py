"""Header fields of a message that is sent, and of one that was received."""

import sys
from collections.abc import Iterator, Mapping

SentHeaders = Mapping[str, str | tuple[str, ...]]
"""Header fields of a request; a field with several values is sent once for each."""


def each_header(headers: SentHeaders) -> Iterator[tuple[str, str]]:
    for name, values in headers.items():
        yield from ((name, value) for value in (values if isinstance(values, tuple) else (values,)))


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
