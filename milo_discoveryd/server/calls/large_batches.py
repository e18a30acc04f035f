"""Limits what streams send at the same time in large batches: with the copies of gRPC, each takes three times its size
until it is sent, and there can be thousands of streams. Users who write one object with many labels determine the size
of a batch to every subscriber."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from milo_discoveryd.server.calls.grpc_errors import StalledError

LARGE_BYTES = 16 << 10
"""The size from which a batch is large: some 50 clusters."""
MAX_BYTES = 32 << 20
"""Maximum bytes of large batches that are being sent."""
PATIENCE_S = 5.0
"""How long a stream may take to send a large batch while others wait, and none of them is admitted."""
_LONGEST = 6
"""How long it may take while others wait that are admitted one after another, as a multiple of the patience."""


class _Batch:
    """A large batch that waits for room, or is being sent."""

    def __init__(self, caller: Hashable, size: int, limit: asyncio.Timeout) -> None:
        self.caller = caller
        self.size = size
        self.limit = limit
        self.admitted = asyncio.Event()
        self.since = 0.0
        """When it was admitted."""


class LargeBatches:
    """The large batches that are being sent, on streams of all listeners.

    A caller may send another one only while it sends less than there is room for, so that others find room as well.
    Beyond that, its streams wait in order. Of several callers, the one that sends the least is next. While one waits,
    the oldest batch of the caller that sends the most is given up if it takes too long, as its client does not read;
    its stream can be resumed. If clients only read slowly, batches are admitted as others are sent, and few are given
    up: none would ever be sent if each were as soon as another waits.
    """

    def __init__(self, limit: int = MAX_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._limit = limit
        self._patience_s = patience_s
        self._sending: dict[_Batch, None] = {}
        """The one that was admitted first is first."""
        self._bytes: Counter[Hashable] = Counter()
        """What each caller sends."""
        self._waiting: dict[Hashable, _Batch] = {}
        """The next one of each caller."""
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._clock = asyncio.get_running_loop().time
        self._admitted_at = -math.inf
        """When a batch was last admitted."""

    @asynccontextmanager
    async def room(self, size: int, caller: Hashable) -> AsyncIterator[None]:
        """Wait until a batch of about this size may be read and sent, which happens within the block.

        Raises StalledError if it takes too long.
        """
        if size < LARGE_BYTES:
            yield
            return
        try:
            async with asyncio.timeout(None) as limit:
                batch = _Batch(caller, size, limit)
                turn = self._turns.setdefault(caller, asyncio.Lock())
                try:
                    async with turn:
                        await self._wait(batch)
                    yield
                finally:
                    self._end(batch)
        except TimeoutError:
            if not limit.expired():
                raise
            message = "the client read a large batch too slowly while others waited; resume when it can read again"
            raise StalledError("STALLED", message) from None

    async def _wait(self, batch: _Batch) -> None:
        """Wait until the batch is admitted, and give others up that take too long."""
        self._waiting[batch.caller] = batch
        self._admit()
        while not batch.admitted.is_set():
            [(most, _)] = self._bytes.most_common(1)
            oldest = next(sending for sending in self._sending if sending.caller == most)
            idle_at = max(oldest.since, self._admitted_at) + self._patience_s
            ends_at = min(idle_at, oldest.since + _LONGEST * self._patience_s)
            if self._clock() < ends_at:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(ends_at):
                        await batch.admitted.wait()
            else:
                oldest.limit.reschedule(self._clock())
                self._end(oldest)

    def _admit(self) -> None:
        while self._waiting:
            caller = min(self._waiting, key=self._bytes.__getitem__)
            batch, free = self._waiting[caller], self._limit - self._bytes.total()
            if self._sending and self._bytes[caller] + batch.size > free:
                return
            del self._waiting[caller]
            self._sending[batch] = None
            self._bytes[caller] += batch.size
            batch.since = self._admitted_at = self._clock()
            batch.admitted.set()

    def _end(self, batch: _Batch) -> None:
        if self._waiting.get(batch.caller) is batch:
            del self._waiting[batch.caller]
        elif batch in self._sending:
            del self._sending[batch]
            self._bytes[batch.caller] -= batch.size
            if not self._bytes[batch.caller]:
                del self._bytes[batch.caller]
        self._admit()

    def __len__(self) -> int:
        return len(self._sending)
