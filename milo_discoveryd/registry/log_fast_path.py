"""A faster `ChangeLog.read` for the common case: each entry after the revision changed once.

It gives the same frames (a property test compares the two) and shares its work between readers of different views:
the states before and after each change are looked up once, and each view only evaluates its filter.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.events import EventType, Frames, LogSlice
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView
from milo_discoveryd.registry.log_entry import LogEntry
from milo_discoveryd.registry.recent import Recent

if TYPE_CHECKING:
    from milo_discoveryd.registry.log import ChangeLog

STRETCH = 800
"""How many slots are looked up at once: about a batch of clusters of the usual size."""
_STRETCHES_KEPT = 64

Change = tuple[LogEntry, int, Cluster | None, Cluster | None]
"""An entry, the revision of its change, its cluster, and what filters saw before if that was different. Without a
cluster, more than the state changed: the cluster was engaged, disengaged or replaced, or it is draining."""


class FastPath:
    def __init__(self, log: "ChangeLog", stretch: int) -> None:
        self._log = log
        self._stretch = stretch
        self._stretches: Recent[int, list[Change]] = Recent(_STRETCHES_KEPT)

    def clear(self) -> None:
        self._stretches.clear()

    def read(self, revision: int, view: ClusterView) -> LogSlice | None:
        """Return None where an entry right after `revision` changed more than once."""
        everything, matches, updated = view.is_everything, view.matches, EventType.UPDATED
        frames: list[bytes] = []
        reached, size, is_all = revision, 0, True
        for entry, reached, cluster, before in self._changes(revision):
            is_shown = everything or (cluster is not None and matches(cluster))
            if cluster is None or not (everything or before is None or matches(before) is is_shown):
                is_all = False
                for frame in self._log.changes(entry, revision, reached, view):
                    frames.append(frame)
                    size += len(frame)
            elif is_shown:
                frames.append(entry.frame if entry.frame_type is updated else self._log.frame(entry, cluster, updated))
                size += len(frames[-1])
            else:
                is_all = False
            if size >= self._log.batch_bytes:
                break
        if reached == revision:
            return None
        if is_all and not everything and (unfiltered := self._log.since(revision, EVERYTHING)).revision == reached:
            return unfiltered  # the same frames: share them and their join
        return LogSlice(Frames(frames), reached)

    def _changes(self, revision: int) -> Iterator[Change]:
        """Yield the changes after `revision`, up to the first entry that changed more than once."""
        while revision < self._log.head and (stretch := self._stretch_after(revision)):
            yield from stretch
            revision = stretch[-1][1]

    def _stretch_after(self, revision: int) -> list[Change]:
        """Return a stretch of changes, or an empty list if an entry in it changed more than once."""
        found = self._stretches.get(revision)
        return self._stretches.put(revision, self._look_up(revision)) if found is None else found

    def _look_up(self, revision: int) -> list[Change]:
        changes: list[Change] = []
        for entry, at in self._log.slots(self._log.slots_after(revision)[: self._stretch]):
            if entry.revision != at:
                return []
            cluster = entry.cluster
            if cluster is None or cluster.incarnation > revision or cluster.draining is not None:
                changes.append((entry, at, None, None))
            elif entry.same_view_since <= revision:
                changes.append((entry, at, cluster, None))
            else:
                past = entry.history[-1]  # the latest is the most likely match
                is_last = past.since <= revision < past.until
                changes.append((entry, at, cluster, past.cluster if is_last else entry.known_at(revision)))
        return changes
