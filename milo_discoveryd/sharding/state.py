"""The state of a group member between two requests, and its time limits."""

import enum
from collections.abc import Mapping
from math import inf

import msgspec

from milo_discoveryd.sharding.leases import GroupState, MemberLease, View, ViewMember


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    renew_interval_s: float = 10.0
    read_interval_s: float = 12.0
    unsettled_read_interval_s: float = 0.5
    """Interval between reads, and between batches of releases, while a view changes. A cluster that moves may wait for
    both."""
    retry_interval_s: float = 1.0
    fence_after_s: float = 20.0
    evict_after_s: float = 33.0
    debounce_s: float = 5.0
    retention_s: float = 3600.0
    """How long the Lease of a member that left the group or was evicted is kept."""

    @property
    def margin_s(self) -> float:
        """The time between the fence and the eviction, in which the subscribers' handlers must end."""
        return self.evict_after_s - self.fence_after_s


TIMING = Timing()


class Intent(enum.Enum):
    STAY = "stay"
    LEAVE = "leave"
    """Hand over all keys, then release the Lease."""
    STOP = "stop"
    """Keep the term for a successor of the same name."""
    ENDED = "ended"


class ObservedWrite(msgspec.Struct, frozen=True):
    write: str
    since: float
    pending: frozenset[str] = frozenset()
    """The clusters that the Lease listed as pending when it was last read."""


class Candidates(msgspec.Struct, frozen=True):
    """The members with a valid Lease and a weight above 0 that are not leaving. The next view contains those of them
    that may engage clusters."""

    members: Mapping[str, ViewMember]
    since: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state that a member keeps between two requests."""

    group: GroupState | None = None
    read_at: float = -inf
    """When the last successful read started."""
    is_read_due: bool = True
    retry_at: float = -inf
    observed_writes: Mapping[str, ObservedWrite] = {}
    """The last write of each Lease, and when it was first observed. `write` is empty for a member of the view that has
    no Lease."""
    candidates: Candidates = Candidates({}, -inf)
    lease: MemberLease | None = None
    """The member's own Lease as last written, while this process holds it."""
    attempts: tuple[MemberLease, ...] = ()
    """The contents of later writes whose results are unknown."""
    renewed_at: float = -inf
    """When the last successful renewal started."""
    has_held: bool = False
    """Whether this process has held the Lease. If so, it does not continue the term of another process."""
    renewals: int = 0
    own_renewal: int = 0
    """The renewal number of the member's own Lease as last read or written."""
    terms: int = 0
    rejoin_at: float = -inf
    latest_view: View | None = None
    """The latest view that was read or written."""
    resumed_at: float | None = None
    """When the first renewal since the last interruption started; None while fenced."""
    unconfirmed: Mapping[str, str] | None = None
    """For each other member whose Lease has not changed since `resumed_at`: the last write of that Lease. None before
    the first read."""
    engage_at: float = -inf
    acknowledge_at: float = -inf
    drained: int = 0
    """The latest view for which all clusters that the view took from this member are released, except `pending`."""
    pending: frozenset[str] = frozenset()
    problem: str = ""
    """Why the member ended its term and joins again."""
    intent: Intent = Intent.STAY
