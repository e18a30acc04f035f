"""The change log, compacted by cluster.

It keeps the last change of each cluster in revision order. Read from a snapshot's revision it is what came since; for
a reader that fell behind it is the same, merged; and a reader that comes back with an old revision is just a reader
that fell behind. What a cluster was before (engaged and gone, or under other labels) is remembered for a while, so that
such a reader can be told what ended. A revision from before the oldest memory can't be served: `reads_from` says so.

Which entry is whose name is the registry's to know: here they stand in the order in which they changed.
"""

import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.registry.events import Encode, Event, EventType, Frames
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView
from milo_discoveryd.registry.log_entry import LogEntry, PastState

BATCH_BYTES = 256 * 1024
"""About how much goes into one batch: far below the 4 MiB that gRPC clients take by default."""
LEFT_PLACES = 1024
"""After how many places that entries left behind some of the log is swept."""
_SWEPT_TO_LEFT = 4
"""So many times as many are looked at then: there are never many more than twice as many as are needed."""
RECORDS_PER_STEP = 1000
"""Whoever is told little of many has them looked for in parts, so that others get their turn."""
_SLICES = 256
"""How many different readers' next steps are kept, for the others who stand at the same place. All are dropped with the
next change: so many only come together where readers of ten filters catch up at once, with ten thousand changes."""
_STRETCH = 800
"""How many changes are found out about at once: about a batch of them, where clusters are of the usual size."""
_STRETCHES = 64
_LET_GO_AT_ONCE = 4096
FRAME_EVICTION_INTERVAL_S = 60.0
"""How often to let go of frames. They are kept for once or twice as long after somebody began with a snapshot."""
_PARTS = 32
"""How many parts of a snapshot are kept: as far as readers who began together drift apart."""


class Retention(msgspec.Struct, frozen=True):
    """How much of the past is remembered."""

    count: int = 10_000
    age_s: float = 3600.0


ReadAhead = frozenset[tuple[str, int]]
"""Clusters that a reader of a part was told of as they stand beyond its end, and the revisions they stand at."""


class LogSlice(msgspec.Struct, frozen=True):
    """Some of the log: what changed after one revision, up to and including another."""

    frames: Frames
    revision: int
    ahead: ReadAhead = frozenset()


class SnapshotPart(msgspec.Struct, frozen=True):
    """Some of a snapshot."""

    frames: Frames
    end: int
    """Where the next begins."""


LogMove = tuple[LogEntry, int, Cluster | None, Cluster | None]
"""An entry that changed, the revision it stands at, its cluster, and what that was to filters before, if that was
something else. Without a cluster it didn't just change: it came, went or was replaced."""


class Snapshot(msgspec.Struct, frozen=True, weakref=True):
    """Everything engaged at one revision."""

    clusters: Sequence[Cluster]
    entries: Sequence[LogEntry]
    """Of each cluster: some have moved on since."""
    revision: int
    parts: dict[tuple[int, str, int], SnapshotPart] = {}
    """Those that were read last, for the others who come by."""


class LogIndex(msgspec.Struct, frozen=True, weakref=True):
    """All that is known of at one revision, engaged or remembered."""

    entries: Sequence[LogEntry]
    revision: int


