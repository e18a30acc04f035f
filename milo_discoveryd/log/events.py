"""Events, their frames, and slices of frames: the values that leave the change log."""

import enum
from collections.abc import Callable, Mapping

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
