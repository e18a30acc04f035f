"""One subscriber's stream: waits for changes, takes them from its cursor, and sends them."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

import msgspec

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.subscriber import Subscription
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.instruments import StreamMetrics
from milo_discoveryd.log.change_log import slice_of
from milo_discoveryd.log.change_notifier import ReadingTurns, Waiter
from milo_discoveryd.log.cursor import Batch, Cursor
from milo_discoveryd.log.events import NO_CHANGES, Frame
from milo_discoveryd.log.filter import ClusterView, Filter, without_sources
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.objects.collection import REMOVALS_HELD
from milo_discoveryd.rights.scope import scoped
from milo_discoveryd.server.calls import frames
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.delivery_schedule import DeliveryBudget
from milo_discoveryd.server.calls.grpc_errors import StalledError, UnavailableError
from milo_discoveryd.server.calls.kubeconfig_rotation import BATCH_BYTES, KUBECONFIG_BYTES, KubeconfigRotation
from milo_discoveryd.server.calls.large_batches import LARGE_BYTES, LargeBatches
from milo_discoveryd.server.calls.requests import WatchRequest
from milo_discoveryd.server.calls.resumption import Resumption
from milo_discoveryd.server.calls.revision import StreamRevisions, TokenSigner, parse
from milo_discoveryd.server.calls.source_statuses import source_statuses, visible_sources
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reusable_timeout import Deadline

Send = Callable[[bytes], Awaitable[None]]
RETRY_S = 1.0
LARGE_BATCH = 1 / 4
"""A batch of at least this fraction of the maximum size is probably followed by another, which is prefetched."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that all streams of the daemon share."""

    epoch: str
    signer: TokenSigner
    metrics: StreamMetrics
    turns: ReadingTurns
    large_batches: LargeBatches
    deliveries: DeliveryBudget
    stalled_s: float
    stopping: asyncio.Event
    is_sharded: bool = False
    """Whether the clusters are distributed among several daemons."""


class StreamView:
    """The view of one subscriber: its filter, limited by its rights."""

    def __init__(self, wanted: Filter, call: CallContext) -> None:
        self.call = call
        self.shown = scoped(wanted, call.scope)
        self._wanted = wanted
        self._grant = call.grant

    @property
    def holder(self) -> str:
        return self.call.holder(self.shown)

    def covers_source(self, source: str) -> bool:
        """Return whether the subscriber may see the name of a source."""
        return self.call.scope.covers_source(source)

    def follow_rights(self) -> bool:
        """Apply a change of the caller's rights. Return whether there was one."""
        before, self._grant = self._grant, self.call.grant
        if self._grant is before:
            return False
        shown = scoped(self._wanted, self.call.scope)
        if shown.fingerprint != self.shown.fingerprint:
            self.shown = shown
        return True


class BatchSender:
    """Sends one stream's batches, with a deadline for a client that reads nothing."""

    def __init__(self, send: Send, turns: ReadingTurns, stalled_s: float, prefetched_bytes: float) -> None:
        """While a batch of at least `prefetched_bytes` is sent, the next one is computed, unless other reads wait."""
        self._send = send
        self._turns = turns
        self._stalled_s = stalled_s
        self._prefetched_bytes = prefetched_bytes
        self._loop = asyncio.get_running_loop()
        self._deadline: Deadline
        self.sent_at = 0.0

    @asynccontextmanager
    async def limited(self) -> AsyncIterator[None]:
        """Raise StalledError within the block if the client reads nothing for too long."""
        try:
            async with Deadline() as self._deadline:
                yield
        except TimeoutError:
            raise StalledError(
                "STALLED", f"the client read nothing for {self._stalled_s:g} s; resume when it can read again"
            ) from None

    async def send(self, data: bytes, cursor: Cursor | None) -> None:
        self._deadline.set(self._loop.time() + self._stalled_s)
        if cursor is None or len(data) < self._prefetched_bytes:
            await self._send(data)
        else:
            # The send begins in this iteration of the event loop, and the prefetch runs in the next one.
            prefetching = self._loop.call_soon(self._prefetch, cursor)
            try:
                await self._send(data)
            finally:
                prefetching.cancel()
        self._deadline.lift()
        self.sent_at = self._loop.time()

    def _prefetch(self, cursor: Cursor) -> None:
        if self._turns.is_free:
            cursor.prefetch()


