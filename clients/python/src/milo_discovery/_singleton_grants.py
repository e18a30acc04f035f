"""The expiry of singleton grants, without I/O. Times are those of `boottime`."""

from __future__ import annotations

from math import inf

from milo_discovery.model import SingletonGrants, SingletonState

CLAIM_INTERVAL_S = 3.0


class HeldGrants:
    """The grants of the daemon, until they expire."""

    def __init__(self) -> None:
        self._granted: frozenset[str] = frozenset()
        self._until = -inf

    def answered(self, grants: SingletonGrants, asked_at: float) -> None:
        """Apply a response. Its grants count from the request, because the response may have been delayed."""
        self._granted = grants.granted
        self._until = asked_at + grants.valid_for.total_seconds()

    def held(self, now: float) -> frozenset[str]:
        """Return the names that are granted now. Expired grants are dropped until the daemon grants the work again."""
        if now >= self._until:
            self._granted = frozenset()
        return self._granted

    def pause_s(self, now: float) -> float:
        """Return how long to wait before the next claim, and for its response: not longer than the grants last."""
        left_s = self._until - now if self._granted else 0.0
        return min(CLAIM_INTERVAL_S, left_s) if left_s > 0 else CLAIM_INTERVAL_S


def claimed_state(*, is_granted: bool, has_ended: bool) -> SingletonState:
    """Return the state of work to claim with. `has_ended`: the work is not running."""
    if is_granted:
        return SingletonState.WORKING
    return SingletonState.WAITING if has_ended else SingletonState.ENDING
