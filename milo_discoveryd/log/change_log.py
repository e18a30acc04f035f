"""The change log: the last change of each cluster in revision order, compacted by cluster.

A reader that starts at the revision of a snapshot receives the live stream. A reader that fell behind, or that resumes
from an old revision, receives the same changes merged per cluster. Past states of a cluster (before it was disengaged,
or its labels, organization or drain changed) are kept for a while, so that such a reader receives the disengagements.
Once a past state is dropped, readers can no longer resume from revisions before its end: see `reads_from`.

`read` and `read_snapshot` define what is sent to a reader. `since` and `snapshot_part` return the same results, shared
between readers.
"""

import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import TypeVar

import msgspec

from milo_discoveryd.log.events import Changes, Encode, Event, EventType, Frame, ReadAhead, Slice
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster, DisengageReason, without_draining
from milo_discoveryd.objects.store import weigh

BATCH_BYTES = 256 * 1024
"""The approximate size of a batch, far below the 4 MiB that gRPC clients accept by default."""
SMALL_BATCH_BYTES = 64 * 1024
MANY_READERS = 32
"""With more readers than that, batches are small, because gRPC keeps a batch until it is read. There are only two
sizes: readers share the batches of one size."""
STALE_SLOTS = 512
"""How many slots may become stale before a part of the log is compacted."""
_COMPACTED_PER_STALE_SLOT = 4
"""How many slots a compaction examines for each stale one. This keeps the log below about twice the minimum size."""
_SLICES_KEPT = 256
"""Maximum number of slices kept for other readers at the same revision with the same view. All are dropped at the next
change."""
LARGE_BYTES = 128 * 1024
"""With many readers, a batch is only larger if it has a large object. Users who write objects determine that."""
_LARGE_KEPT = 16
"""Maximum number of slices with so many bytes among those that are kept: each view can have one of its own."""
_SNAPSHOT_PARTS_KEPT = 32
"""Maximum number of parts kept of all snapshots, for readers that started together and read at different speeds."""
MAX_SNAPSHOT_ENTRIES = 1_000_000
"""Maximum number of entries of all snapshots that are being read, beyond which readers begin with an older one: each
reader may keep its snapshot for as long as it likes."""
AHEAD_KEPT = 256
"""How many states beyond the end of its last slice a reader keeps: thousands of readers can keep theirs for as long as
they like. With more of them, it receives these states again."""
MAX_FRAME_BYTES = 24 << 20
"""Maximum bytes of frames that are cached, those of some 100,000 clusters without labels: users who write objects
determine how large they are. Others are encoded for each reader."""
_FRAMES_EVICTED_PER_STEP = 4096
FRAME_EVICTION_INTERVAL_S = 60.0
"""Frames are evicted one to two intervals after the last read of a snapshot."""


class Retention(msgspec.Struct, frozen=True):
    """The maximum number, age and weight of past states."""

    count: int = 10_000
    age_s: float = 3600.0
    weight: int = 32 << 20
    """In bytes: the users who write an object choose how large it is, and how often it changes."""