class SourceReports:
    """The source statuses that one stream sends: when the state of a source has changed, and with each heartbeat."""

    def __init__(self, sources: Sequence[ClusterSource], resumption: Resumption, call: CallContext) -> None:
        self._sources = sources
        self._resumption = resumption
        self._call = call
        self._visible = visible_sources(sources, call.scope)
        self._reported: tuple[tuple[ViewState, str], ...] = ()

    @property
    def are_due(self) -> bool:
        """Whether the state of a source, or the reason for that state, changed since the last report."""
        return self._reported != self._states()

    def follow_rights(self) -> None:
        self._visible = visible_sources(self._sources, self._call.scope)

    @property
    def has_begun(self) -> bool:
        return bool(self._reported)

    def report(self, now: Moment) -> list[pb.SourceStatus]:
        self._reported = self._states()
        return source_statuses(self._sources, self._call.scope, now, status_of=self._status)

    def _states(self) -> tuple[tuple[ViewState, str], ...]:
        if not self._resumption.doubted:
            return tuple([(source.status.state, source.status.reason) for source in self._visible])
        return tuple([(status.state, status.reason) for status in map(self._status, self._visible)])

    def _status(self, source: ClusterSource) -> ViewStatus:
        """Return the status of a source as this subscriber sees it: the subscriber may be waiting for a second list."""
        status, doubted = source.status, self._resumption.doubted
        waits = doubted.get(source.name) if doubted else None
        if waits is None or status.state is not ViewState.STREAMING:
            return status
        since = self._resumption.doubted_since
        return ViewStatus(ViewState.CATCHING_UP, since, REMOVALS_HELD, waits, status.last_contact)


