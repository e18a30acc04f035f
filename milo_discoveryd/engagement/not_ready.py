"""Decides when clusters that are no longer ready are disengaged: after the grace period, and not while a large part of
the fleet is not ready.

A faulty controller can make thousands of objects not ready within a second, and operators would stop work on all of
them. So the first few clusters are disengaged at once, and the others wait for `SETTLE_S`. If more clusters are not
ready than the mass-removal limit allows, the clusters that wait stay engaged for `verify_after_s`; those that are still
not ready after that are disengaged at a limited rate. A single tenant's burst holds only its own clusters, and tenants
take turns after a hold.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.tenant_counts import TenantCounts, in_turns

SETTLE_S = 1.0
"""How long clusters beyond the first few wait before they are compared with the mass-removal limit."""


class HeldNotReady(msgspec.Struct, frozen=True):
    """A hold: a large part of the fleet is not ready, and stays engaged for now."""

    since: float
    until: float
    message: str


class _Due(NamedTuple):
    at: float
    tenant: str = ""


class NotReadyClusters:
    """The engaged clusters whose objects are not ready, and when to disengage each of them. Without `limits`, no
    cluster is held."""

    def __init__(self, grace_s: float = 0.0, limits: RemovalLimits | None = None) -> None:
        self._grace_s = grace_s
        self._limits = limits
        self._wait_s = grace_s or (0.0 if limits is None else limits.verify_after_s) or SETTLE_S
        """The length of grace periods; without these, how long clusters wait that may be ready again: never 0."""
        self._graces = OrderedDict[str, _Due]()
        """The end of each grace period, earliest first; all grace periods have the same length."""
        self._waiting: dict[str, str] = {}
        """Clusters whose grace period is over, and that wait until `_decide_at`, with the tenant of each."""
        self._decide_at = math.inf
        """When to decide about all waiting clusters: soon after the first of them."""
        self._kept: dict[str, str] = {}
        """Clusters that stay engaged until the end of the hold, with the tenant of each."""
        self._releases = OrderedDict[str, _Due]()
        """When to disengage each cluster about which it was decided, earliest first: those that were held at a limited
        rate."""
        self._disengaged = OrderedDict[str, _Due]()
        """When each cluster that is still not ready was disengaged, oldest first. Entries are kept for the duration of
        a hold.
        """
        self.held: HeldNotReady | None = None
        """Why clusters are kept; None if none is."""
        self.is_idle = True
        """Whether no cluster waits, so that nothing is due."""
        self.paused_at: float | None = None
        """Since when the source has sent nothing, so that no grace period and no hold ends; None while it sends."""

    @property
    def held_count(self) -> int:
        return len(self._kept) + len(self._releases)

    @property
    def due_at(self) -> float | None:
        """When `take_overdue` must be called next; None while paused."""
        if self.paused_at is not None:
            return None
        first = [due.at for ends in (self._graces, self._releases) for due in islice(ends.values(), 1)]
        due = min(*first, self._decide_at, math.inf if self.held is None else self.held.until)
        self.is_idle = due == math.inf
        return None if self.is_idle else due

    def until(self, name: str) -> float | None:
        """Return when the cluster will be disengaged, or considered for disengagement; None if it does not wait."""
        if name in self._waiting:
            return self._decide_at
        if name in self._kept and self.held is not None:
            return self.held.until
        due = self._graces.get(name) or self._releases.get(name)
        return None if due is None else due.at

    def begin_wait(self, name: str, now: float, tenant: str = "") -> bool:
        """Record that an engaged cluster is not ready. Return whether to disengage it at once."""
        if self.until(name) is not None:
            return False
        self.is_idle = False
        if self._grace_s:
            self._graces[name] = _Due(now + self._wait_s, tenant)
            return False
        return self._disengages_at_once(name, tenant, now)

    def take_overdue(
        self, engaged: int, now: float, is_unknown: Callable[[str], bool] = lambda _: False
    ) -> Iterator[str | None]:
        """Yield the clusters to disengage now, and None for each that waits on; nothing while paused. Those to which
        the caller does not come stay overdue.

        `engaged` is the number of engaged clusters. `is_unknown`: whether a cluster may be ready again; it stays.
        """
        if self.paused_at is not None:
            return
        for name, tenant in _due(self._graces, now):
            if is_unknown(name):
                self._graces[name] = _Due(now + self._wait_s, tenant)
                yield None
            else:
                yield name if self._disengages_at_once(name, tenant, now) else None
        if self.held is not None and now >= self.held.until:
            self._release_kept(now)
        if now >= self._decide_at:
            self._decide(engaged, now)
        for name, tenant in _due(self._releases, now):
            if is_unknown(name):
                self._graces[name] = _Due(now + self._wait_s, tenant)
                yield None
            else:
                yield name

    def _disengages_at_once(self, name: str, tenant: str, now: float) -> bool:
        """Return whether the cluster is one of the first few, to disengage at once. If not, make it wait."""
        if self._limits is not None:
            self._forget_disengaged(now)
            if len(self._disengaged) >= self._limits.count or self._waiting or self._kept:
                self._waiting[name] = tenant
                if self._decide_at == math.inf:
                    self._decide_at = now + SETTLE_S
                return False
            self._disengaged[name] = _Due(now, tenant)
        return True

    def _decide(self, engaged: int, now: float) -> None:
        """Decide about the waiting clusters: they are held, or disengaged now."""
        assert self._limits is not None, "a cluster awaits its disengagement, but no removal limits are set"
        self._forget_disengaged(now)
        ended = (due.tenant for due in self._disengaged.values())
        counts, engaged = TenantCounts(), engaged + len(self._disengaged)
        for tenant in chain(self._waiting.values(), self._kept.values(), ended):
            counts.add(tenant)
        waiting, self._waiting, self._decide_at = self._waiting, {}, math.inf
        for name, tenant in waiting.items():
            if self._limits.is_burst(counts.counted_for(tenant), engaged):
                self._kept[name] = tenant
            else:
                self._disengaged[name] = self._releases[name] = _Due(now, tenant)
        self._releases = _sorted(self._releases)
        if self._kept and self.held is None:
            during_s = self._limits.verify_after_s
            self.held = HeldNotReady(
                now,
                now + during_s,
                f"{counts.total} of {engaged} engaged clusters became not ready within {during_s:g} s: those still "
                f"engaged remain so for {during_s:g} s, in case they become ready again",
            )

    def _release_kept(self, now: float) -> None:
        """Disengage the clusters that were held at a limited rate. Tenants take turns."""
        assert self._limits is not None, "clusters are held, but no removal limits are set"
        for place, name in enumerate(in_turns(self._kept, self._kept.__getitem__)):
            self._releases[name] = _Due(now + place / self._limits.per_second, self._kept[name])
        self._kept, self.held, self._releases = {}, None, _sorted(self._releases)

    def _forget_disengaged(self, now: float) -> None:
        assert self._limits is not None
        for _ in _due(self._disengaged, now - self._limits.verify_after_s):
            pass

    def postpone(self, name: str, until: float) -> None:
        """Let a cluster that was overdue, but could not be disengaged, be overdue again at that time."""
        postponed = _sorted({**self._releases, name: _Due(until)})
        self._releases.clear()  # in place: `take_overdue` may be reading it
        self._releases.update(postponed)
        self.is_idle = False

    def ended(self, name: str) -> None:
        """Record that the cluster was disengaged or drains, so that it no longer waits."""
        self._graces.pop(name, None)
        self._releases.pop(name, None)
        self._waiting.pop(name, None)
        self._kept.pop(name, None)
        if not self._waiting:
            self._decide_at = math.inf
        if not self._kept:
            self.held = None

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
        self._graces = _sorted(
            {
                name: due._replace(at=due.at + lost_s) if due.at - self._wait_s <= lost_at else due
                for name, due in self._graces.items()
            }
        )
        self._decide_at += lost_s
        if self.held is not None and self.held.since <= lost_at:
            self.held = msgspec.structs.replace(self.held, until=self.held.until + lost_s)
        self._releases = OrderedDict((name, due._replace(at=due.at + lost_s)) for name, due in self._releases.items())


def _due(ends: OrderedDict[str, _Due], now: float) -> Iterator[tuple[str, str]]:
    """Remove and yield the names that are due, and their tenants, from times that are sorted. The first of a dict is
    not found in constant time."""
    while ends and next(iter(ends.values())).at <= now:
        name, due = ends.popitem(last=False)
        yield name, due.tenant


def _sorted(ends: Mapping[str, _Due]) -> OrderedDict[str, _Due]:
    return OrderedDict(sorted(ends.items(), key=lambda item: item[1].at))
