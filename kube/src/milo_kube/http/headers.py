"""Header fields of sent and received messages."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

SentHeaders = Mapping[str, str | tuple[str, ...]]
"""Header fields of a request; a field with several values is sent once for each value."""


def each_header(headers: SentHeaders) -> Iterator[tuple[str, str]]:
    for name, values in headers.items():
        yield from ((name, value) for value in (values if isinstance(values, tuple) else (values,)))


class Headers(Mapping[str, str]):
    """Header fields by case-insensitive name. Repeated fields are joined with commas.

    Short strings are shared, since thousands of open watches have mostly the same fields. They are not interned: some
    versions of Python never free interned strings, and a peer could send any number of different ones.
    """

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def add(self, name: bytes, value: bytes) -> None:
        key, text = _shared(name.decode("latin-1").lower()), value.decode("latin-1").strip()
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else _shared(text)

    def clear(self) -> None:
        self._fields.clear()

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


_SHARED_LENGTH = 128


def _shared(text: str) -> str:
    return _cached(text) if len(text) <= _SHARED_LENGTH else text


@lru_cache(maxsize=512)
def _cached(text: str) -> str:
    return text