class LogWeights(msgspec.Struct):
    """What former descriptions of clusters weigh, in bytes."""

    past: int = 0
    """Those of past states."""
    replaced: int = 0
    """All that changes have replaced while `counts_replaced`."""
    counts_replaced: bool = False


Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(dict[Key, Value]):
    """A first-in, first-out cache. Readers request the same item at about the same time, so no LRU is needed."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._large: deque[Key] = deque()

    def put(self, key: Key, value: Value, size: int = 0) -> Value:
        """Keep the value, whose data have this size."""
        if len(self) >= self._limit:
            del self[next(iter(self))]
        if size >= LARGE_BYTES:
            if len(self._large) == _LARGE_KEPT:
                self.pop(self._large.popleft(), None)
            self._large.append(key)
        self[key] = value
        return value

    def clear(self) -> None:
        super().clear()
        self._large.clear()


class PastState(msgspec.Struct, frozen=True, gc=False):
    """The state of a cluster, as filters see it, from revision `since` up to, but excluding, revision `until`."""

    cluster: Cluster
    since: int
    until: int
    reason: DisengageReason | None
    """Why the cluster was disengaged at `until`; None if only its labels, its organization or its drain changed."""
    message: str


def _first_ended_at(history: Sequence[PastState], revision: int) -> int:
    """Return the index of the first past state that ended at the revision or later. A tenant can change an object
    thousands of times in an hour."""
    low, high = 0, len(history)
    while low < high:
        middle = (low + high) // 2
        if history[middle].until < revision:
            low = middle + 1
        else:
            high = middle
    return low


def _incarnation(past: PastState) -> int:
    return past.cluster.incarnation


class LogEntry(msgspec.Struct, gc=False):
    """The entry of one cluster in the change log. Only the log writes to it."""

    cluster: Cluster | None = None
    """The engaged cluster; None if it is not engaged."""
    revision: int = 0
    """The revision of the last change."""
    same_view_since: int = 0
    """The last revision whose change could affect the result of a filter for the cluster."""
    history: tuple[PastState, ...] = ()
    frame: Frame | None = None
    """The frame of the current cluster, of the type that was last requested. Nearly all live readers need UPDATED and
    all snapshots need ENGAGED, so caching one type is enough."""

    @property
    def readable(self) -> bool:
        """Whether the cluster is engaged or has past states."""
        return self.cluster is not None or bool(self.history)

    def known_at(self, revision: int) -> Cluster | None:
        """Return the cluster as a reader at `revision` knows it, as far as filters and incarnations are concerned."""
        if self.cluster is not None and self.same_view_since <= revision:
            return self.cluster
        if not (history := self.history):
            return None
        past = history[-1]  # the most likely match
        if past.since > revision:
            past = history[_first_ended_at(history, revision + 1)]
        return past.cluster if past.since <= revision < past.until else None

    def needs_slot(self, revision: int) -> bool:
        """Return whether a reader whose batch ends soon after `revision` needs the entry's slot at that revision.

        A change that a filter can see must be sent even if the entry changed again beyond the end of that batch.
        """
        if revision in (self.revision, self.same_view_since):
            return self.readable
        near = self.history
        if len(near) > 2:
            at = _first_ended_at(near, revision)
            near = near[at : at + 2]
        for past in near:  # noqa: SIM110 - this runs for thousands of slots in a row
            if revision in (past.since, past.until):
                return True
        return False

    def end_of(self, cluster: Cluster, revision: int) -> PastState | None:
        """Return how the cluster's incarnation had ended by `revision`, or None if it was still engaged."""
        start = bisect_left(self.history, cluster.incarnation, key=_incarnation)
        for at in range(start, len(self.history)):
            past = self.history[at]
            if past.cluster.incarnation != cluster.incarnation or past.until > revision:
                break
            if past.reason:
                return past
        return None


class SnapshotPart(msgspec.Struct, frozen=True):
    slice: Slice
    end: int
    """The position at which the next part starts."""
    ahead: ReadAhead


class Snapshot(msgspec.Struct, frozen=True, weakref=True, eq=False):
    """All entries that were engaged or had past states at one revision: `LogEntry.known_at` returns the clusters.

    It is valid as long as the log can be read from its revision.
    """

    entries: Sequence[LogEntry]
    revision: int
    number: int


class LogSnapshots:
    """The snapshots that are being read, the latest of which new readers share, and parts of them."""

    def __init__(self) -> None:
        self._latest: weakref.ref[Snapshot] | None = None
        self._all = weakref.WeakSet[Snapshot]()
        self._number = 0
        self.parts: Recent[tuple[int, int, str, int, int], SnapshotPart] = Recent(_SNAPSHOT_PARTS_KEPT)
        self.was_read = False

    @property
    def latest(self) -> Snapshot | None:
        return None if self._latest is None else self._latest()

    @property
    def are_full(self) -> bool:
        return sum(len(snapshot.entries) for snapshot in self._all) >= MAX_SNAPSHOT_ENTRIES

    def add(self, entries: Sequence[LogEntry], revision: int) -> Snapshot:
        self._number += 1
        added = Snapshot(entries, revision, self._number)
        self._latest = weakref.ref(added)
        self._all.add(added)
        return added

    def stop_sharing(self) -> None:
        self._latest = None


