"""Responses of an API server."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import msgspec


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream(Protocol):
    """A response whose body is read while it arrives."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces of any size until its end. Raises TransportError if the connection breaks."""

    async def read_error(self, limit: int) -> bytes:
        """Return the beginning of the body of an error response."""
