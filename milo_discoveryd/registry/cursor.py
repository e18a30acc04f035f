"""Where one subscriber stands: it owns this, and not a queue, so whatever it does costs the daemon next to nothing."""

import msgspec

from milo_discoveryd.registry.events import Frames
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.filter_transition import FilterTransition, turn
from milo_discoveryd.registry.log import ChangeLog, LogSlice, ReadAhead, Snapshot, SnapshotPart


class Batch(msgspec.Struct, frozen=True):
    frames: Frames
    revision: int
    reset: bool = False
    synced: bool = True
    is_whole: bool = True
    """What was told up to here is all there was to tell at the revision. Otherwise nobody can come back to it."""

    @property
    def is_news(self) -> bool:
        """Whether there is anything to tell: not of a part of the way in which nothing was found."""
        return bool(self.frames) or self.reset or self.is_whole


class _InSnapshot(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    index: int = 0


class _Following(msgspec.Struct, frozen=True):
    revision: int
    ahead: ReadAhead = frozenset()
    """While it catches up in several steps."""


class Cursor:
    """Begins with a snapshot, unless the log can be read from the revision it is to resume from."""

    def __init__(self, log: ChangeLog, wanted: ClusterView, resume: int | None, *, overhead: int = 0) -> None:
        """`overhead`: how many bytes each cluster of a snapshot will take beside its frame."""
        self._log = log
        self._overhead = overhead
        self._wanted = wanted
        self._state: _InSnapshot | _Following | FilterTransition
        if resume is not None and log.reads_from(resume):
            self._state = _Following(resume)
        else:
            self._state = _InSnapshot(log.snapshot())

    @property
    def resumed(self) -> bool:
        return isinstance(self._state, _Following)

    @property
    def revision(self) -> int:
        """What was taken so far, once the snapshot is behind it."""
        return self._state.snapshot.revision if isinstance(self._state, _InSnapshot) else self._state.revision

    @property
    def lag(self) -> int:
        """How many revisions are unread."""
        unread = self._log.head - self.revision
        if isinstance(self._state, _InSnapshot):
            unread += len(self._state.snapshot.clusters) - self._state.index
        elif isinstance(self._state, FilterTransition):
            unread += self._state.left
        return unread

    def turn(self, wanted: ClusterView) -> None:
        """From here on it is shown this. What that takes away, and what it adds, comes next."""
        before, self._wanted = self._wanted, wanted
        if isinstance(self._state, _InSnapshot):
            self._state = _InSnapshot(self._log.snapshot())
        elif isinstance(self._state, FilterTransition):
            self._state = self._state.again(wanted)
        else:
            self._state = turn(self._log, self._state.revision, self._state.ahead, before, wanted)

    def take(self) -> Batch | None:
        """The next batch; None where there is nothing new."""
        if not isinstance(self._state, _InSnapshot) and not self._log.reads_from(self._state.revision):
            # It slept for longer than the log remembers.
            self._state = _InSnapshot(self._log.snapshot())
        if isinstance(self._state, _InSnapshot):
            return self._from_snapshot(self._state.snapshot, self._state.index)
        if isinstance(self._state, FilterTransition):
            return self._from_turn(self._state)
        return self._from_log(self._state.revision, self._state.ahead)

    def prefetch(self) -> None:
        """Finds out what is next, so that `take` has it ready if nothing changes until then."""
        found: SnapshotPart | LogSlice
        if isinstance(self._state, _InSnapshot):
            found = self._log.part(self._state.snapshot, self._state.index, self._wanted, self._overhead)
        elif isinstance(self._state, _Following) and self._log.reads_from(self._state.revision):
            found = self._log.since(self._state.revision, self._wanted, self._state.ahead)
        else:
            return
        _ = found.frames.joined  # it is kept

    def _from_snapshot(self, snapshot: Snapshot, start: int) -> Batch:
        part = self._log.part(snapshot, start, self._wanted, self._overhead)
        synced = part.end == len(snapshot.clusters)
        self._state = _Following(snapshot.revision) if synced else _InSnapshot(snapshot, part.end)
        return Batch(part.frames, snapshot.revision, reset=start == 0, synced=synced, is_whole=synced)

    def _from_turn(self, before: FilterTransition) -> Batch | None:
        frames, now = before.step(self._log)
        if not now.is_over:
            self._state = now
            return Batch(frames, now.revision, is_whole=False)
        self._state = _Following(now.revision, now.ahead)
        return Batch(frames, now.revision) if frames else self._from_log(now.revision, now.ahead)

    def _from_log(self, revision: int, ahead: ReadAhead) -> Batch | None:
        while revision < self._log.head:
            found = self._log.since(revision, self._wanted, ahead)
            revision = found.revision
            ahead = found.ahead if revision < self._log.head else frozenset()
            self._state = _Following(revision, ahead)
            if found.frames:
                return Batch(found.frames, revision)
        return None
