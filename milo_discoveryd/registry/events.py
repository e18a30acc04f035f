"""The events that a subscriber is sent, before they are encoded."""

import enum
from collections.abc import Callable, Mapping, Sequence

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason


class EventType(enum.Enum):
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
    """On the first engagement of an object: when it was created and when it became ready, as the object states."""


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
    """By how many clusters of each source a view grows with the frames."""


NO_CHANGES = Slice((), b"", {})


def slice_of(frames: Sequence[Frame]) -> Slice:
    growth: dict[str, int] = {}
    for frame in frames:
        if frame.type is not EventType.UPDATED:
            source = frame.cluster.target.source
            growth[source] = growth.get(source, 0) + (1 if frame.type is EventType.ENGAGED else -1)
    return Slice(tuple(frames), b"".join([frame.data for frame in frames]), growth)


ReadAhead = frozenset[tuple[str, int]]
"""Clusters that a reader was sent in a state newer than the end of its slice, with the revision of that state."""


class Changes(msgspec.Struct, frozen=True):
    """The changes after one revision, up to and including another."""

    slice: Slice
    revision: int
    ahead: ReadAhead = frozenset()
