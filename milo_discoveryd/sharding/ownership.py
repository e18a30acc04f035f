"""The consequences of a view for one member: the keys that it owns, and the keys that it will own after a release."""

import enum
from collections.abc import Mapping

import msgspec

from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.leases import View, ViewMember


class KeyOwnership(enum.Enum):
    OWNED = "owned"
    WAITING = "waiting"
    """The member will own the key once the former owner has released it and the Leases are known to be current."""
    FOREIGN = "foreign"


class Decision(msgspec.Struct, frozen=True):
    state: KeyOwnership
    member: str | None = None
    """The owner, or the former owner that has not released the key yet; None if there is no such member."""


class Ownership(msgspec.Struct, frozen=True, kw_only=True):
    """The ownership that a view gives to one member. Equal values give equal decisions for every key."""

    view: View
    member: str
    term: str
    unsettled: frozenset[str] = frozenset()
    """Members of the previous view that have neither acknowledged this view nor left or been evicted."""
    pending: Mapping[str, str] = {}
    """The keys that other members have not released, each with that member. The member may have lost
    the key in an earlier view."""
    may_engage: bool = True
    """False after a start and after an interruption, until the Leases are known to be current."""

    @property
    def is_in_view(self) -> bool:
        return self._is_me(self.view.members)

    def decide(self, key: str) -> Decision:
        owner = rendezvous.owner(key, self.view.weights)
        if owner != self.member or not self.is_in_view:
            return Decision(KeyOwnership.FOREIGN, owner)
        if not self.may_engage:
            return Decision(KeyOwnership.WAITING, self.member)
        if key in self.pending:
            return Decision(KeyOwnership.WAITING, self.pending[key])
        former = rendezvous.owner(key, self.view.previous_weights)
        if former in self.unsettled and not (former == self.member and self._is_me(self.view.previous)):
            return Decision(KeyOwnership.WAITING, former)
        return Decision(KeyOwnership.OWNED, self.member)

    def _is_me(self, members: Mapping[str, ViewMember]) -> bool:
        own_member = members.get(self.member)
        return own_member is not None and own_member.term == self.term
