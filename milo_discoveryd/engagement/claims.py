"""Decides which object stands for a cluster if several objects claim one project UID, or one address.

A user who can write an object can write another project's UID in a label, or another cluster's address in a field. So
claims are judged over all sources of the daemon, in the order in which it learned of them: the earliest is valid. If
none is known to be earlier, because one list contained several, or the first lists of several sources did, none is.
But a project that two sources show, as a Project and by a label of a ProjectControlPlane, is that of the source which
is configured first.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import NotReady, Ready
from milo_kube import addresses


class ValueClaim(msgspec.Struct, frozen=True, gc=False):
    """An object's claim on a value. Positions grow with the time at which the daemon learned of the claims."""

    server: str
    uid: str
    """The object's UID at that API server."""
    is_stated: bool
    """The object states the value; otherwise its API server or the daemon's configuration does."""
    position: int
    is_first: bool
    """It was found in the first list of a source, so that it may be older than its position."""
    rank: int = 0
    """The position of the source in the configuration."""


class ValueClaims(ABC):
    """The claims on values of one kind. Nothing is stored until an object states such a value."""

    what: str
    trusts_servers: bool
    """Whether a value that no object states is right whichever server it is from. Otherwise it is only known to be
    right among the objects of that server."""

    def __init__(self) -> None:
        self.is_active = False
        self._by_value: dict[str, dict[str, ValueClaim]] = {}
        """The claims on each value, by the key of the cluster."""
        self._by_key: dict[str, tuple[str, ...]] = {}
        """The values that each cluster's object claims; the last one is that of its present state."""

    @abstractmethod
    def states(self, seen: Ready | NotReady) -> bool:
        """Return whether the object states such a value itself."""

    @abstractmethod
    def value_of(self, seen: Ready | NotReady) -> str:
        """Return the value that an object claims; empty if it claims none."""

    def add(self, key: str, value: str, claim: ValueClaim) -> set[str]:
        """Claim a value for a cluster. Return the keys of other clusters whose claims may be judged otherwise now.

        An object that changes its claim keeps the former one as well while the new one is not valid, because its
        cluster stays engaged as it was.
        """
        held, claims = self._by_key.get(key, ()), self._by_value.setdefault(value, {})
        known = claims.get(key)
        if known is not None:
            claim = msgspec.structs.replace(claim, position=known.position, is_first=known.is_first)
        claims[key] = claim
        others = set() if known == claim else claims.keys() - {key}
        former = tuple(each for each in held if each != value)
        self._by_key[key] = (*former, value)
        if former and self.is_valid(key):
            self._by_key[key] = (value,)
            for each in former:
                others |= self._remove(key, each)
        return others

    def is_valid(self, key: str) -> bool:
        """Return whether the present claim of a cluster's object, if it makes one, is valid."""
        if key not in self._by_key:
            return True
        claims = self._by_value[self.value(key)]
        return len(claims) == 1 or all(self._precedes(claims[key], other) for other in claims.values())

    def value(self, key: str) -> str:
        """Return the value that a cluster's object claims at present."""
        return self._by_key[key][-1]

    def release(self, key: str) -> set[str]:
        """Drop the claims of a cluster's object. Return the keys of clusters whose claims may be judged otherwise."""
        found: set[str] = set()
        for value in self._by_key.pop(key, ()):
            found |= self._remove(key, value)
        return found

    def _remove(self, key: str, value: str) -> set[str]:
        claims = self._by_value[value]
        del claims[key]
        if not claims:
            del self._by_value[value]
        return {*claims}

    def _precedes(self, own: ValueClaim, other: ValueClaim) -> bool:
        if (own.server, own.uid) == (other.server, other.uid) or not (own.is_stated or other.is_stated):
            return True  # one object that two sources show, or values that no object states
        if own.is_stated != other.is_stated and (self.trusts_servers or own.server == other.server):
            return other.is_stated
        if not (own.is_first and other.is_first):
            return own.position < other.position
        return own.is_stated != other.is_stated and own.rank < other.rank


class UidClaims(ValueClaims):
    """In mode `project-control-plane`, a label states the project's UID. Each object without it claims its own."""

    what = "project UID"
    trusts_servers = False

    def states(self, seen: Ready | NotReady) -> bool:
        return self.value_of(seen) != seen.uid

    def value_of(self, seen: Ready | NotReady) -> str:
        return (seen.target.uid if isinstance(seen, Ready) else seen.project_uid) or seen.uid


class AddressClaims(ValueClaims):
    """In mode `declarative`, a field states the address. All other addresses follow from the configuration."""

    what = "address"
    trusts_servers = True

    def states(self, seen: Ready | NotReady) -> bool:
        return isinstance(seen, Ready) and seen.target.states_address

    def value_of(self, seen: Ready | NotReady) -> str:
        return address(seen.target) if isinstance(seen, Ready) else ""


class Claimants(Protocol):
    """The clusters of a registry, as far as claims concern them."""

    def claim_all(self, claims: ValueClaims) -> None:
        """Add the claims of all clusters."""

    def judge(self, key: str, now: Moment) -> list[Event]:
        """Engage or disengage a cluster whose claims may be judged otherwise than before."""


class FleetClaims:
    """The claims in all registries of the daemon."""

    def __init__(self) -> None:
        self.kinds: tuple[ValueClaims, ...] = (UidClaims(), AddressClaims())
        self.members: list[Claimants] = []

    def begin(self, claims: ValueClaims) -> None:
        """Begin to store claims of a kind, because an object states such a value."""
        claims.is_active = True
        for each in self.members:
            each.claim_all(claims)

    def judge(self, keys: Iterable[str], now: Moment) -> list[Event]:
        return [event for key in sorted(keys) for each in self.members for event in each.judge(key, now)]

    def problem(self, key: str) -> str:
        """Return why a cluster's object must not stand for it; empty if it may."""
        for each in self.kinds:
            if not each.is_valid(key):
                return f"{each.what} {each.value(key)} is claimed by another object too"
        return ""

    def release(self, key: str) -> set[str]:
        """Drop a cluster's claims. Return the keys of clusters whose claims may be judged otherwise."""
        return set().union(*(each.release(key) for each in self.kinds))


def address(target: Target) -> str:
    """Return the address of a cluster, equal for two URLs of one server and path."""
    parts = urlsplit(target.endpoint)
    host = parts.hostname or ""
    return f"{addresses.ip_address(host) or host}:{parts.port or 443}{parts.path.rstrip('/')}"