class LogSlots:
    """The last change of each cluster, as parallel sequences in revision order. Only `append` and `end` change them.

    When an entry changes again, its former slot becomes stale. Stale slots are removed in batches.
    """

    def __init__(self, stale_allowed: int) -> None:
        self.revisions: list[int] = []
        self.entries: list[LogEntry] = []
        self._readable = bytearray()
        """1 if the slot is the last one of its entry, and the entry is engaged or has past states. The entries are
        scattered over memory: to look at all of them takes ten times as long."""
        self._stale_allowed = stale_allowed
        self._stale = 0
        self._compacted_to = 0

    def append(self, entry: LogEntry, former: int, stale: int) -> None:
        """Append the slot of an entry whose last slot has the revision `former` (0 if it had none). `stale` is the
        number of slots that the change makes stale, now or once past states are dropped."""
        if former:
            self.end(former)
        self.revisions.append(entry.revision)
        self.entries.append(entry)
        self._readable.append(entry.readable)
        self._stale += stale
        if self._stale >= self._stale_allowed:
            self._compact()

    def end(self, revision: int) -> None:
        """Record that the slot of this revision, if it still exists, is not to be read."""
        slot = bisect_left(self.revisions, revision)
        if slot < len(self.revisions) and self.revisions[slot] == revision:
            self._readable[slot] = False

    def readable(self) -> list[LogEntry]:
        """Return the entries that are engaged or have past states."""
        return [*compress(self.entries, self._readable)]

    def clusters(self) -> list[Cluster]:
        """Return the engaged clusters, in the order of their last changes."""
        return [entry.cluster for entry in compress(self.entries, self._readable) if entry.cluster is not None]

    def _compact(self) -> None:
        """Remove the stale slots of a part of the log. The next call continues where this one ended."""
        start = self._compacted_to
        part = slice(start, start + _COMPACTED_PER_STALE_SLOT * self._stale_allowed)
        entries, revisions = self.entries[part], self.revisions[part]
        is_needed = [entry.needs_slot(revision) for entry, revision in zip(entries, revisions, strict=True)]
        self.entries[part] = compress(entries, is_needed)
        self.revisions[part] = compress(revisions, is_needed)
        self._readable[part] = bytes(compress(self._readable[part], is_needed))
        self._compacted_to += sum(is_needed)
        if self._compacted_to == len(self.entries):
            self._compacted_to = 0
        self._stale = 0


