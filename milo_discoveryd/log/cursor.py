"""A subscriber's position in the change log. It is not a queue, so a slow subscriber takes almost no memory in the
daemon."""

import msgspec

from milo_discoveryd.log.change_log import ChangeLog, Snapshot, bounded
from milo_discoveryd.log.events import NO_CHANGES, ReadAhead, Slice
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.log.filter_transition import FilterTransition, start_transition


class Batch(msgspec.Struct, frozen=True):
    slice: Slice
    revision: int
    reset: bool = False
    synced: bool = True
    is_whole: bool = True
    """The batch completes `revision`, so the subscriber can resume from it."""

    @property
    def is_sendable(self) -> bool:
        """Whether to send the batch; False for a step of a longer read in which nothing matched."""
        return bool(self.slice.frames) or self.reset or self.is_whole


class _InSnapshot(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    position: int = 0
    ahead: ReadAhead = frozenset()


class _Following(msgspec.Struct, frozen=True):
    revision: int
    ahead: ReadAhead = frozenset()
    """Changes after `revision` that were already sent; empty unless the cursor catches up in several steps."""


class Cursor:
    """One reader's position. It starts with a snapshot unless the log can be read from the revision to resume from."""

    def __init__(self, log: ChangeLog, view: ClusterView, resume: int | None, *, overhead: int = 0) -> None:
        """`overhead` is the number of bytes that each cluster of a snapshot takes in addition to its frame."""
        self._log = log
        self._overhead = overhead
        self._view = view
        self._state: _InSnapshot | _Following | FilterTransition
        if resume is not None and log.reads_from(resume):
            self._state = _Following(resume)
        else:
            self._state = _InSnapshot(log.snapshot())

    @property
    def is_following(self) -> bool:
        """Whether the reader has every cluster of its view up to `revision`."""
        return isinstance(self._state, _Following)

    @property
    def revision(self) -> int:
        """The revision up to which the log was read, or the revision of the snapshot that is being read."""
        return self._state.snapshot.revision if isinstance(self._state, _InSnapshot) else self._state.revision

    @property
    def lag(self) -> int:
        """The number of unread revisions, plus that of unread clusters of the snapshot."""
        unread = self._log.head - self.revision
        if isinstance(self._state, _InSnapshot):
            unread += len(self._state.snapshot.entries) - self._state.position
        elif isinstance(self._state, FilterTransition):
            unread += self._state.remaining
        return unread

    @property
    def place(self) -> _InSnapshot | _Following | FilterTransition:
        """Where the next batch begins, for `return_to`."""
        return self._state

    def return_to(self, place: _InSnapshot | _Following | FilterTransition) -> None:
        """Forget the batch that was read from there: it was not sent."""
        self._state = place

    def change_view(self, view: ClusterView) -> None:
        """Switch to another view.

        The next batches disengage the clusters that left the view and engage those that entered it. If a snapshot is
        being read, another snapshot begins instead.
        """
        before, self._view = self._view, view
        if isinstance(self._state, _InSnapshot):
            self._state = _InSnapshot(self._log.snapshot())
        elif isinstance(self._state, FilterTransition):
            self._state = self._state.restart(view)
        else:
            self._state = start_transition(self._log, self._state.revision, self._state.ahead, before, view)

    def next_batch(self) -> Batch | None:
        """Return the next batch, or None if nothing changed."""
        if not self._log.reads_from(self.revision):
            # Past states that the subscriber needs were dropped while it was idle or read a snapshot.
            self._state = _InSnapshot(self._log.snapshot())
        if isinstance(self._state, _InSnapshot):
            return self._from_snapshot(self._state)
        if isinstance(self._state, FilterTransition):
            return self._from_transition(self._state)
        return self._from_log(self._state.revision, self._state.ahead)

    def prefetch(self) -> None:
        """Compute the next batch, so that `next_batch` has it ready if nothing changes until then."""
        if isinstance(self._state, _InSnapshot):
            self._log.snapshot_part(self._state.snapshot, self._state.position, self._view, self._overhead)
        elif isinstance(self._state, _Following) and self._log.reads_from(self._state.revision):
            self._log.since(self._state.revision, self._view, self._state.ahead)

    def _from_snapshot(self, before: _InSnapshot) -> Batch:
        snapshot = before.snapshot
        part = self._log.snapshot_part(snapshot, before.position, self._view, self._overhead)
        ahead, synced = bounded(before.ahead | part.ahead), part.end == len(snapshot.entries)
        self._state = _Following(snapshot.revision, ahead) if synced else _InSnapshot(snapshot, part.end, ahead)
        return Batch(part.slice, snapshot.revision, reset=before.position == 0, synced=synced, is_whole=synced)

    def _from_transition(self, before: FilterTransition) -> Batch | None:
        changes, now = before.step(self._log)
        if not now.is_done:
            self._state = now
            return Batch(changes, now.revision, is_whole=False)
        self._state = _Following(now.revision, now.ahead)
        return Batch(changes, now.revision) if changes.frames else self._from_log(now.revision, now.ahead)

    def _from_log(self, revision: int, ahead: ReadAhead) -> Batch | None:
        if revision == self._log.head:
            return None
        changes = self._log.since(revision, self._view, ahead)
        self._state = _Following(changes.revision, bounded(changes.ahead))
        if changes.slice.frames:
            return Batch(changes.slice, changes.revision)
        return None if changes.revision == self._log.head else Batch(NO_CHANGES, changes.revision, is_whole=False)
