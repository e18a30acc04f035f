"""A reader is shown something else from now on: what that takes away and adds, as of the revision it has read up to.

It goes through all that the reader may have been told of, in parts. What changes meanwhile follows, as after a
snapshot.
"""

import msgspec

from milo_discoveryd.registry.events import Frames
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.log import RECORDS_PER_STEP, ChangeLog, LogIndex, ReadAhead


class FilterTransition(msgspec.Struct, frozen=True):
    roll: LogIndex
    revision: int
    """What the reader has read up to."""
    wanted: ClusterView
    """What it is shown now."""
    knew: tuple[tuple[int, ClusterView], ...]
    """Up to each of these places in the roll, what the reader was shown before: more than one thing, if what it is
    shown changes again before it is through."""
    place: int = 0
    ahead: ReadAhead = frozenset()

    @property
    def is_over(self) -> bool:
        return self.place == len(self.roll.entries)

    @property
    def left(self) -> int:
        return len(self.roll.entries) - self.place

    def again(self, wanted: ClusterView) -> "FilterTransition":
        knew = ((self.place, self.wanted), *(each for each in self.knew if each[0] > self.place))
        return msgspec.structs.replace(self, wanted=wanted, knew=knew, place=0)

    def step(self, log: ChangeLog) -> tuple[Frames, "FilterTransition"]:
        """A part of the way: what is to be told, and where the reader is then."""
        frames: list[bytes] = []
        ahead: set[tuple[str, int]] = set()
        size = 0
        place, end = self.place, min(len(self.roll.entries), self.place + RECORDS_PER_STEP)
        while place < end and size < log.batch_bytes:
            entry, before = self.roll.entries[place], self._knew_at(place)
            place += 1
            cluster = entry.known_at(self.revision)
            if cluster is None:
                continue
            was, now = before.matches(cluster), self.wanted.matches(cluster)
            if was and not now:
                frames.append(log.revoked(cluster))
            elif now and not was:
                frames.append(log.frame(entry, cluster))
                if cluster is entry.cluster and entry.revision > self.revision:
                    ahead.add((cluster.target.name, entry.revision))
            else:
                continue
            size += len(frames[-1])
        return Frames(frames), msgspec.structs.replace(self, place=place, ahead=self.ahead | ahead)

    def _knew_at(self, place: int) -> ClusterView:
        return next(wanted for upto, wanted in self.knew if place < upto)


def turn(log: ChangeLog, revision: int, ahead: ReadAhead, before: ClusterView, wanted: ClusterView) -> FilterTransition:
    """The begin of one, for a reader that has read up to `revision`."""
    roll = log.roll(revision)
    return FilterTransition(roll, revision, wanted, ((len(roll.entries), before),), ahead=ahead)
