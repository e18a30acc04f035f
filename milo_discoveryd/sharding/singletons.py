"""Work that one subscriber does at a time: which one may do it, and until when. Pure.

A daemon grants work that it owns as it owns clusters, to one of its subscribers. A subscriber repeats its claims every
few seconds. One that is silent has stopped when its last grant has expired, and its work has ended soon after.
"""

import enum
from collections.abc import Callable
from math import inf

import msgspec

VALID_S = 10.0
"""How long a grant holds unless it is repeated."""
END_S = 5.0
"""How long work may take to end when its subscriber cannot say that it has not ended."""
HELD_AT_MOST = 1_000


class WorkState(enum.Enum):
    WAITING = "waiting"
    WORKING = "working"
    """It was granted, and the grant has not expired."""
    ENDING = "ending"
    """It is no longer granted, and has not ended."""


class SingletonKey(msgspec.Struct, frozen=True):
    caller: str
    """The key of the authenticated caller: callers do not compete with each other."""
    name: str


class _Holder(msgspec.Struct):
    subscriber: str
    until: float
    """When the work has ended, if nothing more is heard of it."""
    ends_by: float = inf
    """When the work no longer counts; set once another daemon owns it."""


class Singletons:
    def __init__(self, release_timeout_s: float, now: float) -> None:
        """`release_timeout_s`: how long work that moves to another daemon has to end."""
        self._release_timeout_s = release_timeout_s
        self._holders: dict[SingletonKey, _Holder] = {}
        self._known_from = now + VALID_S + END_S
        """The end of grants by a former process of this daemon, which this one does not know."""

    def claim(
        self, key: SingletonKey, subscriber: str, state: WorkState, *, is_owned: bool, valid_s: float, now: float
    ) -> bool:
        """Return whether the subscriber may do the work for `valid_s` from now."""
        holder = self._present(key, now)
        if holder is not None and holder.subscriber == subscriber and state is WorkState.WAITING:
            del self._holders[key]
            holder = None
        if holder is not None and holder.subscriber != subscriber:
            return False
        is_new = holder is None and state is WorkState.WAITING
        if is_owned and state is not WorkState.ENDING and not (is_new and now < self._known_from):
            return self._hold(key, subscriber, now + valid_s + END_S)
        if state is not WorkState.WAITING:
            self._hold(key, subscriber, now + VALID_S + END_S)
        return False

    def end(self, caller: str, subscriber: str) -> None:
        """Note that a subscriber has ended all of its work."""
        for key, holder in [*self._holders.items()]:
            if (key.caller, holder.subscriber) == (caller, subscriber):
                del self._holders[key]

    def keeps_lost(self, owns: Callable[[str], bool], now: float) -> bool:
        """Return whether work goes on that is not this daemon's."""
        is_kept = False
        for key in [*self._holders]:
            holder = self._present(key, now)
            if holder is None or owns(key.name):
                continue
            holder.ends_by = min(holder.ends_by, now + self._release_timeout_s)
            is_kept |= now < holder.ends_by
        return is_kept

    def _hold(self, key: SingletonKey, subscriber: str, until: float) -> bool:
        holder = self._holders.get(key)
        if holder is not None:
            holder.until = until
        elif len(self._holders) < HELD_AT_MOST:
            self._holders[key] = _Holder(subscriber, until)
        else:
            return False
        return True

    def _present(self, key: SingletonKey, now: float) -> _Holder | None:
        """Return the subscriber whose work may go on."""
        holder = self._holders.get(key)
        if holder is not None and holder.until <= now:
            del self._holders[key]
            return None
        return holder
