"""A faster `ChangeLog.read` for the common case: each entry after the revision changed once.

It returns the same frames (a property test compares the two). For a view of all clusters, which most readers have, it
does not evaluate filters.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.predicate import Predicate
from milo_discoveryd.registry.events import EventType, Frames, LogSlice
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView
from milo_discoveryd.registry.log_entry import LogEntry

if TYPE_CHECKING:
    from milo_discoveryd.registry.log import ChangeLog

STRETCH = 800
"""How many slots are looked up at once: about a batch of clusters of the usual size."""


class FastPath:
    def __init__(self, log: "ChangeLog", stretch: int) -> None:
        self._log = log
        self._stretch = stretch

    def read(self, revision: int, view: ClusterView) -> LogSlice | None:
        """Return None if an entry changed more than once."""
        return (self._read_updates(revision) if view.is_everything else None) or self._read(revision, view)

    def _read_updates(self, revision: int) -> LogSlice | None:
        """Read for a view of all clusters. Return None unless each entry was only updated."""
        frames: list[bytes] = []
        reached, size, limit, updated = revision, 0, self._log.batch_bytes, EventType.UPDATED
        # `_slots_after` is not used here: a generator would take as long as the rest of the loop.
        while size < limit and (positions := self._log.slots_after(reached)[: self._stretch]):
            for entry, reached in self._log.slots(positions):
                cluster = entry.cluster
                if entry.revision != reached or cluster is None or cluster.draining is not None:
                    return None
                if cluster.incarnation > revision:
                    return None
                frame = entry.frame if entry.frame_type is updated else self._log.frame(entry, cluster, updated)
                frames.append(frame)
                size += len(frame)
                if size >= limit:
                    break
        return LogSlice(Frames(frames), revision=reached) if frames else None

    def _read(self, revision: int, view: ClusterView) -> LogSlice | None:
        matches, updated = view.matches, EventType.UPDATED
        frames: list[bytes] = []
        reached, size, limit, is_all = revision, 0, self._log.batch_bytes, True
        for entry, reached in self._slots_after(revision):
            cluster = entry.cluster
            if entry.revision != reached:
                return None
            if (cluster is None or cluster.incarnation > revision or cluster.draining is not None) or (
                entry.same_view_since > revision and _matches(matches, entry.known_at(revision)) != matches(cluster)
            ):
                is_all = False
                added = [*self._log.changes(entry, revision, reached, view)]
                frames += added
                size += sum(map(len, added))
            elif matches(cluster):
                frame = entry.frame if entry.frame_type is updated else self._log.frame(entry, cluster, updated)
                frames.append(frame)
                size += len(frame)
            else:
                is_all = False
            if size >= limit:
                break
        if reached == revision:
            return None
        if is_all and not view.is_everything:
            return self._log.since(revision, EVERYTHING)  # the same frames: share them and their join
        return LogSlice(Frames(frames), reached)

    def _slots_after(self, revision: int) -> Iterator[tuple[LogEntry, int]]:
        """Yield entries and the revisions of their slots. A slow reader does not copy the whole log for each batch."""
        reached = revision
        while positions := self._log.slots_after(reached)[: self._stretch]:
            for entry, reached in self._log.slots(positions):
                yield entry, reached


def _matches(matches: Predicate[Cluster], cluster: Cluster | None) -> bool:
    return cluster is not None and matches(cluster)
