"""The events that a subscriber is sent, before they are encoded."""

import enum
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason

T = TypeVar("T")


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


SHARED_BYTES = 16 * 1024
"""The smallest joined batch that is shared: copying a smaller one is faster than the lookup."""

Encode = Callable[[Event], bytes]
"""Encodes an event as a frame. Concatenated frames form a batch."""


class Frames(tuple[bytes, ...]):
    """Frames in order. Subscribers that are sent the same frames share one concatenation of them."""

    @cached_property
    def joined(self) -> bytes:
        return b"".join(self)

    _counted: Any = None

    def counted(self, count: Callable[["Frames"], T]) -> T:
        """Return `count` of the frames, computed once for all subscribers that are sent the same."""
        if self._counted is None:
            self._counted = count(self)
        found: T = self._counted
        return found

    _message = (b"", b"")
    """The last long message, and the bytes that follow the joined frames in it."""

    def followed_by(self, rest: bytes) -> bytes:
        """Return the joined frames followed by `rest`. Subscribers with the same `rest` share the result."""
        joined = self.joined
        if not rest or len(joined) < SHARED_BYTES:
            return joined + rest
        if self._message[1] != rest:
            self._message = (joined + rest, rest)
        return self._message[0]


ReadAhead = frozenset[tuple[str, int]]
"""Clusters that a reader was sent in a state newer than the end of its slice, with the revision of that state."""


class LogSlice(msgspec.Struct, frozen=True):
    """The changes after one revision, up to and including another."""

    frames: Frames
    revision: int
    ahead: ReadAhead = frozenset()
