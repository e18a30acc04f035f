"""What a subscriber is told, before it is turned into bytes."""

import enum
from collections.abc import Callable

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