class ChangeLog:
    def __init__(
        self,
        encode: Encode,
        retention: Retention,
        batch_bytes: int = BATCH_BYTES,
        left_places: int = LEFT_PLACES,
    ) -> None:
        self._encode = encode
        self._retention = retention
        self.batch_bytes = batch_bytes
        self._left_places = left_places
        # Parallel, in revision order. An entry that moved on leaves its old place behind, to be swept up later.
        self._revisions: list[int] = []
        self._order: list[LogEntry] = []
        self._left = 0
        """How many of these there are since some were swept up last."""
        self._swept = 0
        """Up to which place."""
        self._memory: deque[tuple[int, float, LogEntry]] = deque()
        self._floor = 0
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._slices: dict[tuple[int, str, ReadAhead], LogSlice] = {}
        self._moves: dict[int, list[LogMove] | None] = {}
        """What comes after a revision, found out once for the readers of all filters."""
        self._roll: weakref.ref[LogIndex] | None = None
        self._has_frames = False
        self._was_begun = False
        self.head = 0

    def engage(self, entry: LogEntry, make: Callable[[int], Cluster]) -> Cluster:
        """`make` is given the revision that it happens at."""
        assert entry.cluster is None
        self.head += 1
        return self._begin(entry, make)

    def update(self, entry: LogEntry, cluster: Cluster, now: float) -> None:
        before = entry.cluster
        assert before is not None
        self.head += 1
        if (before.target.labels, before.target.organization) != (cluster.target.labels, cluster.target.organization):
            self._remember(entry, now, None, "")
            entry.same_view_since = self.head
        self._append(entry, cluster)

    def disengage(self, entry: LogEntry, reason: DisengageReason, message: str, now: float) -> None:
        self.head += 1
        self._remember(entry, now, reason, message)
        self._append(entry, None)

    def replace(self, entry: LogEntry, message: str, make: Callable[[int], Cluster], now: float) -> Cluster:
        """One incarnation ends and the next begins, at one revision: no reader sees a state between the two."""
        self.head += 1
        self._remember(entry, now, DisengageReason.REPLACED, message)
        return self._begin(entry, make)

    def clear(self) -> None:
        """Forgets all, and serves no revision given out before."""
        self._revisions.clear()
        self._order.clear()
        self._left = self._swept = 0
        self._memory.clear()
        self._slices.clear()
        self._moves.clear()
        self._snapshot = None
        self._roll = None
        self.head += 1
        self._floor = self.head

    def reads_from(self, revision: int) -> bool:
        return self._floor <= revision <= self.head

    def forget(self, now: float) -> None:
        """Drops what is remembered for longer than it has to be."""
        while self._memory and self._memory[0][1] < now - self._retention.age_s:
            self._forget_oldest()

    def evict_frames(self) -> Iterator[None]:
        """Of all frames, if nobody began since this was last called; in portions, so that others get their turn.

        Whoever begins then has them made again: they are a third of all memory.
        """
        if self._was_begun:
            self._was_begun = False
        elif self._has_frames:
            self._has_frames = False
            order = self._order.copy()
            while order:
                for entry in order[-_LET_GO_AT_ONCE:]:
                    entry.kind, entry.frame = None, b""
                del order[-_LET_GO_AT_ONCE:]
                yield

    def snapshot(self) -> Snapshot:
        """Shared by all who ask at about the same time: an earlier one is as good, followed by what came since.

        It lives as long as somebody reads it.
        """
        kept = self._snapshot() if self._snapshot is not None else None
        if kept is None or kept.revision < self._floor or self.head - kept.revision > len(kept.clusters) // 50:
            entries = self._engaged()
            kept = Snapshot(_clusters(entries), entries, self.head)
            self._snapshot = weakref.ref(kept)
        return kept

    def clusters(self) -> list[Cluster]:
        return _clusters(self._engaged())

    def revoked(self, cluster: Cluster) -> bytes:
        """The frame for who may no longer see it."""
        message = "the subscriber's rights no longer cover it"
        return self._encode(Event(EventType.DISENGAGED, cluster, DisengageReason.REVOKED, message))

    def frame(self, entry: LogEntry, cluster: Cluster, kind: EventType = EventType.ENGAGED) -> bytes:
        """Of a cluster as the entry had it at some revision; kept as long as it has it."""
        if entry.cluster is not cluster:
            return self._encode(Event(kind, cluster))
        if entry.kind is not kind:
            entry.kind, entry.frame = kind, self._encode(Event(kind, cluster))
            self._has_frames = True
        return entry.frame

    def part(self, snapshot: Snapshot, start: int, wanted: ClusterView, overhead: int) -> SnapshotPart:
        """What is wanted from the cluster numbered `start` on. Each frame counts as `overhead` bytes more."""
        self._was_begun = True
        key = (start, wanted.fingerprint, overhead)
        found = snapshot.parts.get(key)
        if found is None:
            if len(snapshot.parts) >= _PARTS:
                _drop_oldest(snapshot.parts)
            snapshot.parts[key] = found = self._part(snapshot, start, wanted, overhead)
        return found

    def _part(self, snapshot: Snapshot, start: int, wanted: ClusterView, overhead: int) -> SnapshotPart:
        frames: list[bytes] = []
        size = 0
        index, end = start, min(len(snapshot.clusters), start + RECORDS_PER_STEP)
        while index < end and size < self.batch_bytes:
            cluster = snapshot.clusters[index]
            if wanted.matches(cluster):
                frames.append(self.frame(snapshot.entries[index], cluster))
                size += len(frames[-1]) + overhead
            index += 1
        return SnapshotPart(Frames(frames), index)

    def since(self, revision: int, wanted: ClusterView, ahead: ReadAhead = frozenset()) -> LogSlice:
        """What changed after `revision`: of each cluster, where it stands now. A part of it, where it is much.

        Who reads on from a part gives what it was told `ahead`, and isn't told again.
        """
        key = (revision, wanted.fingerprint, ahead)
        found = self._slices.get(key)
        if found is None:
            if len(self._slices) >= _SLICES:
                _drop_oldest(self._slices)
            plain = None if ahead else self._plain(revision, wanted)
            self._slices[key] = found = plain or self._slice(revision, wanted, ahead)
        return found

    def roll(self, revision: int) -> LogIndex:
        """For a reader at that revision, with all that it may have been told of. Shared, as snapshots are."""
        kept = self._roll() if self._roll is not None else None
        if kept is None or kept.revision < revision:
            entries = [
                entry
                for entry, at in zip(self._order, self._revisions, strict=True)
                if entry.revision == at and (entry.cluster is not None or entry.was)
            ]
            kept = LogIndex(entries, self.head)
            self._roll = weakref.ref(kept)
        return kept

    def _engaged(self) -> list[LogEntry]:
        """Each where it stands: an entry that moved on is passed over at its old places.

        What has changed often lies all over memory. In a loop as tight as this a processor fetches several of them at
        once, and is through in a third of the time.
        """
        return [
            entry
            for entry, at in zip(self._order, self._revisions, strict=True)
            if entry.cluster is not None and entry.revision == at
        ]

    def _places_after(self, revision: int) -> range:
        return range(bisect_right(self._revisions, revision), len(self._order))

    def _plain(self, revision: int, wanted: ClusterView) -> LogSlice | None:
        """Where what changed is as it mostly is: each entry has moved once. None where there is anything else."""
        frames, reached = Frames(), revision
        while reached < self.head and 2 * sum(map(len, frames)) < self.batch_bytes:
            found = (self._all_updated(reached) if wanted.is_everything else None) or self._some_moved(reached, wanted)
            if found is None:
                break
            reached = found.revision
            # Those who are told the same share the join of it as well.
            frames = Frames((*frames, *found.frames)) if frames else found.frames
        return LogSlice(frames, reached) if reached > revision else None

    def _all_updated(self, revision: int) -> LogSlice | None:
        """What changed next after `revision`, where each of it is what it was, in another state.

        It is most of what there is to tell, and most readers are shown everything: so little is looked at for it.
        """
        frames: list[bytes] = []
        reached, size, limit, updated = revision, 0, self.batch_bytes, EventType.UPDATED
        for entry, at in self._stretch(revision):
            cluster = entry.cluster
            if entry.revision != at or cluster is None or cluster.incarnation > revision:
                return None
            frame = entry.frame if entry.kind is updated else self.frame(entry, cluster, updated)
            frames.append(frame)
            size += len(frame)
            reached = at
            if size >= limit:
                break
        return LogSlice(Frames(frames), reached)

    def _stretch(self, revision: int) -> Iterator[tuple[LogEntry, int]]:
        """Who changed next after `revision`, and when."""
        places = self._places_after(revision)[:_STRETCH]
        part = slice(places.start, places.stop)
        return zip(self._order[part], self._revisions[part], strict=True)

    def _some_moved(self, revision: int, wanted: ClusterView) -> LogSlice | None:
        """The same for who is shown some; None where some of what changed next has moved on since."""
        if revision not in self._moves:
            if len(self._moves) >= _STRETCHES:
                _drop_oldest(self._moves)
            self._moves[revision] = self._find_moves(revision)
        moves = self._moves[revision]
        return None if moves is None else self._told_of(moves, revision, wanted)

    def _find_moves(self, revision: int) -> list[LogMove] | None:
        moves: list[LogMove] = []
        for entry, at in self._stretch(revision):
            if entry.revision != at:
                return None
            cluster = entry.cluster
            if cluster is None or cluster.incarnation > revision:
                moves.append((entry, at, None, None))
            elif entry.same_view_since <= revision:
                moves.append((entry, at, cluster, None))
            else:
                past = entry.was[-1]  # mostly it is what was before this change
                is_last = past.since <= revision < past.until
                moves.append((entry, at, cluster, past.cluster if is_last else entry.known_at(revision)))
        return moves

    def _told_of(self, moves: list[LogMove], revision: int, wanted: ClusterView) -> LogSlice:
        everything, matches, updated = wanted.is_everything, wanted.matches, EventType.UPDATED
        frames: list[bytes] = []
        reached, size, is_all = revision, 0, True
        for entry, reached, cluster, before in moves:
            is_shown = everything or (cluster is not None and matches(cluster))
            if cluster is None or not (everything or before is None or matches(before) is is_shown):
                is_all = False
                for frame in self._told(entry, revision, reached, wanted):
                    frames.append(frame)
                    size += len(frame)
            elif is_shown:
                frames.append(entry.frame if entry.kind is updated else self.frame(entry, cluster, updated))
                size += len(frames[-1])
            else:
                is_all = False
            if size >= self.batch_bytes:
                break
        if is_all and not everything and (all_told := self.since(revision, EVERYTHING)).revision == reached:
            return all_told  # to share it, and the join of it
        return LogSlice(Frames(frames), reached)

    def _slice(self, revision: int, wanted: ClusterView, ahead: ReadAhead) -> LogSlice:
        told: dict[int, tuple[LogEntry, list[bytes]]] = {}
        reached = self.head
        size = 0
        for place in self._places_after(revision):
            entry = self._order[place]
            if id(entry) in told or (ahead and entry.cluster and (entry.cluster.target.name, entry.revision) in ahead):
                continue
            frames = [*self._told(entry, revision, self.head, wanted)]
            told[id(entry)] = (entry, frames)
            size += sum(map(len, frames))
            if size >= self.batch_bytes:
                reached = self._revisions[place]
                break
        if reached < self.head:
            # It stops short of the head, and some of these have moved on beyond it. Who reads on from `reached` is
            # taken to know how each of them stood there, no earlier and no later: so that is what is told.
            for entry in [entry for entry, _ in told.values() if entry.revision > reached]:
                told[id(entry)] = (entry, [*self._told(entry, revision, reached, wanted)])
            ahead |= {
                (entry.cluster.target.name, entry.revision)
                for entry, frames in told.values()
                if frames and entry.cluster and entry.revision > reached and entry.same_view_since <= reached
            }
        in_order = sorted(told.values(), key=lambda pair: pair[0].revision)
        return LogSlice(Frames(frame for _, frames in in_order for frame in frames), reached, ahead)

    def _told(self, entry: LogEntry, after: int, upto: int, wanted: ClusterView) -> Iterator[bytes]:
        """What takes a reader from how the entry stood at one revision to how it stood at another."""
        stood = entry.known_at(upto)
        before, now = (
            cluster if cluster is not None and wanted.matches(cluster) else None
            for cluster in (entry.known_at(after), stood)
        )
        if before is not None and (now is None or now.incarnation != before.incarnation):
            yield self._encode(_ending(entry.ended(before, upto), before, stood, wanted))
            before = None
        if now is None:
            return
        if before is None:
            yield self.frame(entry, now)
        elif entry.revision <= upto:
            yield self.frame(entry, now, EventType.UPDATED)

    def _begin(self, entry: LogEntry, make: Callable[[int], Cluster]) -> Cluster:
        cluster = make(self.head)
        entry.same_view_since = self.head
        self._append(entry, cluster)
        return cluster

    def _append(self, entry: LogEntry, cluster: Cluster | None) -> None:
        # Its old place; and the new one will be needed no longer than what went is remembered.
        self._left += (entry.revision > 0) + (cluster is None)
        entry.cluster, entry.revision = cluster, self.head
        entry.kind, entry.frame = None, b""
        self._revisions.append(self.head)
        self._order.append(entry)
        self._slices.clear()
        self._moves.clear()
        while len(self._memory) > self._retention.count:
            self._forget_oldest()
        if self._left >= self._left_places:
            self._sweep()

    def _sweep(self) -> None:
        """A stretch of it, and the next one the next time."""
        stretch = slice(self._swept, self._swept + _SWEPT_TO_LEFT * self._left_places)
        order, revisions = self._order[stretch], self._revisions[stretch]
        is_needed = [entry.needs_place(revision) for entry, revision in zip(order, revisions, strict=True)]
        self._order[stretch] = compress(order, is_needed)
        self._revisions[stretch] = compress(revisions, is_needed)
        self._swept += sum(is_needed)
        if self._swept == len(self._order):
            self._swept = 0
        self._left = 0

    def _remember(self, entry: LogEntry, now: float, reason: DisengageReason | None, message: str) -> None:
        assert entry.cluster is not None
        entry.was = (*entry.was, PastState(entry.cluster, entry.same_view_since, self.head, reason, message))
        self._memory.append((self.head, now, entry))

    def _forget_oldest(self) -> None:
        until, _, entry = self._memory.popleft()
        # All of them are forgotten in the order in which they came, so this is its first.
        entry.was = entry.was[1:]
        self._floor = max(self._floor, until)


def _clusters(engaged: list[LogEntry]) -> list[Cluster]:
    return [entry.cluster for entry in engaged if entry.cluster is not None]


def _drop_oldest(kept: dict[Any, Any]) -> None:
    """Readers who ask the same stand close together, and those who don't take turns."""
    del kept[next(iter(kept))]


def _ending(past: PastState | None, before: Cluster, now: Cluster | None, wanted: ClusterView) -> Event:
    """How what the reader knows as `before` has ended for it: as `past` says, or by leaving what it is shown.

    `now` is what has the name since. Of what the reader may not see, nothing gets into the event.
    """
    if past is not None and wanted.shows(past.cluster):
        if past.reason is DisengageReason.REPLACED and not wanted.shows(now):
            return Event(EventType.DISENGAGED, past.cluster, DisengageReason.DELETED, "the object is gone")
        return Event(EventType.DISENGAGED, past.cluster, past.reason, past.message)
    left = now if past is None and now is not None and wanted.shows(now) else before
    return Event(EventType.DISENGAGED, left, DisengageReason.LABELS_CHANGED, "it left the filter")
