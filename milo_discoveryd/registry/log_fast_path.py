"""A faster `ChangeLog.read` for the common case: each entry after the revision changed once.

It gives the same frames (a property test compares the two) and shares its work between readers of different views:
the changes are looked up once, and each view only evaluates its filter.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.predicate import Predicate
from milo_discoveryd.registry.events import EventType, Frames, LogSlice
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView
from milo_discoveryd.registry.log_entry import LogEntry
from milo_discoveryd.registry.recent import Recent

if TYPE_CHECKING:
    from milo_discoveryd.registry.log import ChangeLog

STRETCH = 800
"""How many slots are looked up at once: about a batch of clusters of the usual size."""
_STRETCHES_KEPT = 64

Change = tuple[LogEntry, int, Cluster | None, bool]
"""An entry, the revision of its change, its cluster, and whether a filter may see it differently than before. Without a
cluster, more than the state changed: the cluster was engaged, disengaged or replaced, or it is draining."""


class FastPath:
    def __init__(self, log: "ChangeLog", stretch: int) -> None:
        self._log = log
        self._stretch = stretch
        self.stretches: Recent[int, list[Change]] = Recent(_STRETCHES_KEPT)
        """Valid until the log changes, which drops them."""

    def read(self, revision: int, view: ClusterView) -> LogSlice | None:
        """Return None where an entry right after `revision` changed more than once."""
        return (self._read_updates(revision) if view.is_everything else None) or self._read(revision, view)

    def _read_updates(self, revision: int) -> LogSlice | None:
        """Read for a view of everything, where each entry was only updated: what most readers are sent most often."""
        frames: list[bytes] = []
        reached, size, limit, updated = revision, 0, self._log.batch_bytes, EventType.UPDATED
        while size < limit and (positions := self._log.slots_after(reached)[: self._stretch]):
            for entry, at in self._log.slots(positions):
                cluster = entry.cluster
                if entry.revision != at or cluster is None or cluster.draining is not None:
                    return None
                if cluster.incarnation > revision:
                    return None
                frame = entry.frame if entry.frame_type is updated else self._log.frame(entry, cluster, updated)
                frames.append(frame)
                size += len(frame)
                reached = at
                if size >= limit:
                    break
        return LogSlice(Frames(frames), revision=reached) if frames else None

    def _read(self, revision: int, view: ClusterView) -> LogSlice | None:
        matches, updated = view.matches, EventType.UPDATED
        frames: list[bytes] = []
        reached, size, limit, is_all = revision, 0, self._log.batch_bytes, True
        for entry, reached, cluster, may_differ in self._changes(revision):
            if (
                cluster is not None
                and matches(cluster)
                and (not may_differ or _matches(matches, entry.known_at(revision)))
            ):
                frame = entry.frame if entry.frame_type is updated else self._log.frame(entry, cluster, updated)
                frames.append(frame)
                size += len(frame)
            else:
                is_all = False
                if cluster is None or may_differ:
                    for frame in self._log.changes(entry, revision, reached, view):
                        frames.append(frame)
                        size += len(frame)
            if size >= limit:
                break
        if reached == revision:
            return None
        if (
            is_all
            and not view.is_everything
            and (unfiltered := self._log.since(revision, EVERYTHING)).revision == reached
        ):
            return unfiltered  # the same frames: share them and their join
        return LogSlice(Frames(frames), reached)

    def _changes(self, revision: int) -> Iterator[Change]:
        """Yield the changes after `revision`, up to the first entry that changed more than once."""
        while revision < self._log.head and (stretch := self._stretch_after(revision)):
            yield from stretch
            revision = stretch[-1][1]

    def _stretch_after(self, revision: int) -> list[Change]:
        """Return a stretch of changes, or an empty list if an entry in it changed more than once."""
        found = self.stretches.get(revision)
        return self.stretches.put(revision, self._look_up(revision)) if found is None else found

    def _look_up(self, revision: int) -> list[Change]:
        changes: list[Change] = []
        for entry, at in self._log.slots(self._log.slots_after(revision)[: self._stretch]):
            if entry.revision != at:
                return []
            cluster = entry.cluster
            if cluster is None or cluster.incarnation > revision or cluster.draining is not None:
                changes.append((entry, at, None, False))
            else:
                changes.append((entry, at, cluster, entry.same_view_since > revision))
        return changes


def _matches(matches: Predicate[Cluster], cluster: Cluster | None) -> bool:
    return cluster is not None and matches(cluster)