class WatchStream:
    def __init__(
        self,
        fleet: Fleet,
        asked: WatchRequest,
        call: CallContext,
        send: Send,
        options: StreamOptions,
        *,
        rotation: KubeconfigRotation | None = None,
        subscription: Subscription | None = None,
    ) -> None:
        """`rotation` is set if the subscriber requested kubeconfigs, `subscription` if it confirms releases."""
        self._fleet = fleet
        self._asked = asked
        self._options = options
        self._rotation = rotation
        self._subscription = subscription
        self._view = StreamView(asked.wanted, call)
        self._sender = BatchSender(send, options.turns, options.stalled_s, LARGE_BATCH * fleet.log.batch_bytes)
        self._revisions = StreamRevisions(options.epoch, options.signer)
        sources = fleet.select(asked.wanted.sources)
        self._resumption = Resumption(
            parse(asked.resume_revision, [source.name for source in sources]),
            sources,
            options.epoch,
            lambda now: fleet.count_by_source(self._view.shown, now),
            is_resumed=bool(asked.resume_revision),
            accepts_pending=asked.accepts_pending_sources,
            is_visible=self._view.covers_source,
        )
        self._reports = SourceReports(sources, self._resumption, call)
        self._clock = asyncio.get_running_loop().time
        self.cursor: Cursor | None = None
        self.opened_at = time.time()

    @property
    def wanted(self) -> Filter:
        return self._asked.wanted

    @property
    def caller(self) -> Caller:
        return self._view.call.caller

    @property
    def name(self) -> str:
        """The name of the subscription, for which draining clusters wait; empty if there is none."""
        return self._asked.subscriber

    def covers(self, cluster: Cluster) -> bool:
        """Return whether the filter and the rights of the subscriber cover the cluster."""
        return self._view.shown.matches(cluster)

    @property
    def lag(self) -> int:
        """The number of unsent revisions plus, during a snapshot, the number of unsent clusters."""
        return 0 if self.cursor is None else self.cursor.lag

    async def run(self) -> None:
        """Run until the client disconnects or stalls, its rights end, or the daemon shuts down. Always raises."""
        async with self._sender.limited():
            with self._fleet.notifier.waiter() as waiter, self._subscribed(waiter), self._waiting():
                async with self._awaited():
                    await self._follow(waiter)

    async def _follow(self, waiter: Waiter) -> None:
        opened_at = self._fleet.log.head
        await self._update_pending()
        has_waited = False
        while self._resumption.must_wait:
            await self._send_batch(Batch(NO_CHANGES, 0, synced=False))
            has_waited = True
            await self._wait(waiter)
            await self._update_pending()
        self._follow_rights()
        cursor = await self._begin(has_waited=has_waited)
        turns, has_sent, is_behind = self._options.turns, False, self._subscription is not None
        while True:
            if is_behind and cursor.is_following and cursor.revision >= opened_at:
                is_behind = False
                self._note_current()
            if has_sent and self._rotation and cursor.is_following and self._rotation.is_due():
                await self._send_renewed(cursor, self._rotation)  # now: there may always be another change
            is_other_view = bool(self._resumption.pending) and await self._update_pending()
            if not turns.is_free:
                await turns.wait(self._view.call.quota_keys)
            self._follow_rights()
            if is_other_view:
                self.cursor = cursor = self._new_cursor(None)
                opened_at, is_behind = self._fleet.log.head, self._subscription is not None
            place = cursor.place
            batch = cursor.next_batch()
            has_sent = False
            if batch is not None and (size := self._size(batch)) >= LARGE_BYTES:
                cursor.return_to(place)
                del batch
                has_sent = await self._send_large(cursor, size)
            elif batch is not None and batch.is_sendable:
                await self._send_changes(batch)
                has_sent = True
            elif batch is not None:
                await asyncio.sleep(0)
            elif self._rotation and self._rotation.is_due():
                await self._send_renewed(cursor, self._rotation)
            elif self._reports.are_due or self._clock() >= self._sender.sent_at + self._asked.heartbeat_s:
                await self._send_batch(Batch(NO_CHANGES, cursor.revision))
            else:
                await self._wait(waiter)

    def _note_current(self) -> None:
        assert self._subscription is not None
        kept = self._resumption.kept_sources
        self._fleet.releases.note_current(self._subscription, keeps_others=bool(kept))

    async def _begin(self, *, has_waited: bool) -> Cursor:
        # After heartbeats of a stream that waits, a subscriber expects a snapshot.
        resume = None if has_waited else await self._resume_from()
        self.cursor = cursor = self._new_cursor(resume)
        if resume is not None and cursor.is_following:
            await self._resume(cursor, resume)
        else:
            await asyncio.sleep(0)  # a large fleet's snapshot takes milliseconds, and so does the first batch after it
        return cursor

    async def _send_large(self, cursor: Cursor, size: int) -> bool:
        """Read and send a large batch once there is room for it: those of hundreds of streams would exhaust the memory
        while they wait. Return whether there was one."""
        async with self._options.large_batches.room(size, self._view.call.quota_keys):
            self._follow_rights()
            batch = cursor.next_batch()
            if batch is None or not batch.is_sendable:
                return False
            await self._send_changes(batch)
            return True

    async def _send_renewed(self, cursor: Cursor, rotation: KubeconfigRotation) -> None:
        """Send kubeconfigs that are due once there is room for them, unless the subscriber does not have its clusters
        yet."""
        async with self._options.large_batches.room(BATCH_BYTES, self._view.call.quota_keys):
            self._follow_rights()
            if cursor.is_following and (renewed := rotation.take_due(cursor.revision)):
                await self._send_batch(Batch(NO_CHANGES, cursor.revision), renewed)
            else:
                await asyncio.sleep(0)

    def _size(self, batch: Batch) -> int:
        """Return how large a batch can be, with kubeconfigs for its clusters."""
        return BATCH_BYTES if self._rotation is not None and batch.slice.frames else len(batch.slice.data)

    async def _update_pending(self) -> bool:
        """Compute the sources that are not shown to the subscriber yet. Return whether they changed."""
        steps = self._resumption.compare_lists(self._clock())
        is_changed = await self._options.turns.complete(steps, self._view.call.quota_keys)
        if is_changed and self._subscription is not None:
            # It is not told yet what the source lacks.
            self._fleet.releases.note_behind(self._subscription, self._clock())
        self._await_sources()
        return is_changed

    def _await_sources(self) -> None:
        kept = self._resumption.kept_sources
        if self._subscription is not None:
            self._fleet.releases.await_sources(self._subscription, keeps_others=bool(kept))
        self._fleet.waiting.await_sources(self, frozenset(self._resumption.doubted), kept)

    async def _resume(self, cursor: Cursor, revision: int) -> None:
        """Send the first batch of a subscriber that resumes."""
        assert self._resumption.position is not None, "the subscriber resumes, but has no position in the log"
        self._revisions.resume(self._asked.resume_revision, self._resumption.position.known)
        draining: list[Frame] = []
        for more in self._still_draining(revision):
            draining += more
            if sum(len(frame.data) for frame in draining) >= self._fleet.log.batch_bytes:
                await self._send_first(Batch(slice_of(draining), revision))
                draining.clear()
            if not self._options.turns.is_free:
                await self._options.turns.wait(self._view.call.quota_keys)
                shown = self._view.shown
                self._follow_rights()
                if self._view.shown is not shown:
                    draining = [frame for frame in draining if self._view.shown.matches(frame.cluster)]
        changes = cursor.next_batch() or Batch(NO_CHANGES, cursor.revision)
        if not changes.is_sendable:
            changes = Batch(NO_CHANGES, revision)  # a subscriber could not resume in the middle of a longer read
        if draining and not changes.reset:
            changes = msgspec.structs.replace(changes, slice=slice_of((*draining, *changes.slice.frames)))
        await self._send_first(changes)
        if self._rotation:
            for _ in self._rotation.catch_up():
                await asyncio.sleep(0)

    async def _send_first(self, batch: Batch) -> None:
        async with self._options.large_batches.room(self._size(batch), self._view.call.quota_keys):
            await self._send_changes(batch, is_live=False)

    def _new_cursor(self, resume: int | None) -> Cursor:
        view = self._visible
        if self._rotation is not None:
            self._rotation.change_view(view)
        return Cursor(self._fleet.log, view, resume, overhead=KUBECONFIG_BYTES if self._rotation else 0)

    @property
    def _visible(self) -> ClusterView:
        return without_sources(self._view.shown, self._resumption.pending)

    def _follow_rights(self) -> None:
        """Apply a change of rights before the next batch, so that no batch is sent under rights that have ended."""
        shown = self._view.shown
        if not self._view.follow_rights():
            return
        self._reports.follow_rights()
        if self._view.shown is not shown:
            if self.cursor is not None:
                self.cursor.change_view(self._visible)
            if self._subscription is not None:
                self._fleet.changes.change_view(self._subscription, self._view.shown)
        if self._rotation is not None:
            self._rotation.change_view(self._visible)

    def _subscribed(self, waiter: Waiter) -> AbstractContextManager[None]:
        return self._rotation.subscribed(waiter.wake) if self._rotation else nullcontext()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let the clusters count that the subscriber keeps, from before the stream waits for its first turn."""
        kept = self._resumption.kept_sources
        if self._subscription is not None:
            self._subscription.keeps_others = bool(kept)
        self._fleet.waiting.await_sources(self, frozenset(), kept)
        try:
            yield
        finally:
            self._fleet.waiting.await_sources(self, frozenset())

    @asynccontextmanager
    async def _awaited(self) -> AsyncIterator[None]:
        """Make drains wait for the subscriber's releases, also for a while after this stream has ended."""
        if self._subscription is None:
            yield
            return
        drains = self._fleet.changes.subscribe(self._subscription)
        try:
            await self._options.turns.complete(drains, self._view.call.quota_keys)
            yield
        finally:
            self._fleet.changes.unsubscribe(self._subscription)

    def _still_draining(self, resumed: int) -> Iterator[list[Frame]]:
        """Return the frames of the draining clusters that wait for this subscriber, in steps, to send them again: the
        subscriber may have restarted."""
        if self._subscription is None:
            return
        releases, key = self._fleet.releases, self._subscription.key
        names, step = [*releases], self._view.shown.records_per_step
        for start in range(0, len(names), step):
            records = (self._fleet[name] for name in names[start : start + step] if releases.awaits(name, key))
            waiting = (record.entry for record in records if record is not None)
            yield [*self._fleet.log.draining_frames(waiting, resumed, self._view.shown)]

    async def _wait(self, waiter: Waiter) -> None:
        """Wait for a change, or until a heartbeat or a kubeconfig is due.

        Raises the error that ends the stream when the caller's rights end or the daemon shuts down. It is raised only
        here, so that the subscriber receives its pending changes first.
        """
        if self._asked.with_kubeconfigs:
            self._view.call.require_kubeconfigs()
        self._view.call.require_rule()
        if self._options.stopping.is_set():
            raise UnavailableError(
                "SHUTTING_DOWN",
                "the daemon is shutting down; keep all clusters engaged and resume",
                retry_after_s=RETRY_S,
            )
        due_at = self._sender.sent_at + self._asked.heartbeat_s
        if self._resumption.pending:
            due_at = min(due_at, self._resumption.due_at)
        rotation_in_s = self._rotation.due_in_s if self._rotation else math.inf
        await waiter.wait_for_change(max(0.0, min(due_at - self._clock(), rotation_in_s)))

    async def _send_changes(self, batch: Batch, *, is_live: bool = True) -> None:
        known_clusters = self._resumption.kept if batch.reset else self._revisions.known
        known_clusters = known_clusters.grown(batch.slice.growth)
        if not self._resumption.pending:
            known_clusters = self._revisions.seen_at(known_clusters, self._fleet.changes.versions)
        self._revisions.known = known_clusters
        is_live = is_live and self._reports.has_begun and not batch.reset and batch.synced
        events = self._rotation.attach_kubeconfigs(batch.slice) if self._rotation else batch.slice.data
        await self._send_batch(batch, events)
        if events:
            read_at = self._fleet.notifier.read_at(batch.revision) if is_live else None
            self._options.metrics.batch_sent(None if read_at is None else self._sender.sent_at - read_at)

    async def _send_batch(self, batch: Batch, events: bytes = b"") -> None:
        sources: list[pb.SourceStatus] = []
        if not events or self._reports.are_due:
            sources = self._reports.report(Moment(time.time(), self._clock()))
        pending = self._resumption.visible_pending if self._resumption.pending else frozenset()
        revision = ""  # the subscriber cannot resume yet
        if self.cursor is not None:
            is_whole = batch.is_whole and not pending
            revision = self._revisions.sign_next(batch.revision, self._view.holder, is_whole=is_whole)
        data = frames.batch(
            events,
            revision=revision,
            previous_revision=self._revisions.last,
            synced=batch.synced,
            reset=batch.reset,
            source=sources[0] if sources else None,
            sources=sources[1:],
            pending_sources=sorted(pending) if batch.synced and pending else (),
            sharded=self._options.is_sharded and bool(sources),
        )
        await self._sender.send(data, self.cursor)
        self._revisions.last = revision
        if batch.reset:
            self._options.metrics.reset_sent()

    async def _resume_from(self) -> int | None:
        position = self._resumption.position
        if position is None or position.epoch != self._options.epoch:
            return None  # no revision, a revision that the daemon cannot parse, or a revision of another run
        if not self._revisions.is_own(self._asked.resume_revision, self._view.holder):
            self._view.call.refused("REVISION_OF_ANOTHER", call="WatchClusters")
            await self._view.call.penalize_miss()  # a snapshot is expensive
            return None
        return None if position.part is not None else position.revision
