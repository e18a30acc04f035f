"""The requests of a member to the Lease API. Writes contain the resource version that they replace."""

from typing import TypeAlias

import msgspec

from milo_discoveryd.sharding.leases import MemberLease, View


class Read(msgspec.Struct, frozen=True):
    """A consistent list of all Leases of the group."""


class WriteLease(msgspec.Struct, frozen=True):
    """A write that creates or renews the member's own Lease."""

    lease: MemberLease


class Evict(msgspec.Struct, frozen=True):
    """A write that clears the Lease of another member, so that its holder's next renewal fails."""

    lease: MemberLease


class Delete(msgspec.Struct, frozen=True):
    """The deletion of the Lease of a member that left long ago."""

    lease: MemberLease


class WriteView(msgspec.Struct, frozen=True):
    view: View
    version: str


class WaitUntil(msgspec.Struct, frozen=True):
    until: float


Request: TypeAlias = Read | WriteLease | Evict | Delete | WriteView
Action: TypeAlias = Request | WaitUntil
