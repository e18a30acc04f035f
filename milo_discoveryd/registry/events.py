"""What a subscriber is told, before it is turned into bytes."""

import enum
from collections.abc import Callable
from functools import cached_property

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason


class EventType(enum.Enum):
    ENGAGED = "ENGAGED"
    UPDATED = "UPDATED"
    DISENGAGED = "DISENGAGED"


class Event(msgspec.Struct, frozen=True):
    type: EventType
    cluster: Cluster
    reason: DisengageReason | None = None
    message: str = ""


Encode = Callable[[Event], bytes]
"""Turns an event into a frame: bytes that make a batch when they are joined."""


class Frames(tuple[bytes, ...]):
    """Some frames in their order. All who send the same share the join of them."""

    @cached_property
    def joined(self) -> bytes:
        return b"".join(self)
