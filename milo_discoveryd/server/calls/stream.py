"""One subscriber's stream: waits for changes, takes them from its cursor, and sends them."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import msgspec

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.registry.change_notifier import Waiter
from milo_discoveryd.registry.cursor import Batch, Cursor
from milo_discoveryd.registry.events import NO_CHANGES, Frame, slice_of
from milo_discoveryd.registry.filter import Filter, without_sources
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.pending_releases import Subscription
from milo_discoveryd.registry.source import ClusterSource
from milo_discoveryd.rights.scope import scoped
from milo_discoveryd.server.calls import frames
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.grpc_errors import StalledError, UnavailableError
from milo_discoveryd.server.calls.kubeconfig_rotation import KUBECONFIG_BYTES, KubeconfigRotation
from milo_discoveryd.server.calls.requests import WatchRequest
from milo_discoveryd.server.calls.revision import NOTHING, KnownClusters, Position, TokenSigner, parse
from milo_discoveryd.server.calls.source_statuses import source_statuses
from milo_kube.reflect.view_status import ViewState
from milo_kube.reusable_timeout import Deadline

Send = Callable[[bytes], Awaitable[None]]
RETRY_S = 1.0
DOUBT_S = 1.0
"""The first interval at which a subscriber that waits for a second list is compared with the fleet.

