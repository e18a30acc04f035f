"""The Leases of a shard group, one for each member and one for the view, and a member's requests to the Lease API.

Writes contain the resource version that they replace.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import TypeAlias

import msgspec

MAX_MEMBERS = 200
"""The most members of a view: each decision about a cluster computes a hash for each of them."""
PENDING_SIZE = 64 * 1024
"""Maximum total length of the pending clusters' names in a Lease, whose annotations may have 256 KiB. Above that,
the view does not change, and no more clusters of the member move, until enough of the pending clusters are released."""
MAX_LEASES = 2_000
"""Maximum number of Leases of a group: of its members, and of those that left within the last hour."""
PENDING_NAMES = 200_000
"""Maximum number of pending clusters in the Leases of a group together: those of one Lease can take 2 MB of memory."""
MAX_NUMBER = 2**53
"""The largest number of a view or renewal."""
NAMED = 5
"""How many Leases are named of those that have the same kind of problem."""


class MemberLease(msgspec.Struct, frozen=True, kw_only=True):
    """A member's Lease. The member's term lasts while the Lease is held."""

    member: str
    version: str = ""
    """The resource version; empty for a Lease that does not exist yet."""
    holder: str = ""
    """The process that renews the Lease; empty if the Lease was released or its holder evicted."""
    term: str = ""
    """Identifies an uninterrupted membership. A restarted process continues the term of its predecessor; after an
    eviction, the member starts another term. Empty if the Lease was released or its holder evicted."""
    weight: float = 1.0
    acknowledged: int = 0
    """The latest view for which this member has released the clusters that the view took from it, except `pending`."""
    pending: frozenset[str] = frozenset()
    """Clusters that a view took from this member and that its subscribers have not released."""
    is_leaving: bool = False
    """The member is leaving the group, so the next view must not contain it."""
    is_stopped: bool = False
    """The holder has stopped, and each process before it. One of the same name may continue the term at once."""
    renewal: int = 0
    """A number that is unique among the writes of a holder. Versions are not: they can repeat after a restore from a
    backup."""
    instance: str = ""
    """An identifier that no two running processes share, such as the ID of a container in a pod. Empty while a
    process before the holder may own clusters."""
    fleet: str = ""
    """A digest of the settings that define which clusters exist. It must be the same for all members."""
    problem: str = ""
    """Why the Lease is malformed, or empty. The member of a malformed Lease may own clusters until it is evicted."""

    @property
    def write_id(self) -> str:
        """Return an identifier of this write, unique among all writes of the Lease.

        Writes that are malformed in the same way count as one, since they are not renewals by the member. Writes in
        another format count separately: see `lease_objects`. Those of other programs to a cleared Lease count as one.
        """
        if self.problem:
            return f"{self.term} {self.problem}"
        return f"{'' if self.is_cleared else self.version} {self.holder} {self.renewal}"

    @property
    def content(self) -> "MemberLease":
        """Return the Lease without the fields that change with each write."""
        return msgspec.structs.replace(self, version="", renewal=0)

    @property
    def is_held(self) -> bool:
        return bool(self.holder)

    @property
    def is_cleared(self) -> bool:
        """Whether another program cleared the holder, which may not have read that yet: its term has not ended."""
        return not self.holder and bool(self.term)


class ViewMember(msgspec.Struct, frozen=True):
    term: str
    weight: float = 1.0


class View(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The members among which the clusters are distributed, and the members of the previous view."""

    number: int
    id: str
    """Distinguishes views with the same number, which can exist after the Leases were restored from a backup."""
    members: Mapping[str, ViewMember]
    previous: Mapping[str, ViewMember] = {}

    @cached_property
    def weights(self) -> dict[str, float]:
        return {name: member.weight for name, member in self.members.items()}

    @cached_property
    def previous_weights(self) -> dict[str, float]:
        return {name: member.weight for name, member in self.previous.items()}


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """All Leases of a group, from one list."""

    members: Mapping[str, MemberLease]
    view: View | None = None
    view_version: str = ""
    """The resource version of the view's Lease; empty if there is none."""
    problems: tuple[str, ...] = ()
    """Problems of Leases with the group's label: a malformed view, and Leases that do not belong to the group."""

    @property
    def all_problems(self) -> Iterator[str]:
        """Yield also the problems of members' Leases, of which only some are named."""
        yield from self.problems
        malformed = [lease.problem for lease in self.members.values() if lease.problem]
        yield from islice(malformed, NAMED)
        if len(malformed) > NAMED:
            yield f"{len(malformed) - NAMED} more Leases of the shard group are malformed"


class Read(msgspec.Struct, frozen=True):
    """A consistent list of all Leases of the group."""


class WriteLease(msgspec.Struct, frozen=True):
    """A write that creates or renews the member's own Lease."""

    lease: MemberLease


class Evict(msgspec.Struct, frozen=True):
    """A write that clears the Lease of another member, so that the next renewal by its holder fails."""

    lease: MemberLease


class Delete(msgspec.Struct, frozen=True):
    """The deletion of the Lease of a member that left, or was evicted, long ago."""

    lease: MemberLease


class WriteView(msgspec.Struct, frozen=True):
    view: View
    version: str


class WaitUntil(msgspec.Struct, frozen=True):
    until: float


Request: TypeAlias = Read | WriteLease | Evict | Delete | WriteView
Action: TypeAlias = Request | WaitUntil
