"""Limits what streams send at the same time in large batches: gRPC keeps a copy for each stream until it is sent, and
users who write one object with many labels determine the size of a batch to every subscriber."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from milo_discoveryd.log.change_log import LARGE_BYTES
from milo_discoveryd.server.calls.grpc_errors import StalledError

MAX_BYTES = 32 << 20
"""Maximum bytes of large batches that are being sent."""
PATIENCE_S = 5.0
"""How long a stream may take to send a large batch while others wait."""


class _Sending(NamedTuple):
    size: int
    since: float


class LargeBatches:
    """The large batches that are being sent, on streams of all listeners.

    Beyond the limit, streams wait in order. A stream that sends for too long meanwhile is ended, as its client does not
    read; it can be resumed.
    """

    def __init__(self, limit: int = MAX_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._limit = limit
        self._patience_s = patience_s
        self._sending: dict[asyncio.Timeout, _Sending] = {}
        self._bytes = 0
        self._first = asyncio.Lock()
        self._one_ended = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Wait until a batch of about this size may be read and sent, which happens within the block.

        Raises StalledError if it takes too long.
        """
        if size < LARGE_BYTES:
            yield
            return
        async with self._first:
            while self._sending and self._bytes + size > self._limit:
                await self._wait_for_end()
        try:
            async with asyncio.timeout(None) as limit:
                self._sending[limit] = _Sending(size, self._clock())
                self._bytes += size
                try:
                    yield
                finally:
                    self._end(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            message = "the client read a large batch too slowly while others waited; resume when it can read again"
            raise StalledError("STALLED", message) from None

    async def _wait_for_end(self) -> None:
        """Wait until a batch was sent, and give the oldest one up when it has taken too long."""
        oldest, sending = next(iter(self._sending.items()))
        self._one_ended.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(sending.since + self._patience_s):
                await self._one_ended.wait()
                return
        oldest.reschedule(self._clock())
        self._end(oldest)

    def _end(self, limit: asyncio.Timeout) -> None:
        sending = self._sending.pop(limit, None)
        if sending is not None:
            self._bytes -= sending.size
            self._one_ended.set()

    def __len__(self) -> int:
        return len(self._sending)
