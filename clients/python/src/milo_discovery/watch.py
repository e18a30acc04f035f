"""The asyncio watch: one subscription that outlives its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from milo_discovery._grpc_status import NOT_RETRYABLE, status_error_of_call, understood
from milo_discovery._ownership import boottime
from milo_discovery._subscription import StreamSubscription, WatchState, log
from milo_discovery.errors import DiscoveryError, StreamBroken
from milo_discovery.events import Event, StreamNotice
from milo_discovery.model import Cluster, SourceFreshness
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_kube.background_loop import run_in_thread, run_on
from milo_kube.change_signal import ChangeSignal

# Backpressure: while this many events are pending, no further batch is read, and the daemon coalesces changes.
# The events of one batch, and the differences from a snapshot, are queued all at once.
_MAX_PENDING = 256


class Release(Protocol):
    """The call that releases a draining cluster."""

    async def __call__(self, cluster: Cluster, *, subscriber: str) -> None: ...


class Watch(WatchState):
    """An async iterator of events: `async for event in watch`. It connects on first use and ends with `close()`.

    ENGAGED and DISENGAGED alternate for each cluster: broken connections and daemon restarts neither repeat nor lose
    one. A cluster may be engaged again after it was disengaged. The iteration raises only errors that a retry cannot
    fix: InvalidRequest, PermissionDenied, Unauthenticated, PreconditionFailed, Unimplemented.
    """

    def __init__(
        self,
        subscription: StreamSubscription,
        connect: Callable[[], grpc.aio.Channel],
        on_close: Callable[[Watch], None],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
        release: Release,
        *,
        connect_in_thread: Callable[[], grpc.aio.Channel],
    ) -> None:
        super().__init__(subscription)
        self._connect = connect
        self._connect_in_thread = connect_in_thread
        self._metadata = metadata
        self._release = release
        self._on_close = on_close
        self._signal = ChangeSignal()
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def synced(self) -> None:
        """Wait until `clusters` holds the first complete view, even if its events were not iterated over."""
        if not await self._read_until(lambda: self.is_synced):
            raise RuntimeError("the watch was closed before it was synced")

    async def reconnect(self) -> None:
        """Close the stream, and return once a new one is connected. It resumes from the last revision if possible."""
        if self.connected and not self._closed:
            # Reported now: without an answer to the next stream, nothing is for as long as a stream may be silent.
            self._subscription.stream_lost(StreamBroken("`reconnect` was called"), asyncio.get_running_loop().time())
            self._signal.notify()
        await self._stop_reading()
        if not await self._read_until(lambda: self.connected):
            raise RuntimeError("the watch is closed")

    async def release(self, cluster: Cluster) -> None:
        """Confirm, with `confirm_releases`, that the work on a draining cluster has ended. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining or has another incarnation now, or the subscriber is
        unknown.
        """
        await self._release(cluster, subscriber=self.subscriber)

    async def close(self) -> None:
        """Close the stream, drop pending events and end the iteration."""
        if not self._closed:
            self._closed = True
            self._on_close(self)
            self._signal.notify()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()  # before the first await: if close() is canceled, the task must not keep running
        await self._stop_reading()
        if keeper is not None:
            await asyncio.wait([keeper])

    async def feed(self) -> AsyncGenerator[Event | StreamNotice, None]:
        """Iterate over events and stream notices: Synced, Connected, Disconnected, Refreshed."""
        self._subscription.logs_stream = False
        while True:
            try:
                yield await self._next()
            except StopAsyncIteration:
                return

    async def freshness_changed(self, since: SourceFreshness) -> SourceFreshness:
        """Wait until `freshness` differs from `since`, and return it."""
        await self._signal.wait_for(lambda: self.freshness != since)
        return self.freshness

    async def take(self) -> Sequence[Event | StreamNotice]:
        """Wait for events, and return all that are pending; none once the watch is closed."""
        pending = self._subscription.pending
        await self._read_until(lambda: bool(pending))
        taken = () if self._closed else tuple(pending)
        pending.clear()
        self._taken_loss = self._subscription.loss
        self._signal.notify()
        return taken

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

    async def _next(self) -> Event | StreamNotice:
        pending = self._subscription.pending
        if not pending:
            await self._read_until(lambda: bool(pending))
        if self._closed:
            raise StopAsyncIteration
        item = self._taking(pending.popleft())
        if len(pending) == _MAX_PENDING - 1:
            self._signal.notify()
        return item

    async def _read_until(self, predicate: Callable[[], bool]) -> bool:
        """Read until the predicate is true; False if the watch is closed first. Raises the reader's error."""
        while not self._closed and not predicate():
            reader = self._start_reading()
            await self._signal.wait_for(lambda: self._closed or predicate() or reader.done())  # noqa: B023  (awaited)
            if reader is self._reader and reader.done() and not predicate():
                reader.result()
        return predicate()

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
                reader.exception()  # Retrieve the exception, so that asyncio does not log it.

    async def _read(self) -> None:
        """Read one stream after another, until one fails with an error that a retry cannot fix."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                if not self._is_held and self._keeper is None:
                    self._start_renewals()  # the first renewal was interrupted, such as by `reconnect`
                await self._signal.wait_for(lambda: self._is_held)
                try:
                    await self._read_stream(clock)
                except NOT_RETRYABLE:
                    raise
                except DiscoveryError as error:
                    delay = self._subscription.stream_lost(error, clock())
                    self._signal.notify()
                await asyncio.sleep(delay.total_seconds())
        finally:
            self._subscription.stream_closed()

    async def _read_stream(self, clock: Callable[[], float]) -> None:
        """Read one stream on a new channel until it ends. Raises an error whenever it ends."""
        subscription = self._subscription
        request = subscription.next_request()
        metadata = self._metadata()
        silence_limit = subscription.silence_limit.total_seconds()
        try:
            async with self._connect() as channel:
                call = DiscoveryServiceStub(channel).WatchClusters(request, metadata=metadata)
                while True:
                    # The timeout covers only the read, and not the time that the user spends on events.
                    async with asyncio.timeout(silence_limit):
                        batch = await call.read()
                    if not isinstance(batch, pb.WatchClustersResponse):
                        raise StreamBroken("the daemon ended the stream")
                    if batch.sharded and self._keeper is None:
                        await self._renew_ownership(channel, boottime())
                        self._start_renewals()
                    elif batch.events and not self._is_held and not subscription.session.view:
                        # The daemon has come to own them since the last renewal.
                        await self._renew_ownership(channel, boottime())
                    if batch.events and not self._is_held:
                        raise StreamBroken("the daemon's ownership of its clusters has expired or is not confirmed")
                    subscription.received(batch, clock())
                    self._signal.notify()
                    await asyncio.sleep(0)  # lets waiters take the events before the next batch is read
                    await self._signal.wait_for(lambda: len(subscription.pending) < _MAX_PENDING)
        except grpc.aio.AioRpcError as error:
            raise status_error_of_call(error) from error
        except TimeoutError as error:
            raise StreamBroken(f"no heartbeat for {silence_limit:g} s") from error

    async def _renew_ownership(self, channel: grpc.aio.Channel, asked_at: float) -> None:
        """Request how long the daemon owns its clusters. After a failure, the last response applies."""
        ownership = self._subscription.ownership
        renew = DiscoveryServiceStub(channel).RenewOwnership
        ownership.sharded = True
        with suppress(grpc.aio.AioRpcError, DiscoveryError):
            timeout = ownership.timeout_s(asked_at)
            request = pb.RenewOwnershipRequest(subscriber=self._subscription.holder)
            response = await renew(request, timeout=timeout, metadata=self._metadata())
            ownership.renewed(understood(response), asked_at)

    def _start_renewals(self) -> None:
        """Keep the ownership renewed after the first attempt, whether it succeeded or not."""
        # Read only once, so that ownership that expires before the renewals start counts as lost.
        if not (was_owner := self._is_held):
            # Disengages clusters that were engaged before the daemon was sharded.
            self._subscription.ownership_ended()
            self._signal.notify()
        keep = partial(self._keep_ownership, asyncio.get_running_loop(), was_owner=was_owner)
        self._keeper = asyncio.create_task(_in_thread(keep), name="milo-discovery ownership")
        self._keeper.add_done_callback(self._keeper_ended)

    async def _keep_ownership(self, loop: asyncio.AbstractEventLoop, *, was_owner: bool) -> None:
        """Renew the ownership while the daemon is sharded. Report on the watch's `loop` when it is lost or regained."""
        ownership = self._subscription.ownership
        while ownership.sharded:
            await asyncio.sleep(ownership.next_renewal_s(boottime(), was_owner=was_owner))
            # Before the check: if the machine is suspended after the check, the response must not extend the ownership.
            asked_at = boottime()
            # Expired ownership is not renewed before the watch has disengaged all clusters.
            if not was_owner or self._is_held:
                try:
                    # A new channel per call: a channel that lost its connection has a reconnect backoff.
                    async with self._connect_in_thread() as channel:
                        await self._renew_ownership(channel, asked_at)
                except DiscoveryError:
                    pass  # Without a connection, the last response expires.
                except Exception:  # noqa: BLE001  (such as that no file can be opened: later renewals may succeed)
                    log.exception("the ownership was not renewed; retrying")
            if was_owner != self._is_held:
                await run_on(loop, partial(self._ownership_changed, ended=was_owner))
                was_owner = not was_owner

    async def _ownership_changed(self, *, ended: bool) -> None:
        if ended:
            error = StreamBroken("the daemon's ownership of its clusters has expired")
            self._subscription.stream_lost(error, asyncio.get_running_loop().time())
            self._subscription.ownership_ended()
            await self._stop_reading()
        self._signal.notify()

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if self._keeper is keeper:
            self._keeper = None


async def _in_thread(keep: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Keep the ownership in a thread, so that a blocked event loop cannot lose it; here if no thread can be started."""
    try:
        await run_in_thread(keep)
    except Exception:  # noqa: BLE001  (such as that no file can be opened)
        log.exception("the ownership is renewed on the event loop of the watch, which must not be blocked")
        await keep()
