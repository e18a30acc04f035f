"""Decides when clusters that are no longer ready are disengaged: after the grace period, and not while a large part of
the fleet is not ready.

A faulty controller can make thousands of objects not ready within a second, and operators would stop work on all of
them. So the first few clusters are disengaged at once, and the others wait for `SETTLE_S`. If more clusters are not
ready than the mass-removal limit allows, all clusters that wait stay engaged for `verify_after_s`; those that are still
not ready after that are disengaged at a limited rate.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

import msgspec

from milo_discoveryd.model.removal_limits import RemovalLimits

SETTLE_S = 1.0
"""How long clusters beyond the first few wait before they are compared with the mass-removal limit."""


class HeldNotReady(msgspec.Struct, frozen=True):
    """A hold: a large part of the fleet is not ready, and stays engaged for now."""

    since: float
    until: float
    message: str


class NotReadyClusters:
    """The engaged clusters whose objects are not ready, and when to disengage each of them. Without `limits`, no
    cluster is held."""

    def __init__(self, grace_s: float = 0.0, limits: RemovalLimits | None = None) -> None:
        self._grace_s = grace_s
        self._limits = limits
        self._wait_s = grace_s or (0.0 if limits is None else limits.verify_after_s) or SETTLE_S
        """The length of grace periods; without these, how long clusters wait that may be ready again: never 0."""
        self._graces = OrderedDict[str, float]()
        """The end of each grace period, earliest first; all grace periods have the same length."""
        self._waiting: dict[str, None] = {}
        """Clusters whose grace period is over, and that wait until `_decide_at`."""
        self._decide_at = math.inf
        """When to decide about all waiting clusters: soon after the first of them, or at the end of a hold."""
        self._releases = OrderedDict[str, float]()
        """When to disengage each cluster about which it was decided, earliest first: those that were held at a limited
        rate."""
        self._disengaged = OrderedDict[str, float]()
        """When each cluster that is still not ready was disengaged, oldest first. Entries are kept for the duration of
        a hold.
        """
        self.held: HeldNotReady | None = None
        self.is_idle = True
        """Whether no cluster waits, so that nothing is due."""
        self.paused_at: float | None = None
        """Since when the source has sent nothing, so that no grace period and no hold ends; None while it sends."""

    @property
    def held_count(self) -> int:
        return (len(self._waiting) if self.held else 0) + len(self._releases)

    @property
    def due_at(self) -> float | None:
        """When `take_overdue` must be called next; None while paused."""
        if self.paused_at is not None:
            return None
        first = (next(iter(ends.values()), math.inf) for ends in (self._graces, self._releases))
        due = min(*first, self._decide_at)
        self.is_idle = due == math.inf
        return None if self.is_idle else due

    def until(self, name: str) -> float | None:
        """Return when the cluster will be disengaged, or considered for disengagement; None if it does not wait."""
        if name in self._waiting:
            return self._decide_at
        return self._graces.get(name, self._releases.get(name))

    def begin_wait(self, name: str, now: float) -> bool:
        """Record that an engaged cluster is not ready. Return whether to disengage it at once."""
        if self.until(name) is not None:
            return False
        self.is_idle = False
        if self._grace_s:
            self._graces[name] = now + self._wait_s
            return False
        return self._disengages_at_once(name, now)

    def take_overdue(
        self, engaged: int, now: float, is_unknown: Callable[[str], bool] = lambda _: False
    ) -> Iterator[str | None]:
        """Yield the clusters to disengage now, and None for each that waits on; nothing while paused. Those to which
        the caller does not come stay overdue.

        `engaged` is the number of engaged clusters. `is_unknown`: whether a cluster may be ready again; it stays.
        """
        if self.paused_at is not None:
            return
        for name in _due(self._graces, now):
            if is_unknown(name):
                self._graces[name] = now + self._wait_s
                yield None
            else:
                yield name if self._disengages_at_once(name, now) else None
        if now >= self._decide_at:
            self._decide(engaged, now)
        for name in _due(self._releases, now):
            if is_unknown(name):
                self._graces[name] = now + self._wait_s
                yield None
            else:
                yield name

    def _disengages_at_once(self, name: str, now: float) -> bool:
        """Return whether the cluster is one of the first few, to disengage at once. If not, make it wait."""
        if self._limits is not None:
            self._forget_disengaged(now)
            if len(self._disengaged) >= self._limits.count or self._waiting:
                self._wait_for_others(name, now)
                return False
            self._disengaged[name] = now
        return True

    def _wait_for_others(self, name: str, now: float) -> None:
        self._waiting[name] = None
        if self._decide_at == math.inf:
            self._decide_at = now + SETTLE_S

    def _decide(self, engaged: int, now: float) -> None:
        """Decide about the waiting clusters: they are held, or disengaged now, or after a hold at a limited rate."""
        assert self._limits is not None, "a cluster awaits its disengagement, but no removal limits are set"
        waiting = [*self._waiting]
        self._forget_disengaged(now)
        share = len(waiting) + len(self._disengaged), engaged + len(self._disengaged)
        if self.held is None and self._limits.is_burst(*share):
            self._decide_at = now + self._limits.verify_after_s
            self.held = HeldNotReady(
                now,
                self._decide_at,
                f"{share[0]} of {share[1]} engaged clusters became not ready within {self._limits.verify_after_s:g} s: "
                f"those still engaged remain so for {self._limits.verify_after_s:g} s, in case they become ready again",
            )
            return
        was_held, self.held = self.held, None
        self._waiting, self._decide_at = {}, math.inf
        if was_held is None:
            self._disengaged.update(dict.fromkeys(waiting, now))
        delay_s = 0.0 if was_held is None else 1 / self._limits.per_second
        self._releases.update({name: now + place * delay_s for place, name in enumerate(waiting)})
        self._releases = _sorted(self._releases)

    def _forget_disengaged(self, now: float) -> None:
        assert self._limits is not None
        for _ in _due(self._disengaged, now - self._limits.verify_after_s):
            pass

    def postpone(self, name: str, until: float) -> None:
        """Let a cluster that was overdue, but could not be disengaged, be overdue again at that time."""
        postponed = _sorted({**self._releases, name: until})
        self._releases.clear()  # in place: `take_overdue` may be reading it
        self._releases.update(postponed)
        self.is_idle = False

    def ended(self, name: str) -> None:
        """Record that the cluster was disengaged or drains, so that it no longer waits."""
        self._graces.pop(name, None)
        self._releases.pop(name, None)
        if name in self._waiting:
            del self._waiting[name]
            if not self._waiting:
                self.held, self._decide_at = None, math.inf

    def forget(self, name: str) -> None:
        """Forget the cluster: no grace period applies to its state any more."""
        self.ended(name)
        self._disengaged.pop(name, None)

    def pause(self, lost_at: float) -> None:
        """Record that the source has sent nothing since `lost_at`."""
        if self.paused_at is None:
            self.paused_at = lost_at

    def resume(self, now: float) -> None:
        """Record that the source sends again. The time in which it sent nothing counts for no grace period and no
        hold."""
        if (lost_at := self.paused_at) is None:
            return
        self.paused_at, lost_s = None, now - lost_at
        is_running = {name: until - self._wait_s <= lost_at for name, until in self._graces.items()}
        self._graces = _sorted({name: until + lost_s * is_running[name] for name, until in self._graces.items()})
        if self._waiting and (self.held is None or self.held.since <= lost_at):
            self._decide_at += lost_s
            if self.held is not None:
                self.held = msgspec.structs.replace(self.held, until=self._decide_at)
        self._releases = OrderedDict((name, due_at + lost_s) for name, due_at in self._releases.items())


def _due(times: OrderedDict[str, float], now: float) -> Iterator[str]:
    """Remove and yield the names that are due, from times that are sorted. The first of a dict is not found in constant
    time."""
    while times and next(iter(times.values())) <= now:
        name, _ = times.popitem(last=False)
        yield name


def _sorted(times: Mapping[str, float]) -> OrderedDict[str, float]:
    return OrderedDict(sorted(times.items(), key=lambda item: item[1]))
