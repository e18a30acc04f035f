"""A watch: one subscription, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

import grpc

from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._session import Known, Session
from milo_discovery._signal import Signal
from milo_discovery._status import FATAL_TO_A_STREAM, status_error
from milo_discovery.errors import DiscoveryError, StatusError, StreamBroken
from milo_discovery.events import Connected, Disconnected, Event, Mark
from milo_discovery.model import Cluster, SourceStatus

# Nothing more is read while this many events wait to be taken: the daemon then merges what it would have sent. Only the
# differences that a snapshot makes come all at once.
_ENOUGH_PENDING = 256


class ClustersOf(Mapping[str, Cluster]):
    """The clusters of a session's view, by name."""

    def __init__(self, view: Mapping[str, Known]) -> None:
        self._view = view

    def __getitem__(self, name: str) -> Cluster:
        return self._view[name].cluster

    def __iter__(self) -> Iterator[str]:
        return iter(self._view)

    def __len__(self) -> int:
        return len(self._view)


class Watch:
    """Iterate over it: `async for event in watch`. It starts with the first look, and ends with `close()`.

    Whatever happens to the connection or the daemon, each cluster is ENGAGED and DISENGAGED once. Only what asking
    again can't mend ends the iteration: InvalidRequest, PermissionDenied, Unauthenticated, PreconditionFailed,
    Unimplemented.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        request: pb.WatchClustersRequest,
        *,
        silence: timedelta,
        backoff: BackoffPolicy,
        on_close: Callable[[Watch], None],
    ) -> None:
        self._connect = connect
        self._request = request
        self._silence = silence
        self._backoff_policy = backoff
        self._on_close = on_close
        self._session = Session()
        self._pending: deque[Event | Mark] = deque()
        self._signal = Signal()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False
        self._connected_at: float | None = None
        self._told_disconnected = False
        self.clusters: Mapping[str, Cluster] = ClustersOf(self._session.view)
        """The view, as of now: it may be ahead of the events not yet taken."""

    @property
    def connected(self) -> bool:
        """The daemon answers on the current stream."""
        return self._connected_at is not None

    @property
    def source(self) -> SourceStatus | None:
        """The state of the daemon's own view of Milo, as last told; None before the first word."""
        return self._session.source

    @property
    def revision(self) -> str:
        """Where the stream stands, and where another one would resume."""
        return self._session.revision

    @property
    def is_synced(self) -> bool:
        """The first complete view has arrived."""
        return self._session.synced

    async def synced(self) -> None:
        """Wait until the first complete view is in `clusters`, whether its events have been taken or not."""
        if not await self._until(lambda: self._session.synced):
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
        if not self._pending:
            await self._until(lambda: bool(self._pending))
        if self._closed:
            raise StopAsyncIteration
        item = self._pending.popleft()
        if len(self._pending) == _ENOUGH_PENDING - 1:
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
        backoff = Backoff(self._backoff_policy)
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self._read_stream()
            except FATAL_TO_A_STREAM:
                raise
            except DiscoveryError as error:
                ran = timedelta() if self._connected_at is None else timedelta(seconds=clock() - self._connected_at)
                retry_after = error.retry_after if isinstance(error, StatusError) else None
                delay = backoff.failed(ran=ran, retry_after=retry_after)
                self._lost(error)
            finally:
                self._connected_at = None
            await asyncio.sleep(delay.total_seconds())

    async def _read_stream(self) -> None:
        """One stream on a connection of its own, read to its end, which is always an error."""
        self._request.resume_revision = self._session.open()
        try:
            async with self._connect() as channel:
                call = DiscoveryServiceStub(channel).WatchClusters(self._request)
                while True:
                    # The limit is around the one read: a slow user is no silent daemon.
                    async with asyncio.timeout(self._silence.total_seconds()):
                        batch = await call.read()
                    if not isinstance(batch, pb.WatchClustersResponse):
                        raise StreamBroken("the daemon ended the stream")
                    self._take(batch)
                    await self._signal.until(lambda: len(self._pending) < _ENOUGH_PENDING)
        except grpc.aio.AioRpcError as error:
            raise status_error(error.code(), error.details(), error.trailing_metadata()) from error
        except TimeoutError as error:
            raise StreamBroken(f"no heartbeat for {self._silence.total_seconds():g} s") from error

    def _take(self, batch: pb.WatchClustersResponse) -> None:
        told = self._session.receive(batch)
        if self._connected_at is None:
            self._connected_at = asyncio.get_running_loop().time()
            self._told_disconnected = False
            self._pending.append(Connected(resumed=batch.synced and not batch.reset))
        self._pending.extend(told)
        self._signal.notify()

    def _lost(self, error: DiscoveryError) -> None:
        # Once for each loss, however many attempts it takes to come back.
        if not self._told_disconnected:
            self._told_disconnected = True
            self._pending.append(Disconnected(error=error))
            self._signal.notify()