class ChangeLog:
    def __init__(
        self,
        encode: Encode,
        retention: Retention,
        batch_bytes: int = BATCH_BYTES,
        stale_slots: int = STALE_SLOTS,
    ) -> None:
        self._encode = encode
        self._retention = retention
        self._most_batch_bytes = batch_bytes
        self.batch_bytes = batch_bytes
        self._slots = LogSlots(stale_slots)
        self._past_states: deque[tuple[int, float, int, LogEntry]] = deque()
        self.weights = LogWeights()
        self._oldest_readable = 0
        self._snapshots = LogSnapshots()
        self._slices: Recent[tuple[int, str, ReadAhead, int], Changes] = Recent(_SLICES_KEPT)
        self._frame_bytes = 0
        """The bytes of the frames that are cached."""
        self.head = 0
        self.next_revision = 1
        """The revision of the next change, which is the incarnation of the cluster that it engages."""

    # --- writing ---

    def append(self, entry: LogEntry, event: Event, now: float, then: Event | None = None) -> None:
        """Append a change of the entry's cluster.

        `then` engages the next incarnation at the same revision, so that no reader sees a state between the two.
        """
        before, cluster = entry.cluster, None if event.type is EventType.DISENGAGED else event.cluster
        if then is not None:
            cluster = then.cluster
        # `head` is the same int object as the former `next_revision`: a revision and an incarnation share its memory.
        self.head, self.next_revision = self.next_revision, self.next_revision + 1
        if before is None or event.reason is not None or (cluster is not None and _changes_view(before, cluster)):
            if before is not None:
                past = PastState(before, entry.same_view_since, self.head, event.reason, event.message)
                entry.history = (*entry.history, past)
                self.weights.past += (weight := weigh((before, event.message)))
                self._past_states.append((self.head, now, weight, entry))
            entry.same_view_since = self.head
        # The entry's old slot is stale now. If the cluster is disengaged, the new slot becomes stale once all past
        # states of the cluster are dropped.
        former, stale = entry.revision, (entry.revision > 0) + (cluster is None)
        if entry.frame is not None:
            self._frame_bytes -= len(entry.frame.data)
        entry.cluster, entry.revision, entry.frame = cluster, self.head, None
        self._slices.clear()
        if (
            self.weights.counts_replaced
            and before is not None
            and (cluster is None or cluster.target is not before.target)
        ):
            self.weights.replaced += weigh(before.target)
        while len(self._past_states) > self._retention.count or self.weights.past > self._retention.weight:
            self._forget_oldest()
        self._slots.append(entry, former, stale)

    def forget(self, now: float) -> None:
        """Drop past states that are older than the retention."""
        while self._past_states and self._past_states[0][1] < now - self._retention.age_s:
            self._forget_oldest()

    def evict_frames(self) -> Iterator[None]:
        """Evict all frames unless a snapshot was read since the last call. Yields after each step.

        Frames are about a third of all memory; they are encoded again for the next reader that starts with a snapshot.
        """
        if self._snapshots.was_read:
            self._snapshots.was_read = False
            return
        self._snapshots.parts.clear()
        if self._frame_bytes:
            entries = self._slots.entries.copy()
            while entries:
                for entry in entries[-_FRAMES_EVICTED_PER_STEP:]:
                    if entry.frame is not None:
                        self._frame_bytes -= len(entry.frame.data)
                        entry.frame = None
                del entries[-_FRAMES_EVICTED_PER_STEP:]
                yield

    # --- reading ---

    def shared_by(self, readers: int) -> None:
        """Adapt the size of batches to the number of readers."""
        fair = SMALL_BATCH_BYTES if readers > MANY_READERS else BATCH_BYTES
        self.batch_bytes = min(self._most_batch_bytes, fair)

    def reads_from(self, revision: int) -> bool:
        return self._oldest_readable <= revision <= self.head

    def clusters(self) -> list[Cluster]:
        return self._slots.clusters()

    def snapshot(self, since: int | None = None) -> Snapshot:
        """Return a snapshot. Readers that start at about the same time share one while any of them still reads it.

        An older snapshot is sufficient, because the changes since then follow it: a slightly older one, or any if many
        are being read. It is not older than the revision `since`, so that it has all entries that a reader at this
        revision may know.
        """
        latest = self._snapshots.latest
        if latest is None or latest.revision < max(self._oldest_readable, since or 0):
            return self._snapshots.add(self._slots.readable(), self.head)
        is_close = since is not None or latest.revision >= self.head - len(latest.entries) // 50
        if is_close or self._snapshots.are_full:
            return latest
        return self._snapshots.add(self._slots.readable(), self.head)

    def stop_sharing(self) -> None:
        """Share no snapshot from before this call with later readers."""
        self._snapshots.stop_sharing()

    def snapshot_part(self, snapshot: Snapshot, start: int, view: ClusterView, overhead: int) -> SnapshotPart:
        """Return the result of `read_snapshot`, which is computed once for all readers with the same view."""
        self._snapshots.was_read, parts = True, self._snapshots.parts
        key = (snapshot.number, start, view.fingerprint, overhead, self.batch_bytes)
        if (kept := parts.get(key)) is not None:
            return kept
        part = self.read_snapshot(snapshot, start, view, overhead)
        return parts.put(key, part, len(part.slice.data))

    def since(self, revision: int, view: ClusterView, ahead: ReadAhead = frozenset()) -> Changes:
        """Return the result of `read`, which is computed once for all readers at that revision with the same view."""
        key = (revision, view.fingerprint, ahead, self.batch_bytes)
        if (kept := self._slices.get(key)) is not None:
            return kept
        changes = self.read(revision, view, ahead)
        return self._slices.put(key, changes, len(changes.slice.data))

    def read_snapshot(self, snapshot: Snapshot, start: int, view: ClusterView, overhead: int) -> SnapshotPart:
        """Return the next part of a snapshot, from position `start` on. Each frame counts as `overhead` bytes more than
        its size."""
        frames: list[Frame] = []
        ahead: set[tuple[str, int]] = set()
        size, position = 0, start
        matches, revision = view.matches, snapshot.revision
        for entry in snapshot.entries[start : start + view.records_per_step]:
            if size >= self.batch_bytes:
                break
            position += 1
            cluster = entry.cluster
            if cluster is None or entry.same_view_since > revision:
                cluster = entry.known_at(revision)
            if cluster is not None and matches(cluster):
                frames.append(frame := self.frame(entry, cluster))
                size += len(frame.data) + overhead
                if entry.revision > revision and cluster is entry.cluster:
                    ahead.add((cluster.target.name, entry.revision))
        return SnapshotPart(slice_of(frames), position, frozenset(ahead))

    def read(self, revision: int, view: ClusterView, ahead: ReadAhead = frozenset()) -> Changes:
        """Return the changes after `revision`, merged per cluster, limited to one batch and to one step of the view.

        A reader that continues passes the `revision` and `ahead` of the last Changes, and does not receive the states
        in `ahead` again.
        """
        frames: list[Frame] = []
        overtaken: dict[int, LogEntry] = {}  # by `id`: entries of stale slots, which changed again later
        matches, updated = view.matches, EventType.UPDATED
        entries, revisions = self._slots.entries, self._slots.revisions
        first = bisect_right(revisions, revision)
        last = min(len(entries), first + view.records_per_step)
        reached = self.head if last == len(entries) else revisions[last - 1]
        size = 0
        for slot in range(first, last):
            entry = entries[slot]
            cluster = entry.cluster
            if ahead and cluster is not None and (cluster.target.name, entry.revision) in ahead:
                continue
            if entry.revision != revisions[slot]:
                if id(entry) in overtaken:
                    continue
                overtaken[id(entry)] = entry
                size += sum(len(frame.data) for frame in self._changes(entry, revision, self.head, view))
            elif (
                cluster is not None
                and matches(cluster)
                and (known_cluster := entry.known_at(revision)) is not None
                and known_cluster.incarnation == cluster.incarnation
                and (known_cluster is cluster or matches(known_cluster))
            ):
                # The common case: the reader knows this incarnation, and its view still contains the cluster.
                frame = entry.frame
                if frame is None or frame.type is not updated:
                    frame = self.frame(entry, cluster, updated)
                frames.append(frame)
                size += len(frame.data)
            else:
                changes = [*self._changes(entry, revision, self.head, view)]
                frames += changes
                size += sum(len(frame.data) for frame in changes)
            if size >= self.batch_bytes:
                reached = revisions[slot]
                break
        # The slice contains each entry whose last change is at or before `reached`. An entry that changed later is not
        # in it yet, but a reader that continues after `reached` is assumed to know the entry's state at `reached`:
        # add the changes up to there.
        sent_ahead: set[tuple[str, int]] = set()
        for entry in sorted(overtaken.values(), key=lambda entry: entry.revision):
            if entry.revision > reached:
                changes = [*self._changes(entry, revision, reached, view)]
                frames += changes
                if changes and entry.cluster is not None and entry.same_view_since <= reached:
                    sent_ahead.add((entry.cluster.target.name, entry.revision))
        return Changes(slice_of(frames), reached, ahead | sent_ahead if reached < self.head else frozenset())

    def _changes(self, entry: LogEntry, after: int, upto: int, view: ClusterView) -> Iterator[Frame]:
        """Return the frames that take a reader from the entry's state at one revision to its state at another."""
        state = entry.known_at(upto)
        before, now = (
            cluster if cluster is not None and view.matches(cluster) else None
            for cluster in (entry.known_at(after), state)
        )
        if before is not None and (now is None or now.incarnation != before.incarnation):
            yield self._encoded(_end_event(entry.end_of(before, upto), before, state, view))
            before = None
        if now is None:
            return
        if before is None:
            yield self.frame(entry, now)
        elif entry.revision <= upto:
            yield self.frame(entry, now, EventType.UPDATED)

    def frame(self, entry: LogEntry, cluster: Cluster, kind: EventType = EventType.ENGAGED) -> Frame:
        """Return the frame of a cluster that the entry has or had. The frame of the current cluster is cached."""
        if entry.cluster is not cluster:
            return self._encoded(Event(kind, cluster))
        frame = entry.frame
        if frame is None or frame.type is not kind:
            kept = self._frame_bytes - (0 if frame is None else len(frame.data))
            frame = self._encoded(Event(kind, cluster))
            has_room = kept + len(frame.data) <= MAX_FRAME_BYTES
            entry.frame = frame if has_room else None
            self._frame_bytes = kept + len(frame.data) * has_room
        return frame

    def draining_frames(self, entries: Iterable[LogEntry], revision: int, view: ClusterView) -> Iterator[Frame]:
        """Return the frames of the draining clusters that a reader at `revision` already knows as draining."""
        for entry in entries:
            cluster, known_cluster = entry.cluster, entry.known_at(revision)
            if (
                cluster is not None
                and known_cluster is not None
                and known_cluster.draining is not None
                and known_cluster.incarnation == cluster.incarnation
                and view.matches(known_cluster)
                and view.matches(cluster)
            ):
                yield self.frame(entry, cluster, EventType.UPDATED)

    def revoked_frame(self, cluster: Cluster) -> Frame:
        """Return the frame that disengages a cluster for a subscriber that may no longer see it."""
        message = "the subscriber's authorization rule no longer covers this cluster"
        return self._encoded(Event(EventType.DISENGAGED, cluster, DisengageReason.REVOKED, message))

    def _encoded(self, event: Event) -> Frame:
        return Frame(event.type, event.cluster, event.cluster.target.source, self._encode(event))

    # --- storage ---

    def _forget_oldest(self) -> None:
        until, _, weight, entry = self._past_states.popleft()
        self.weights.past -= weight
        # Past states are dropped in the order in which they were added, so this is the first one in the entry's
        # history.
        entry.history = entry.history[1:]
        if not entry.readable:
            self._slots.end(entry.revision)
        self._oldest_readable = max(self._oldest_readable, until)


