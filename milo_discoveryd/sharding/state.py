"""The states of a member of a shard group, each with what is known and legal in it, and the member's time limits.

    Joining ─────┬─ Lease written ──> Holding ── told to leave or stop ──> Leaving ── Lease released ──> Departed
       │         │                       │                                    │                             ^
       │ loss    └────────── Lost <──────┘ loss                               └──── loss ───────────────────┤
       └───────────────────>  │                                                                             │
    Joining or Lost, told to leave or stop: Resigned ───────────────────────────────────────────────────────┘

A loss: the Lease is held by another process, was deleted, changed or restored, or the view was.
"""

from collections.abc import Mapping
from math import inf
from typing import TypeAlias

import msgspec

from milo_discoveryd.sharding.leases import MemberLease
from milo_discoveryd.sharding.observed_group import ObservedGroup


class Tenure(msgspec.Struct, frozen=True, kw_only=True):
    """What a member knows while it holds its Lease."""

    lease: MemberLease
    """The member's own Lease as last written or read."""
    attempts: tuple[MemberLease, ...] = ()
    """The contents of later writes whose results are unknown."""
    attempted_at: float | None = None
    """When the first of these writes started, also if its content is that of `lease`; None if there are none."""
    renewed_at: float
    """When the last successful renewal started."""
    is_unlisted: bool = False
    """Whether a list has lacked the Lease since: the next write shows whether it was deleted."""
    engage_at: float = -inf
    acknowledge_at: float = -inf
    claim: "Claim | None" = None
    """None while fenced: the member then claims nothing, and renews its Lease."""
    drained: int = 0
    """The latest view for which all clusters that the view took from this member are released, except `pending`."""
    pending: frozenset[str] | None = frozenset()
    """None while it is unknown which clusters are not released: then nothing is acknowledged, whatever was known."""
    awaits_release: bool = False
    """Whether clusters would be engaged that another member has not released."""

    @property
    def is_confirmed(self) -> bool:
        """Whether every other member has renewed its Lease since this one started or was interrupted."""
        return self.claim is not None and self.claim.is_confirmed

    def has_written(self, lease: MemberLease) -> bool:
        """Return whether this process may have written the content of the Lease."""
        return lease.content in (self.lease.content, *self.attempts)

    def attempted(self, lease: MemberLease, now: float) -> "Tenure":
        """Record a write before it is sent: it may take effect without a response."""
        attempts = self.attempts if self.has_written(lease) else (*self.attempts, lease.content)
        attempted_at = now if self.attempted_at is None else self.attempted_at
        return msgspec.structs.replace(self, attempts=attempts, attempted_at=attempted_at)

    def renewed(self, lease: MemberLease, started_at: float) -> "Tenure":
        return msgspec.structs.replace(
            self, lease=lease, attempts=(), attempted_at=None, renewed_at=started_at, is_unlisted=False
        )

    def read(self, lease: MemberLease) -> "Tenure":
        """Record the Lease as read, which this process has written: perhaps by a write whose result was unknown."""
        if self.attempted_at is None or lease.renewal <= self.lease.renewal:
            return msgspec.structs.replace(self, lease=lease)
        renewed_at = max(self.renewed_at, self.attempted_at)
        return msgspec.structs.replace(self, lease=lease, attempted_at=None, renewed_at=renewed_at)

    def resumed(self, since: float) -> "Tenure":
        """Claim ownership again, from the start of a renewal."""
        return self if self.claim is not None else msgspec.structs.replace(self, claim=Claim(since))

    def interrupted(self, acknowledge_at: float) -> "Tenure":
        """Claim nothing, and acknowledge nothing until the subscribers' handlers have had time to finish."""
        if self.claim is None:
            return self
        return msgspec.structs.replace(self, claim=None, acknowledge_at=max(self.acknowledge_at, acknowledge_at))

    def released(self, view: int, pending: frozenset[str] | None) -> "Tenure":
        """Record that all clusters that the view took from the member are released, except `pending`."""
        return self if view < self.drained else msgspec.structs.replace(self, drained=view, pending=pending)


