"""The Leases of a group, as its members see them: one for each member, and one for the view."""

from collections.abc import Mapping

import msgspec


class MemberLease(msgspec.Struct, frozen=True, kw_only=True):
    """A member's Lease. While it is held, its term is alive."""

    member: str
    version: str = ""
    """The resource version; empty for a Lease that is to be created."""
    holder: str = ""
    """The process that renews the Lease; empty if it was released, or evicted."""
    term: str = ""
    """Identifies an uninterrupted membership. A restarted process continues the term of its predecessor; after an
    eviction, the member has another."""
    weight: float = 1.0
    acknowledged: int = 0
    """The latest view whose losses were released by this member."""
    is_leaving: bool = False
    """The member leaves the group: the next view is to be without it."""
    is_stopped: bool = False
    """The holder has stopped. A process of the same name continues its term at once."""
    renewal: int = 0
    """Differs in each write of a holder. Versions alone repeat after the Leases were restored from a backup."""
    instance: str = ""
    """An identifier of which no two processes (containers of a pod) run at a time."""

    @property
    def seen_as(self) -> str:
        """Identify this write among all of the Lease."""
        return f"{self.version} {self.holder} {self.renewal}"

    @property
    def is_held(self) -> bool:
        return bool(self.holder)


class ViewMember(msgspec.Struct, frozen=True):
    term: str
    weight: float = 1.0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The members among which the clusters are distributed, and those of the view before."""

    number: int
    id: str
    """Distinguishes views of the same number, which exist after the Leases were restored from a backup."""
    members: Mapping[str, ViewMember]
    previous: Mapping[str, ViewMember] = {}


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """All Leases of a group, from one list."""

    members: Mapping[str, MemberLease]
    view: View | None = None
    view_version: str = ""
    """The resource version of the view's Lease; empty if there is none."""
