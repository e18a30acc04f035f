"""Limits what streams send at the same time in large batches: with the copies of gRPC, each takes three times its size
until it is sent, and there can be thousands of streams. Users who write one object with many labels determine the size
of a batch to every subscriber."""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Protocol
from weakref import WeakValueDictionary

from milo_discoveryd.server.calls.grpc_errors import StalledError

LARGE_BYTES = 16 << 10
"""The size from which a batch is large: some 50 clusters."""
MAX_BYTES = 24 << 20
"""Maximum bytes of large batches that are being sent, while open streams hold nothing else."""
COPIES = 3
LEAST = 3
"""Batches have a third of that, however much open streams hold."""
PATIENCE_S = 2.5
"""How long a stream may take to send a large batch while others wait."""
_LONGEST = 12
"""How long those may take that keep a part of the room, as a multiple of the patience."""
_SLOW = 1 / 2
"""Their part of the room. What is left serves others, however many do not read."""
_REMEMBERED_S = 60.0
"""How long after none waits it is remembered who did not read."""
_TICK = 1 / 5
"""How often batches are examined while others wait, as a part of the patience."""


class OpenStreams(Protocol):
    held_bytes: int
    """How much memory their requests and deliveries take."""


class _NoStreams:
    held_bytes = 0


_NO_STREAMS = _NoStreams()


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
    Beyond that, its streams wait in order. Of several callers, the one that wasted the least room is next, and of those
    the one that sends the least.

    Clients that do not read a batch cannot be told from those that read it slowly, until it is sent or given up. While
    one waits, those that take longer than the patience therefore keep only a part of the room. The first to be given up
    are of the caller that had room the longest for batches that were not sent, and the newest of them: slow clients
    that send batches keep their room. Streams that are given up can be resumed.
    """

    def __init__(
        self, limit: int = MAX_BYTES, patience_s: float = PATIENCE_S, *, streams: OpenStreams = _NO_STREAMS
    ) -> None:
        """Batches share their memory with what these streams hold."""
        self._most = self._limit = limit
        self._streams = streams
        self._patience_s = patience_s
        self._sending: dict[_Batch, None] = {}
        """The one that was admitted first is first."""
        self._bytes: Counter[Hashable] = Counter()
        """What each caller sends."""
        self._waiting: dict[Hashable, _Batch] = {}
        """The next one of each caller."""
        self._wasted: defaultdict[Hashable, float] = defaultdict(float)
        """For how long each caller had room for batches that were given up, less that for batches that were sent, while
        batches wait. In bytes times seconds."""
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._loop = asyncio.get_running_loop()
        self._examination: asyncio.TimerHandle | None = None
        self._examined_at = -math.inf

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
                is_sent = False
                try:
                    async with turn:
                        self._waiting[caller] = batch
                        self._admit()
                        await batch.admitted.wait()
                    yield
                    is_sent = True
                finally:
                    self._end(batch, is_sent=is_sent)
        except TimeoutError:
            if not limit.expired():
                raise
            message = "the client read a large batch too slowly while others waited; resume when it can read again"
            raise StalledError("STALLED", message) from None

    def _next(self) -> Hashable:
        return min(self._waiting, key=lambda caller: (max(0.0, self._wasted[caller]), self._bytes[caller]))

    def _admit(self) -> None:
        self._limit = max(self._most // LEAST, self._most - self._streams.held_bytes // COPIES)
        while self._waiting:
            caller = self._next()
            batch, free = self._waiting[caller], self._limit - self._bytes.total()
            if self._sending and self._bytes[caller] + batch.size > free:
                if self._examination is None:
                    self._examination = self._loop.call_later(_TICK * self._patience_s, self._examine)
                return
            del self._waiting[caller]
            self._sending[batch] = None
            self._bytes[caller] += batch.size
            batch.since = self._loop.time()
            batch.admitted.set()

    def _examine(self) -> None:
        """Give batches up that take too long, until there is room for the next one."""
        self._examination, now = None, self._loop.time()
        if now - self._examined_at > _REMEMBERED_S:
            self._wasted.clear()
        self._examined_at = now
        while self._waiting and (batch := self._victim(now)) is not None:
            batch.limit.reschedule(now)
            self._end(batch, is_sent=False)
        self._admit()

    def _victim(self, now: float) -> _Batch | None:
        """Return the batch that is given up first, if one takes too long. It is none of a caller that sends less than
        the one that waits."""
        most = self._bytes[self._next()]
        slow = [batch for batch in self._sending if now - batch.since >= self._patience_s]
        if sum(batch.size for batch in slow) <= _SLOW * self._limit:
            slow = [batch for batch in slow if now - batch.since >= _LONGEST * self._patience_s]
        slow = [batch for batch in slow if self._bytes[batch.caller] >= most]
        return max(slow, key=self._rank, default=None)

    def _rank(self, batch: _Batch) -> tuple[float, int, float]:
        return self._wasted[batch.caller], self._bytes[batch.caller], batch.since

    def _end(self, batch: _Batch, *, is_sent: bool) -> None:
        if self._waiting.get(batch.caller) is batch:
            del self._waiting[batch.caller]
        elif batch in self._sending:
            del self._sending[batch]
            self._bytes[batch.caller] -= batch.size
            if (now := self._loop.time()) - self._examined_at <= _REMEMBERED_S:
                used = batch.size * (now - batch.since)
                self._wasted[batch.caller] += -used if is_sent else used
            if not self._bytes[batch.caller]:
                del self._bytes[batch.caller]
        self._admit()

    def __len__(self) -> int:
        return len(self._sending)
