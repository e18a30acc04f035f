"""Grants of singleton work, which only one subscriber does at a time. Pure.

The ownership of singleton work is distributed like that of clusters. The owning daemon grants the work to one of its
subscribers. A subscriber repeats its claims every few seconds. If it stops doing so, it must stop the work when its
last grant expires, and the work counts as ended soon after.
"""

import enum
from collections.abc import Callable
from math import inf

import msgspec

VALID_S = 10.0
"""How long a grant is valid unless it is repeated."""
END_S = 5.0
"""How long the work of a silent subscriber may take to end after its grant expired."""
HELD_AT_MOST = 1_000
HELD_BY_CALLER = HELD_AT_MOST // 2
"""So that one caller cannot keep the others from their work."""


class WorkState(enum.Enum):
    WAITING = "waiting"
    WORKING = "working"
    """The work is granted, and the grant has not expired."""
    ENDING = "ending"
    """The work is no longer granted, and has not ended."""


class SingletonKey(msgspec.Struct, frozen=True):
    caller: str
    """The key of the authenticated caller: callers do not compete with each other."""
    name: str


class _Holder(msgspec.Struct):
    subscriber: str
    until: float
    """When the work counts as ended if its subscriber sends no further claim."""
    ends_by: float = inf
    """The deadline of work that another daemon owns now; set when the ownership moved."""


class Singletons:
    def __init__(self, release_timeout_s: float, now: float) -> None:
        """`release_timeout_s`: the time in which work that moves to another daemon must end."""
        self._release_timeout_s = release_timeout_s
        self._holders: dict[SingletonKey, _Holder] = {}
        self._known_from = now + VALID_S + END_S
        """When all grants of a former process of this daemon, which are unknown, have ended."""

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
            return self._hold(key, subscriber, valid_s, now)
        if state is not WorkState.WAITING:
            self._hold(key, subscriber, VALID_S, now)
        return False

    def end(self, caller: str, subscriber: str) -> None:
        """Record that a subscriber has ended all of its work."""
        for key, holder in [*self._holders.items()]:
            if (key.caller, holder.subscriber) == (caller, subscriber):
                del self._holders[key]

    def keeps_lost(self, owns: Callable[[str], bool], now: float) -> bool:
        """Return whether work continues that this daemon no longer owns."""
        is_kept = False
        for key in [*self._holders]:
            holder = self._present(key, now)
            if holder is None or owns(key.name):
                continue
            holder.ends_by = min(holder.ends_by, now + self._release_timeout_s)
            is_kept |= now < holder.ends_by
        return is_kept

    def _hold(self, key: SingletonKey, subscriber: str, valid_s: float, now: float) -> bool:
        until = now + valid_s + END_S
        holder = self._holders.get(key)
        if holder is not None:
            holder.until = until
        elif self._admits(key.caller, now):
            self._holders[key] = _Holder(subscriber, until)
        else:
            return False
        return True

    def _admits(self, caller: str, now: float) -> bool:
        """Return whether another holder may be added for the caller. Removes those whose work has ended."""
        if len(self._holders) >= HELD_BY_CALLER:
            self._holders = {key: holder for key, holder in self._holders.items() if holder.until > now}
        held = sum(key.caller == caller for key in self._holders)
        return held < HELD_BY_CALLER and len(self._holders) < HELD_AT_MOST

    def _present(self, key: SingletonKey, now: float) -> _Holder | None:
        """Return the holder whose work may not have ended yet, if there is one."""
        holder = self._holders.get(key)
        if holder is not None and holder.until <= now:
            del self._holders[key]
            return None
        return holder