class Claim(msgspec.Struct, frozen=True):
    """An uninterrupted time in which the member renews its Lease."""

    since: float
    """When the first renewal started."""
    unconfirmed: Mapping[str, str] | None = None
    """For each other member whose Lease has not changed since then: the last write of that Lease. None before the first
    read."""

    @property
    def is_confirmed(self) -> bool:
        return self.unconfirmed is not None and not self.unconfirmed

    def confirmed_by(self, writes: Mapping[str, str]) -> "Claim":
        """`writes`: the present write of each other member's Lease that is held, from a read after `since`."""
        if self.unconfirmed is not None:
            writes = {name: write for name, write in self.unconfirmed.items() if writes.get(name) == write}
        return Claim(self.since, writes)


class Joining(msgspec.Struct, frozen=True, tag=True):
    """The process has not held its member's Lease, and may continue the term of the process before it."""


class Lost(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The process must not continue a term: it waits, and then joins in another one."""

    rejoin_at: float
    engage_at: float = -inf
    acknowledge_at: float = -inf
    problem: str = ""
    """Why the member ended its term, if an administrator should know."""


class Resigned(msgspec.Struct, frozen=True, tag=True):
    """The process was told to end without the Lease: it ends, unless a write of the Lease is under way and succeeds."""

    former: Joining | Lost
    keeps_term: bool


class Holding(msgspec.Struct, frozen=True, tag=True):
    """The process holds the Lease, and owns what the view gives to it, unless it is fenced."""

    tenure: Tenure


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The process holds the Lease, and ends: it hands all clusters over, or keeps the term for a successor of the same
    name."""

    tenure: Tenure
    keeps_term: bool


class Departed(msgspec.Struct, frozen=True, tag=True):
    """The process has no part in the group anymore, and makes no requests."""

    is_loss: bool = False
    """Whether it ended by a loss, and not by its own write of the Lease."""


Phase: TypeAlias = Joining | Lost | Resigned | Holding | Leaving | Departed


class Pacing(msgspec.Struct, frozen=True, kw_only=True):
    """When the next request may be made, and which writes a read has to precede."""

    is_read_due: bool = True
    """Whether a read has to precede any write: the member's own Lease may have changed."""
    is_group_outdated: bool = False
    """Whether a read has to precede a write of anything but the member's own Lease, which it renews meanwhile."""
    has_failed_write: bool = False
    """Whether a write has failed since the last read: it may have taken effect."""
    read_at: float = -inf
    """No read before."""
    write_at: float = -inf
    """No write before."""
    group_write_at: float = -inf
    """No write of the view and no eviction before, after one that failed."""
    delete_at: float = -inf
    """No deletion before; infinite while one is in flight."""
    conflict_free_at: float = -inf
    """When another conflict may be followed by a read at once: reads that follow conflicts are spaced."""

    @property
    def next_at(self) -> float:
        return self.read_at if self.is_read_due else min(self.read_at, self.write_at)

    def read(self) -> "Pacing":
        return msgspec.structs.replace(
            self, is_read_due=False, is_group_outdated=False, has_failed_write=False, read_at=-inf
        )

    def unlisted(self, read_at: float) -> "Pacing":
        return msgspec.structs.replace(self, read_at=read_at)

    def written(self) -> "Pacing":
        return msgspec.structs.replace(self, write_at=-inf)

    def conflicted(self, now: float, interval_s: float, *, of_own: bool) -> "Pacing":
        """`of_own`: whether the write was of the member's own Lease."""
        return msgspec.structs.replace(
            self,
            is_read_due=self.is_read_due or of_own,
            is_group_outdated=True,
            read_at=max(self.read_at, self.conflict_free_at),
            conflict_free_at=max(now, self.conflict_free_at) + interval_s,
        )

    def failed(self, retry_at: float, stated_at: float, *, of_read: bool) -> "Pacing":
        """Delay all requests until `retry_at`, and those of the kind that failed until the server's `stated_at`.

        No read is due: a write is repeated. If it did take effect, the version differs, and a read follows.
        """
        read_at = max(self.read_at, retry_at, stated_at if of_read else -inf)
        write_at = max(self.write_at, retry_at, -inf if of_read else stated_at)
        return msgspec.structs.replace(self, has_failed_write=not of_read, read_at=read_at, write_at=write_at)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that a member keeps between two requests."""

    phase: Phase = Joining()
    group: ObservedGroup = ObservedGroup()
    pacing: Pacing = Pacing()
    terms: int = 0
    renewals: int = 0
    """The renewal number of the last successful write of the own Lease."""
    retry_at: Mapping[str, float] = {}
    """When each write about the group that failed is tried again: by the member that is to be evicted, or whose Lease
    is to be deleted, and "" for the view."""
