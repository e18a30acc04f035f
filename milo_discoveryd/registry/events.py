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


SHARED_BYTES = 16 * 1024
"""Of a join: less is sooner copied than found."""

Encode = Callable[[Event], bytes]
"""Turns an event into a frame: bytes that make a batch when they are joined."""


class Frames(tuple[bytes, ...]):
    """Some frames in their order. All who send the same share the join of them."""

    @cached_property
    def joined(self) -> bytes:
        return b"".join(self)

    _message = (b"", b"")
    """The last that was long, and what follows the join in it."""

    def followed_by(self, rest: bytes) -> bytes:
        """The join, and the rest of a message: shared, too, by those for whom that is the same."""
        joined = self.joined
        if not rest or len(joined) < SHARED_BYTES:
            return joined + rest
        if self._message[1] != rest:
            self._message = (joined + rest, rest)
        return self._message[0]
