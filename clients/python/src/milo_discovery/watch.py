"""A watch: one subscription, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

import grpc

from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._signal import Signal
from milo_discovery._status import FATAL_TO_A_STREAM, status_error
from milo_discovery._subscription import Subscription, WatchState
from milo_discovery.errors import DiscoveryError, StreamBroken
from milo_discovery.events import Event, Mark

# Nothing more is read while this many events wait to be taken: the daemon then merges what it would have sent. Only the
# differences that a snapshot makes come all at once.
_ENOUGH_PENDING = 256


class Watch(WatchState):
    """Iterate over it: `async for event in watch`. It starts with the first look, and ends with `close()`.

    Whatever happens to the connection or the daemon, each cluster is ENGAGED and DISENGAGED once. Only what asking
    again can't mend ends the iteration: InvalidRequest, PermissionDenied, Unauthenticated, PreconditionFailed,
    Unimplemented.
    """

    def __init__(
        self,
        subscription: Subscription,
        connect: Callable[[], grpc.aio.Channel],
        on_close: Callable[[Watch], None],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
    ) -> None:
        super().__init__(subscription)
        self._connect = connect
        self._metadata = metadata
        self._on_close = on_close
        self._signal = Signal()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def synced(self) -> None:
        """Wait until the first complete view is in `clusters`, whether its events have been taken or not."""
        if not await self._until(lambda: self.is_synced):
            raise RuntimeError("the watch was closed before it was synced")

    async def reconnect(self) -> None:
        """Cut the stream, if there is one, and return once another one resumes from the last revision."""
        await self._stop_reading()
        if not await self._until(lambda: self.connected):
            raise RuntimeError("the watch is closed")

    async def close(self) -> None:
        """End the stream. What wasn't taken is dropped, and iterations end."""
        if not self._closed:
            self._closed = True
            self._on_close(self)
            self._signal.notify()
        await self._stop_reading()

    async def feed(self) -> AsyncGenerator[Event | Mark, None]:
        """All events, and between them the marks: Synced, Connected, Disconnected, Refreshed."""
        while True:
            try:
                yield await self._next()
            except StopAsyncIteration:
                return

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            item = await self._next()
            if isinstance(item, Event):
                return item

    async def __aenter__(self) -> Self:
        if self._closed:
            raise RuntimeError("the watch is closed")
        self._start_reading()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _next(self) -> Event | Mark:
        pending = self._subscription.pending
        if not pending:
            await self._until(lambda: bool(pending))
        if self._closed:
            raise StopAsyncIteration
        item = pending.popleft()
        if len(pending) == _ENOUGH_PENDING - 1:
            self._signal.notify()
        return item

    async def _until(self, holds: Callable[[], bool]) -> bool:
        """Read until it holds; False if the watch is closed instead. Raises what ended the reading before that."""
        while not self._closed and not holds():
            reader = self._start_reading()
            await self._signal.until(lambda: self._closed or holds() or reader.done())  # noqa: B023  (awaited here)
            if reader is self._reader and reader.done() and not holds():
                reader.result()
        return holds()

    def _start_reading(self) -> asyncio.Task[None]:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="milo-discovery watch")
            self._reader.add_done_callback(lambda _: self._signal.notify())
        return self._reader

    async def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled():
                reader.exception()  # seen: who asked for the end doesn't wait for what came before it

    async def _read(self) -> None:
        """Stream after stream, until one ends with an error that no further one can mend."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    await self._read_stream(clock)
                except FATAL_TO_A_STREAM:
                    raise
                except DiscoveryError as error:
                    delay = self._subscription.lost(error, clock())
                    self._signal.notify()
                await asyncio.sleep(delay.total_seconds())
        finally:
            self._subscription.cut()

    async def _read_stream(self, clock: Callable[[], float]) -> None:
        """One stream on a connection of its own, read to its end, which is always an error."""
        subscription = self._subscription
        request = subscription.open()
        metadata = self._metadata()
        try:
            async with self._connect() as channel:
                call = DiscoveryServiceStub(channel).WatchClusters(request, metadata=metadata)
                while True:
                    # The limit is around the one read: a slow user is no silent daemon.
                    async with asyncio.timeout(subscription.silence.total_seconds()):
                        batch = await call.read()
                    if not isinstance(batch, pb.WatchClustersResponse):
                        raise StreamBroken("the daemon ended the stream")
                    subscription.take(batch, clock())
                    self._signal.notify()
                    await asyncio.sleep(0)  # whoever waits for the news has it before gRPC is asked for more
                    await self._signal.until(lambda: len(subscription.pending) < _ENOUGH_PENDING)
        except grpc.aio.AioRpcError as error:
            raise status_error(error.code(), error.details(), error.trailing_metadata()) from error
        except TimeoutError as error:
            raise subscription.fell_silent() from error
