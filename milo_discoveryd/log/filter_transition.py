"""The change of a reader's view: disengages the clusters that leave the view and engages those that enter it, as of the
reader's revision.

The transition examines all clusters that the reader may know, in steps. Changes made in the meantime follow after the
transition, as after a snapshot.
"""

import msgspec

from milo_discoveryd.log.change_log import ChangeLog, Snapshot, bounded, slice_of
from milo_discoveryd.log.events import Frame, ReadAhead, Slice
from milo_discoveryd.log.filter import ClusterView


class FilterTransition(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    revision: int
    """The revision up to which the reader has read the log."""
    view: ClusterView
    """The new view."""
    earlier: tuple[tuple[int, ClusterView], ...]
    """The reader's former views, each with the position in the snapshot up to which it applies. There are several if
    the view changes again before the transition is done."""
    position: int = 0
    ahead: ReadAhead = frozenset()

    @property
    def is_done(self) -> bool:
        return self.position == len(self.snapshot.entries)

    @property
    def remaining(self) -> int:
        return len(self.snapshot.entries) - self.position

    def restart(self, view: ClusterView) -> "FilterTransition":
        """Return a transition to another view, which starts from the beginning. Up to the current position, the
        reader's former view is then `self.view`."""
        earlier = ((self.position, self.view), *(former for former in self.earlier if former[0] > self.position))
        return msgspec.structs.replace(self, view=view, earlier=earlier, position=0)

    def step(self, log: ChangeLog) -> tuple[Slice, "FilterTransition"]:
        """Return the next slice to send, and the transition after it."""
        frames: list[Frame] = []
        ahead: set[tuple[str, int]] = set()
        size = 0
        records = min(view.records_per_step for view in (self.view, *(former for _, former in self.earlier)))
        position, last_position = self.position, min(len(self.snapshot.entries), self.position + records)
        while position < last_position and size < log.batch_bytes:
            entry, before = self.snapshot.entries[position], self._view_before(position)
            position += 1
            cluster = entry.known_at(self.revision)
            if cluster is None:
                continue
            matched, matches = before.matches(cluster), self.view.matches(cluster)
            if matched and not matches:
                frames.append(log.revoked_frame(cluster))
            elif matches and not matched:
                frames.append(log.frame(entry, cluster))
                if cluster is entry.cluster and entry.revision > self.revision:
                    ahead.add((cluster.target.name, entry.revision))
            else:
                continue
            size += len(frames[-1].data)
        return slice_of(frames), msgspec.structs.replace(self, position=position, ahead=bounded(self.ahead | ahead))

    def _view_before(self, position: int) -> ClusterView:
        return next(view for upto, view in self.earlier if position < upto)


def start_transition(
    log: ChangeLog, revision: int, ahead: ReadAhead, before: ClusterView, view: ClusterView
) -> FilterTransition:
    """Return the transition of a reader at `revision` from one view to another."""
    snapshot = log.snapshot(revision)
    return FilterTransition(snapshot, revision, view, ((len(snapshot.entries), before),), ahead=ahead)