def _changes_view(before: Cluster, now: Cluster) -> bool:
    """Return whether any field differs that can affect the result of a filter."""
    was, is_ = before.target, now.target
    return was.labels != is_.labels or was.organization != is_.organization or before.draining != now.draining


def _end_event(past: PastState | None, before: Cluster, now: Cluster | None, view: ClusterView) -> Event:
    """Return the event that disengages `before` for a reader: because the engagement ended (`past`), because the
    cluster drains, or because it left the view.

    `now` is the cluster that has the name now. The event contains nothing that the reader may not see.
    """
    if past is not None and view.shows(past.cluster):
        ended = past.cluster if view.confirms_releases else without_draining(past.cluster)
        if past.reason is DisengageReason.REPLACED and not view.shows(now):
            return Event(EventType.DISENGAGED, ended, DisengageReason.DELETED, "the object was deleted")
        return Event(EventType.DISENGAGED, ended, past.reason, past.message)
    if past is None and now is not None and now.draining is not None and _ends_by_draining(before, now, view):
        return Event(EventType.DISENGAGED, before, now.draining.reason, now.draining.message)
    shown = now if past is None and now is not None and view.shows(now) else before
    return Event(EventType.DISENGAGED, shown, DisengageReason.LABELS_CHANGED, "the cluster left the filter")


def _ends_by_draining(before: Cluster, now: Cluster, view: ClusterView) -> bool:
    return not view.confirms_releases and before.incarnation == now.incarnation and view.shows(now)


def bounded(ahead: ReadAhead) -> ReadAhead:
    """Return what a reader keeps of the states that it has beyond the end of its last slice."""
    return ahead if len(ahead) <= AHEAD_KEPT else frozenset()


def slice_of(frames: Sequence[Frame]) -> Slice:
    """Join frames, and count the net change of the number of clusters in a view, by source."""
    growth: dict[str, int] = {}
    engaged, updated = EventType.ENGAGED, EventType.UPDATED
    for frame in frames:
        kind = frame.type
        if kind is not updated:
            growth[frame.source] = growth.get(frame.source, 0) + (1 if kind is engaged else -1)
    return Slice(tuple(frames), b"".join([frame.data for frame in frames]), growth)
