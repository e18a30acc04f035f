"""Decides when the credentials of former owners count as revoked at an issuer, before a member engages their clusters.

The clusters that a member gains are cleared once all credentials that other members obtained for them are revoked, and
have expired from the token caches of API servers. The revocation begins when the former owner has released the clusters
or was evicted, because from then on it obtains no further credentials.
"""

from collections.abc import Callable

import msgspec

from milo_discoveryd.sharding.ownership import KeyOwnership, Ownership

TOKEN_CACHE_S = 11.0
"""How long a revoked token may still be accepted: API servers cache a verification for 10 s, and notice a deletion
within a second."""


class Revocation(msgspec.Struct, frozen=True):
    """The credentials to revoke: all that other members obtained for the clusters that the ownership gives to this
    member. It is permitted in its period alone: see `CredentialFence.covers`."""

    ownership: Ownership
    period: int


class _Cleared(msgspec.Struct, frozen=True):
    """An ownership for which the credentials of other members were revoked."""

    ownership: Ownership
    unrevoked: frozenset[str]
    """The clusters whose credentials could not be revoked."""

    def clears(self, key: str) -> bool:
        return key not in self.unrevoked and self.ownership.decide(key).state is KeyOwnership.OWNED


class CredentialFence:
    def __init__(self) -> None:
        self._ownership: Ownership | None = None
        self._cleared: list[_Cleared] = []
        """What was revoked in the present view."""
        self._period = 0
        """Counts views and interruptions. A revocation that began in an earlier period clears nothing, because other
        members may have obtained credentials since."""

    def follow(self, ownership: Ownership | None) -> None:
        """Set the ownership of the member; None if it must not own anything."""
        former, self._ownership = self._ownership, ownership
        if ownership is None or former is None or (former.view, former.term) != (ownership.view, ownership.term):
            self._cleared.clear()
            self._period += 1

    @property
    def due(self) -> Revocation | None:
        """Return the next revocation, or None if none is due."""
        ownership = self._ownership
        if ownership is None or not ownership.may_engage:
            return None
        if any(cleared.ownership == ownership and not cleared.unrevoked for cleared in self._cleared):
            return None
        return Revocation(ownership, self._period)

    def covers(self, revocation: Revocation, present: Callable[[], Ownership | None], key: str) -> bool:
        """Return whether the credentials of other members for a cluster may be revoked now.

        `present` returns the ownership at this moment: this process may have been paused since the revocation began,
        and the credentials then belong to the rightful owner.
        """
        if revocation.ownership.decide(key).state is not KeyOwnership.OWNED:
            return False
        self.follow(present())
        return revocation.period == self._period

    def revoked(self, revocation: Revocation, unrevoked: frozenset[str] = frozenset()) -> None:
        """Record that the credentials were revoked, but for those of the clusters `unrevoked`, and that
        `TOKEN_CACHE_S` has passed since."""
        if revocation.period == self._period:
            others = []
            for cleared in self._cleared:
                if cleared.ownership == revocation.ownership:
                    unrevoked = unrevoked & cleared.unrevoked
                else:
                    others.append(cleared)
            self._cleared = [*others, _Cleared(revocation.ownership, unrevoked)]

    @property
    def is_cleared(self) -> bool:
        """Whether at least some clusters may be engaged."""
        return bool(self._cleared)

    def clears(self, key: str) -> bool:
        return any(cleared.clears(key) for cleared in self._cleared)
