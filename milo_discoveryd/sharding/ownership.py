"""The consequences of a view for one member: the keys that it owns, and the keys that it will own after a release."""

import enum
from collections.abc import Callable, Mapping

import msgspec

from milo_discoveryd.sharding import rendezvous
from milo_discoveryd.sharding.leases import View, ViewMember

_DROP_AT = 1000
"""The number of keys at which owners of keys that no longer exist are dropped for the first time."""


class KeyOwnership(enum.Enum):
    OWNED = "owned"
    WAITING = "waiting"
    """The member will own the key once the former owner has released it and the Leases are known to be current."""
    FOREIGN = "foreign"


class Decision(msgspec.Struct, frozen=True):
    state: KeyOwnership
    member: str | None = None
    """The owner, or the former owner that has not released the key yet; None if there is no such member."""


class Owners:
    """The owners of keys by one view, each computed once: that takes a hash for each member."""

    def __init__(self, view: View, is_known: Callable[[str], bool] = lambda _: True) -> None:
        """`is_known`: whether a key still exists; others are dropped from time to time."""
        self.view = view
        self._is_known = is_known
        self._present: dict[str, str | None] = {}
        self._former: dict[str, str | None] = {}
        self._limit = _DROP_AT

    def __contains__(self, key: str) -> bool:
        """Return whether the owner of a key was computed."""
        return key in self._present

    def present(self, key: str) -> str | None:
        if key not in self._present:
            self._drop_unknown()
            self._present[key] = rendezvous.owner(key, self.view.weights)
        return self._present[key]

    def former(self, key: str) -> str | None:
        if key not in self._former:
            self._former[key] = rendezvous.owner(key, self.view.previous_weights)
        return self._former[key]

    def _drop_unknown(self) -> None:
        if len(self._present) >= self._limit:
            self._present = {key: owner for key, owner in self._present.items() if self._is_known(key)}
            self._former = {key: owner for key, owner in self._former.items() if key in self._present}
            self._limit = max(_DROP_AT, 2 * len(self._present))


class Ownership(msgspec.Struct, frozen=True, kw_only=True):
    """The ownership that a view gives to one member. Equal values give equal decisions for every key."""

    view: View
    member: str
    term: str
    unsettled: frozenset[str] = frozenset()
    """Members of the previous view that have neither acknowledged this view nor left or been evicted."""
    pending: tuple[tuple[str, frozenset[str]], ...] = ()
    """Other members, each with the keys that it has not released. It may have lost them in an earlier view."""
    may_engage: bool = True
    """False after a start and after an interruption, until the Leases are known to be current."""

    @property
    def is_in_view(self) -> bool:
        return self._is_me(self.view.members)

    @property
    def is_newcomer(self) -> bool:
        """Whether the member has had no part of the clusters yet."""
        return not self.is_in_view and not self._is_me(self.view.previous)

    def has_view_of(self, other: "Ownership") -> bool:
        """Return whether both ownerships give the same keys to the same term of the member, now or after a release."""
        return (self.view, self.term) == (other.view, other.term)

    def decide(self, key: str, owners: Owners | None = None) -> Decision:
        """`owners`: those of the view, if they are kept."""
        owners = owners or Owners(self.view)
        owner = owners.present(key)
        if owner != self.member or not self.is_in_view:
            return Decision(KeyOwnership.FOREIGN, owner)
        if not self.may_engage:
            return Decision(KeyOwnership.WAITING, self.member)
        for member, keys in self.pending:
            if key in keys:
                return Decision(KeyOwnership.WAITING, member)
        former = owners.former(key)
        if former in self.unsettled and not (former == self.member and self._is_me(self.view.previous)):
            return Decision(KeyOwnership.WAITING, former)
        return Decision(KeyOwnership.OWNED, self.member)

    def _is_me(self, members: Mapping[str, ViewMember]) -> bool:
        own_member = members.get(self.member)
        return own_member is not None and own_member.term == self.term
