"""The values that the change log returns: events, their frames, slices of frames, and the changes that a reader
gets."""

import enum
from collections.abc import Callable, Mapping

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason


class EventType(enum.Enum):
    __hash__ = object.__hash__  # Enum defines `__hash__` in Python, which is several times slower

    ENGAGED = "ENGAGED"
    UPDATED = "UPDATED"
    DISENGAGED = "DISENGAGED"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One engagement, update or disengagement."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason | None = None
    message: str = ""
    readiness: tuple[str, str] | None = None
    """When the object was created and when it became ready, according to the object. Set only on the first engagement
    for this object."""


Encode = Callable[[Event], bytes]
"""Encodes an event as the bytes of a frame. Concatenated frames form a batch."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """An event, encoded once for all subscribers that receive it."""

    type: EventType
    cluster: Cluster
    source: str
    """The source of the cluster, kept here because reading it through `cluster` for each frame takes longer."""
    data: bytes


class Slice(msgspec.Struct, frozen=True):
    """Frames in order. Subscribers at the same revision with the same view share one."""

    frames: tuple[Frame, ...]
    data: bytes
    """The frames, joined."""
    growth: Mapping[str, int]
    """The net change of the number of clusters in a view, by source."""


NO_CHANGES = Slice((), b"", {})

ReadAhead = frozenset[tuple[str, int]]
"""Clusters whose state, as sent to a reader, is newer than the end of its slice, with the revision of that state."""


class Changes(msgspec.Struct, frozen=True):
    """The changes after one revision, up to and including another."""

    slice: Slice
    revision: int
    ahead: ReadAhead = frozenset()