It doubles each time, because counting the clusters of a view takes some milliseconds."""
LARGE_BATCH = 1 / 4
"""A batch of at least this fraction of the maximum size is probably followed by another, which is prefetched."""


class StreamMetrics(Protocol):
    def batch_sent(self, latency_s: float | None) -> None:
        """Record a sent batch. `latency_s`: the time from reading its oldest change to passing it to gRPC; None for
        snapshots and resumes.
        """

    def reset_sent(self) -> None: ...


class WatchStream:
    def __init__(
        self,
        fleet: Fleet,
        epoch: str,
        asked: WatchRequest,
        *,
        call: CallContext,
        signer: TokenSigner,
        send: Send,
        metrics: StreamMetrics,
        stalled_s: float,
        stopping: asyncio.Event,
        rotation: KubeconfigRotation | None = None,
        subscription: Subscription | None = None,
        sharded: bool = False,
    ) -> None:
        """`rotation` is set if the subscriber requested kubeconfigs, `subscription` if it confirms releases.

        `sharded`: whether the clusters are distributed among several daemons.
        """
        self._sharded = sharded
        self._fleet = fleet
        self._sources = fleet.select(asked.wanted.sources)
        self._epoch = epoch
        self._asked = asked
        self._call = call
        self._grant = call.grant
        self._shown = scoped(asked.wanted, call.scope)
        """The requested filter, limited to the caller's scope."""
        self._signer = signer
        self._send = send
        self._metrics = metrics
        self._stalled_s = stalled_s
        self._stopping = stopping
        self._rotation = rotation
        self._subscription = subscription
        self._clock = asyncio.get_running_loop().time
        self._sent_at = 0.0
        self._known = NOTHING
        self._doubt_at = 0.0
        self._doubt_s = DOUBT_S
        self._judged: frozenset[tuple[str, int]] = frozenset()
        """The sources that were compared with what the subscriber knows, and the number of their lists."""
        self._doubted: frozenset[str] = frozenset()
        self._parts = 0
        """The number of parts of the current snapshot that were sent."""
        self._last_revision = ""
        """The revision of the last batch, or the one from which the subscriber resumed."""
        self._source: tuple[tuple[ViewState, str], ...] = ()
        """The states of the sources as last sent to the subscriber."""
        self._resumes = parse(asked.resume_revision, [each.name for each in self._sources])
        """The subscriber's position, in this run or in an earlier one."""
        self._pending = frozenset(each.name for each in self._sources)
        """The sources whose clusters are not shown to the subscriber yet."""
        self._send_deadline: Deadline
        self.cursor: Cursor | None = None
        self.opened_at = time.time()

    @property
    def wanted(self) -> Filter:
        return self._asked.wanted

    @property
    def caller(self) -> Caller:
        return self._call.caller

    def covers(self, cluster: Cluster) -> bool:
        """Return whether the filter and the rights of the subscriber cover the cluster."""
        return self._shown.matches(cluster)

    @property
    def lag(self) -> int:
        """The number of revisions that the subscriber has not been sent yet."""
        return 0 if self.cursor is None else self.cursor.lag

    async def run(self) -> None:
        """Run until the client disconnects or stalls, its rights end, or the daemon shuts down. Always raises."""
        try:
            async with Deadline() as self._send_deadline:
                with self._fleet.notifier.waiter() as waiter, self._subscribed(waiter), self._awaited():
                    await self._follow(waiter)
        except TimeoutError:
            raise StalledError(
                "STALLED", f"the client read nothing for {self._stalled_s:g} s; resume when it can read again"
            ) from None

    async def _follow(self, waiter: Waiter) -> None:
        self._pending = self._pending_sources()
        while self._must_wait():
            await self._send_batch(Batch(NO_CHANGES, 0, synced=False))
            await self._wait(waiter)
            self._pending = self._pending_sources()
        self._follow_rights()
        resume = await self._resume_from()
        self.cursor = cursor = self._new_cursor(resume)
        if resume is not None and cursor.resumed:
            assert self._resumes is not None
            self._known = self._resumes.known
            self._last_revision = self._asked.resume_revision
            changes = cursor.take() or Batch(NO_CHANGES, cursor.revision)
            if draining := [*self._still_draining(resume)]:
                changes = msgspec.structs.replace(changes, slice=slice_of((*draining, *changes.slice.frames)))
            await self._send_changes(changes)
            if self._rotation:
                self._rotation.catch_up()
        while True:
            self._follow_rights()
            if self._pending and (pending := self._pending_sources()) != self._pending:
                self._pending = pending
                self.cursor = cursor = self._new_cursor(None)
            batch = cursor.take()
            if batch is not None and batch.is_sendable:
                await self._send_changes(batch)
            elif batch is not None:
                await asyncio.sleep(0)
            elif self._rotation and (renewed := self._rotation.take_due()):
                await self._send_batch(Batch(NO_CHANGES, cursor.revision), renewed)
            elif self._source_changed() or self._clock() >= self._sent_at + self._asked.heartbeat_s:
                await self._send_batch(Batch(NO_CHANGES, cursor.revision))
            else:
                await self._wait(waiter)

    def _new_cursor(self, resume: int | None) -> Cursor:
        view = without_sources(self._shown, self._pending)
        if self._rotation is not None and len(self._sources) > 1:
            self._rotation.change_view(view)
        return Cursor(self._fleet.log, view, resume, overhead=KUBECONFIG_BYTES if self._rotation else 0)

    def _follow_rights(self) -> None:
        """Apply a change of rights before the next batch, so that no batch is sent under rights that have ended."""
        before, self._grant = self._grant, self._call.grant
        if self._grant is before:
            return
        shown = scoped(self._asked.wanted, self._call.scope)
        if shown.fingerprint != self._shown.fingerprint:
            self._shown = shown
            if self.cursor is not None:
                self.cursor.change_view(without_sources(shown, self._pending))
            if self._subscription is not None:
                self._fleet.change_view(self._subscription, shown)
        if self._rotation is not None:
            self._rotation.change_view(without_sources(shown, self._pending))

    def _must_wait(self) -> bool:
        """Return whether to wait for the lists of all sources, or of one if the subscriber accepts pending sources."""
        waits_for_all = len(self._pending) == len(self._sources) or not self._asked.accepts_pending_sources
        return bool(self._pending) and waits_for_all

    def _pending_sources(self) -> frozenset[str]:
        """Return the sources, of those not shown so far, whose clusters must not be shown yet.

        The state file, or the first list of this run, may lack clusters that the subscriber knows from another run;
        they would appear as deleted.
        """
        hidden = [each for each in self._sources if each.name in self._pending]
        complete = [each for each in hidden if each.synced and not (each.is_restored and self._may_know_more(each))]
        return self._pending - {each.name for each in complete} | self._doubtful(complete)

    def _may_know_more(self, restored: ClusterSource) -> bool:
        """Return whether the subscriber may know changes that the state file lacks: the daemon may have been killed."""
        if not self._asked.resume_revision:
            return False
        known = self._resumes
        if known is None:
            return True
        return not (known.is_complete_in(self._epoch) or known.is_contained_in(restored.restored_positions))

    def _doubtful(self, complete: Sequence[ClusterSource]) -> frozenset[str]:
        """Return the sources that wait for a second list: the first one lacks much of what the subscriber knows.

        In a shard group, these can also be clusters that are about to move. No other member engages them meanwhile.
        """
        resumes = self._resumes
        if not complete or resumes is None or resumes.is_complete_in(self._epoch) or not resumes.known.counts:
            return frozenset()
        judged, now = frozenset((each.name, each.lists) for each in complete), self._clock()
        if judged != self._judged:
            self._judged, self._doubt_at, self._doubt_s = judged, now, DOUBT_S
        if now >= self._doubt_at:
            self._doubt_at, self._doubt_s = now + self._doubt_s, 2 * self._doubt_s
            self._doubted = frozenset(each.name for each in complete if self._must_wait_for(each, now))
        return self._doubted

    def _must_wait_for(self, source: ClusterSource, now: float) -> bool:
        def count() -> int:
            return self._fleet.count_by_source(self._shown, now)[source.name]

        return self._resumes is not None and source.must_wait(self._resumes.known.of(source.name), count, now)

    @property
    def _kept(self) -> KnownClusters:
        """What the subscriber keeps of the sources that are not shown to it yet."""
        return NOTHING if self._resumes is None else self._resumes.known.within(self._pending)

    def _subscribed(self, waiter: Waiter) -> AbstractContextManager[None]:
        return self._rotation.subscribed(waiter.wake) if self._rotation else nullcontext()

    @contextmanager
    def _awaited(self) -> Iterator[None]:
        """Make drains wait for the subscriber's releases, even after this stream, until it ends its subscription."""
        if self._subscription is None:
            yield
            return
        self._fleet.subscribe(self._subscription)
        try:
            yield
        finally:
            self._fleet.unsubscribe(self._subscription)

    def _still_draining(self, resumed: int) -> Iterator[Frame]:
        """Return the draining clusters that wait for this subscriber, to send them again: it may have restarted."""
        if self._subscription is None:
            return iter(())
        releases, key = self._fleet.releases, self._subscription.key
        found = (self._fleet[name] for name in releases if releases.awaits(name, key))
        waiting = (record.entry for record in found if record is not None)
        return self._fleet.log.draining_frames(waiting, resumed, self._shown)

    async def _wait(self, waiter: Waiter) -> None:
        """Wait for a change, or until a heartbeat or a kubeconfig is due.

        Raises the error that ends the stream. It is raised only here, so that a caller whose rights ended receives the
        resulting disengagements first.
        """
        if self._asked.with_kubeconfigs:
            self._call.require_kubeconfigs()
        self._call.require_rule()
        if self._stopping.is_set():
            raise UnavailableError(
                "SHUTTING_DOWN",
                "the daemon is shutting down; keep all clusters engaged and resume",
                retry_after_s=RETRY_S,
            )
        heartbeat_in_s = self._sent_at + self._asked.heartbeat_s - self._clock()
        doubt_in_s = self._doubt_at - self._clock() if self._doubted else math.inf
        rotation_in_s = self._rotation.due_in_s if self._rotation else math.inf
        await waiter.wait(max(0.0, min(heartbeat_in_s, doubt_in_s, rotation_in_s)))

    async def _send_changes(self, batch: Batch) -> None:
        self._known = (self._kept if batch.reset else self._known).grown(batch.slice.growth)
        is_live = bool(self._source) and not batch.reset and batch.synced
        events = self._rotation.attach_kubeconfigs(batch.slice) if self._rotation else batch.slice.data
        await self._send_batch(batch, events)
        if events:
            read_at = self._fleet.notifier.read_at(batch.revision) if is_live else None
            self._metrics.batch_sent(None if read_at is None else self._sent_at - read_at)

    async def _send_batch(self, batch: Batch, events: bytes = b"") -> None:
        now = self._clock()
        before, revision = self._last_revision, self._revision(batch)
        sources = [] if events and not self._source_changed() else self._source_news(now)
        data = frames.batch(
            events,
            revision=revision,
            previous_revision=before,
            synced=batch.synced,
            reset=batch.reset,
            source=sources[0] if sources else None,
            sources=sources[1:],
            pending_sources=sorted(self._pending) if batch.synced else (),
            sharded=self._sharded and bool(sources),
        )
        self._send_deadline.set(now + self._stalled_s)
        if self.cursor is None or len(data) < LARGE_BATCH * self._fleet.log.batch_bytes:
            await self._send(data)
        else:
            await self._send_looking_ahead(data, self.cursor)
        self._send_deadline.lift()
        self._last_revision = revision
        self._sent_at = self._clock()
        if batch.reset:
            self._metrics.reset_sent()

    async def _send_looking_ahead(self, data: bytes, cursor: Cursor) -> None:
        # The send begins in this step of the event loop, and the look-ahead runs in the next one.
        looking = asyncio.get_running_loop().call_soon(cursor.prefetch)
        try:
            await self._send(data)
        finally:
            looking.cancel()

    def _revision(self, batch: Batch) -> str:
        if self.cursor is None:
            return ""  # the subscriber cannot resume yet
        # Parts are numbered, so that the client detects a missing part.
        self._parts = 0 if batch.is_whole and not self._pending else self._parts + 1
        position = Position(self._epoch, batch.revision, known=self._known, part=self._parts or None)
        return self._signer.sign(str(position), self._call.holder(self._shown))

    async def _resume_from(self) -> int | None:
        position = parse(self._asked.resume_revision)
        if position is None or position.epoch != self._epoch:
            return None  # a revision of another run, or a forged one
        if self._signer.verify(self._asked.resume_revision, self._call.holder(self._shown)) is None:
            self._call.refused("REVISION_OF_ANOTHER", call="WatchClusters")
            await self._call.penalize_miss()  # a snapshot is expensive
            return None
        return None if position.part is not None else position.revision

    def _source_changed(self) -> bool:
        return self._source != self._source_states()

    def _source_states(self) -> tuple[tuple[ViewState, str], ...]:
        return tuple([(each.status.state, each.status.reason) for each in self._sources])

    def _source_news(self, now: float) -> list[pb.SourceStatus]:
        """Return the status that summarizes all sources, followed by the status of each if there are several."""
        self._source = self._source_states()
        return source_statuses(self._sources, self._call.scope, Moment(time.time(), now))
