"""The values of the change log: events, their frames, slices of frames, and the entry of a cluster."""

import enum
from collections.abc import Callable, Mapping, Sequence

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason


class EventType(enum.Enum):
    __hash__ = object.__hash__  # Enum has one in Python, several times slower

    ENGAGED = "ENGAGED"
    UPDATED = "UPDATED"
    DISENGAGED = "DISENGAGED"


class Event(msgspec.Struct, frozen=True):
    """One engagement, update or disengagement."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason | None = None
    message: str = ""
    readiness: tuple[str, str] | None = None
    """On the first engagement of an object: when it was created and when it became ready, according to the object."""


Encode = Callable[[Event], bytes]
"""Encodes an event as the bytes of a frame. Concatenated frames form a batch."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """An event, encoded once for all subscribers that receive it."""

    type: EventType
    cluster: Cluster
    data: bytes


class Slice(msgspec.Struct, frozen=True):
    """Frames in order. Subscribers at the same revision with the same view share one."""

    frames: tuple[Frame, ...]
    data: bytes
    """The frames, joined."""
    growth: Mapping[str, int]
    """The net change of the number of clusters in a view, by source."""


NO_CHANGES = Slice((), b"", {})


def slice_of(frames: Sequence[Frame]) -> Slice:
    """Join frames, and count the net change of the number of clusters in a view, by source."""
    growth: dict[str, int] = {}
    engaged, updated = EventType.ENGAGED, EventType.UPDATED
    for frame in frames:
        kind = frame.type
        if kind is not updated:
            source = frame.cluster.target.source
            growth[source] = growth.get(source, 0) + (1 if kind is engaged else -1)
    return Slice(tuple(frames), b"".join([frame.data for frame in frames]), growth)


ReadAhead = frozenset[tuple[str, int]]
"""Clusters that a reader was sent in a state newer than the end of its slice, with the revision of that state."""


class Changes(msgspec.Struct, frozen=True):
    """The changes after one revision, up to and including another."""

    slice: Slice
    revision: int
    ahead: ReadAhead = frozenset()


class PastState(msgspec.Struct, frozen=True, gc=False):
    """The state of a cluster, as filters see it, from revision `since` up to, but not including, `until`."""

    cluster: Cluster
    since: int
    until: int
    reason: DisengageReason | None
    """Why the cluster was disengaged at `until`; None if only its labels, its organization or its drain changed."""
    message: str


class LogEntry(msgspec.Struct, gc=False):
    """The entry of one cluster in the change log, to which only the log writes."""

    cluster: Cluster | None = None
    """None unless the cluster is engaged."""
    revision: int = 0
    """The revision of the last change."""
    same_view_since: int = 0
    """The last revision that could change the result of a filter for the cluster."""
    history: tuple[PastState, ...] = ()
    frame: Frame | None = None
    """The frame of the current cluster, of the type that was last requested. Nearly all live readers need UPDATED and
    all snapshots need ENGAGED, so caching one type is enough."""

    def known_at(self, revision: int) -> Cluster | None:
        """Return the cluster as a reader at `revision` knows it, as far as filters and incarnations are concerned."""
        if self.cluster is not None and self.same_view_since <= revision:
            return self.cluster
        for past in reversed(self.history):  # the latest is the most likely match
            if past.since <= revision < past.until:
                return past.cluster
        return None

    def needs_slot(self, revision: int) -> bool:
        """Return whether a reader whose batch ends soon after `revision` needs the entry's slot at that revision.

        A change that a filter can see must be sent even if the entry changed again beyond the end of that batch.
        """
        if revision in (self.revision, self.same_view_since):
            return self.cluster is not None or bool(self.history)
        for past in self.history:  # noqa: SIM110 - this runs for thousands of slots in a row
            if revision in (past.since, past.until):
                return True
        return False

    def end_of(self, cluster: Cluster, revision: int) -> PastState | None:
        """Return how the cluster's incarnation had ended by `revision`, or None if it was still engaged."""
        return next(
            (
                past
                for past in self.history
                if past.reason and past.until <= revision and past.cluster.incarnation == cluster.incarnation
            ),
            None,
        )
