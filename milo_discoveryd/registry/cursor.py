"""Where one subscriber stands: it owns this, and not a queue, so whatever it does costs the daemon next to nothing."""

import msgspec

from milo_discoveryd.registry.filter import Filter
from milo_discoveryd.registry.log import Ahead, ChangeLog, Snapshot


class Batch(msgspec.Struct, frozen=True):
    frames: tuple[bytes, ...]
    revision: int
    reset: bool = False
    synced: bool = True


class _InSnapshot(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    index: int = 0


class _Following(msgspec.Struct, frozen=True):
    revision: int
    ahead: Ahead = frozenset()
    """While it catches up in several steps."""


class Cursor:
    """Begins with a snapshot, unless the log can be read from the revision it is to resume from."""

    def __init__(self, log: ChangeLog, wanted: Filter, resume: int | None, *, overhead: int = 0) -> None:
        """`overhead`: how many bytes each cluster of a snapshot will take beside its frame."""
        self._log = log
        self._overhead = overhead
        self._wanted = wanted
        self._state: _InSnapshot | _Following
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
        return self._state.revision if isinstance(self._state, _Following) else self._state.snapshot.revision

    @property
    def lag(self) -> int:
        """How many revisions are unread."""
        unread = self._log.head - self.revision
        if isinstance(self._state, _InSnapshot):
            unread += len(self._state.snapshot.views) - self._state.index
        return unread

    def take(self) -> Batch | None:
        """The next batch; None where there is nothing new."""
        if isinstance(self._state, _Following):
            if self._log.reads_from(self._state.revision):
                return self._from_log(self._state.revision, self._state.ahead)
            # It slept for longer than the log remembers.
            self._state = _InSnapshot(self._log.snapshot())
        return self._from_snapshot(self._state.snapshot, self._state.index)

    def _from_snapshot(self, snapshot: Snapshot, start: int) -> Batch:
        frames: list[bytes] = []
        size = 0
        index = start
        views = snapshot.views
        # Whoever wants few of many clusters has them looked for in parts, so that others get their turn.
        end = min(len(views), start + _LOOKED_AT)
        while index < end and size < self._log.batch_bytes:
            view = views[index]
            index += 1
            if self._wanted.matches(view.cluster):
                frame = self._log.frame(view)
                frames.append(frame)
                size += len(frame) + self._overhead
        synced = index == len(views)
        self._state = _Following(snapshot.revision) if synced else _InSnapshot(snapshot, index)
        return Batch(tuple(frames), snapshot.revision, reset=start == 0, synced=synced)

    def _from_log(self, revision: int, ahead: Ahead) -> Batch | None:
        while revision < self._log.head:
            found = self._log.since(revision, self._wanted, ahead)
            revision = found.revision
            ahead = found.ahead if revision < self._log.head else frozenset()
            self._state = _Following(revision, ahead)
            if found.frames:
                return Batch(found.frames, revision)
        return None


_LOOKED_AT = 5000
