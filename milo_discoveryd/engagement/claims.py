"""The clusters of all sources, and which object may engage a cluster if several claim the same project UID or address.

A user who can write an object can write another project's UID in a label, or another cluster's address in a field. So
claims are compared across all sources. Values that come from API servers or the settings do not conflict with each
other, and precede values that objects state: such an address precedes the addresses in all objects, such a UID only the
UIDs in objects on the same API server. Other claims are compared in the order in which the daemon observed them: the
earliest is valid. If the order is unknown, because one list contained several claims, or the first lists of several
sources did, none is valid. One exception is a project that two sources show, one as a Project and the other by a label
of a ProjectControlPlane: it belongs to the source that is configured first.

A cluster is contested if its object is ready, but has a claim that is not valid. Adding or dropping a claim returns the
clusters whose claims must be evaluated again. Clusters that are contested now are disengaged first, then the observed
state is applied, and then the clusters that are no longer contested are engaged. So no two clusters are engaged by
claims on the same value at the same revision.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.engagement.engagement import ClusterState, ClusterStates, Engagements
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotReady, Ready
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.objects.store import RESTORED_POSITION, ObjectPosition
from milo_kube import addresses
from milo_kube.moment import Moment

_CLAIMING = (Ready, NotReady)
_FEW = 8
"""Up to how many claims on one value are in a tuple, which the garbage collector does not track."""


class ValueClaim(msgspec.Struct, frozen=True, order=True, gc=False):
    """An object's claim on a value. Claims on one value are sorted by the fields, in this order."""

    rank: int
    """The position of the source in the configuration."""
    is_stated: bool
    """The value is in the object; otherwise it comes from the API server or the daemon's configuration."""
    is_first: bool
    """The claim was found in the first list of a source, so it may be older than its position suggests."""
    position: int
    """Positions increase in the order in which the daemon observed the claims."""
    key: str
    """The key of the cluster."""
    value: str
    server: str
    uid: str
    """The object's UID at that API server."""


_group = attrgetter("rank", "is_stated", "is_first")
"""Returns the fields that all claims of one group share, in addition to the API server."""
_object = attrgetter("rank", "is_stated", "is_first", "server", "uid")
"""Returns the fields that the claims of one object in a group share. A server can show one object by many names."""
ClaimedCluster = tuple[int, str]
"""The rank of a source, and the key of one of its clusters."""


class ManyClaims(msgspec.Struct):
    """The claims on one value, in lists that are not copied for each change: a user who can create objects determines
    how many of them claim one value."""

    by_object: list[ValueClaim]
    """Sorted by group, and by object in the group."""
    earliest: list[ValueClaim]
    """The earliest claim of each object in a group, sorted."""

    def insert(self, claim: ValueClaim) -> None:
        run = _run(self.by_object, claim)
        at = bisect_left(self.by_object, claim, run.start, run.stop)
        if at == run.start:
            if run:
                del self.earliest[bisect_left(self.earliest, self.by_object[at])]
            insort(self.earliest, claim)
        self.by_object.insert(at, claim)

    def remove(self, claim: ValueClaim) -> None:
        run = _run(self.by_object, claim)
        at = bisect_left(self.by_object, claim, run.start, run.stop)
        del self.by_object[at]
        if at == run.start:
            del self.earliest[bisect_left(self.earliest, claim)]
            if len(run) > 1:
                insort(self.earliest, self.by_object[at])


class ValueClaims(ABC):
    """The claims on UIDs, or on addresses. No claims are stored unless objects of a source contain
    such values."""

    what: str
    trusts_servers: bool
    """Whether a claim on a value that is not in the object precedes the claims of objects on all API servers, and not
    only those of objects on the same server."""

    def __init__(self, with_former: set[str]) -> None:
        self.is_active = False
        self._by_value: dict[str, tuple[ValueClaim, ...] | ManyClaims] = {}
        """The claims on each value; up to `_FEW` are in a tuple, sorted by group, and by object in the group."""
        self._by_key: dict[str, tuple[ValueClaim, ...]] = {}
        """The claims of each cluster's object; the last one is the claim of the object's present state."""
        self._with_former = with_former
        """The clusters whose objects have former claims, on values of any kind."""
        self._kept_engaged: dict[str, set[ClaimedCluster]] = {}
        """The contested clusters that are still engaged, keyed by each value that their objects claim."""

    @abstractmethod
    def states(self, observation: Ready | NotReady) -> bool:
        """Return whether the value is in the object itself."""

    @abstractmethod
    def value_of(self, observation: Ready | NotReady) -> str:
        """Return the value that an object claims; empty if it claims none."""

    def add(self, claim: ValueClaim) -> set[ClaimedCluster]:
        """Add a claim of a cluster's object. Return the other clusters whose claims must be evaluated again.

        The object also keeps the first of its former claims, because its cluster stays engaged in that state unless all
        claims of the new state are valid. Those after it were never valid, and of any number.
        """
        held, affected = self._by_key.get(claim.key, ()), set[ClaimedCluster]()
        former = next((kept for kept in held if kept.value == claim.value), None)
        if former is not None:
            claim = msgspec.structs.replace(claim, position=former.position, is_first=former.is_first)
        if former is not None and former == claim:
            claim = former  # both indexes share one struct
        else:
            affected |= set() if former is None else self._remove(former)
            affected |= self._insert(claim) | self._kept_engaged.pop(claim.value, set())
        first = tuple(kept for kept in held[:1] if kept.value != claim.value)
        for kept in held[1:]:
            if kept.value != claim.value:
                affected |= self._remove(kept)
        self._by_key[claim.key] = (*first, claim)
        if first:
            self._with_former.add(claim.key)
        return affected

    def keep_engaged(self, key: str) -> None:
        """Record that a contested cluster is still engaged. If another object claims one of its values, `add` returns
        the cluster."""
        for claim in self._by_key.get(key, ()):
            self._kept_engaged.setdefault(claim.value, set()).add((claim.rank, key))

    def drop_former(self, key: str) -> set[ClaimedCluster]:
        """Drop the former claims of an object whose claims are all valid. Return the clusters whose claims must be
        evaluated again."""
        held = self._by_key.get(key, ())
        if len(held) < 2:
            return set()
        self._by_key[key] = held[-1:]
        return set[ClaimedCluster]().union(*map(self._remove, held[:-1]))

    def is_valid(self, key: str) -> bool:
        """Return whether the object's current claim is valid. True if it claims nothing."""
        if key not in self._by_key:
            return True
        own = self._by_key[key][-1]
        return self._precedes_all(own, self._earliest(own.value))

    def depends_on_order(self, key: str) -> bool:
        """Return whether the object's current claim would not be valid if one list had contained all claims on its
        value."""
        if key not in self._by_key:
            return False
        own = self._by_key[key][-1]
        claims = self._earliest(own.value)
        compared = [_first(claims[at]) for group in _groups(claims) for at in group[:2]]  # of two objects, if there are
        return len(claims) > 1 and not self._precedes_all(_first(own), compared)

    def value(self, key: str) -> str:
        """Return the value that a cluster's object claims at present."""
        return self._by_key[key][-1].value

    def ranks_of_others(self, key: str) -> set[int]:
        """Return the ranks of the other sources in which objects claim the value that a cluster's object claims."""
        if key not in self._by_key:
            return set()
        own = self._by_key[key][-1]
        claims = self._earliest(own.value)
        return {claims[group.start].rank for group in _groups(claims)} - {own.rank}  # very many can claim one value

    def are_of_other_values(self, key: str, uid: str, value: str) -> bool:
        """Return whether the cluster's object claims values, but not this one. While it is not ready, it keeps those
        claims: its cluster may stay engaged by them."""
        held = self._by_key.get(key, ())
        return bool(held) and held[-1].uid == uid and all(claim.value != value for claim in held)

    def release(self, key: str) -> set[ClaimedCluster]:
        """Drop the claims of a cluster's object. Return the clusters to evaluate again."""
        return set[ClaimedCluster]().union(*map(self._remove, self._by_key.pop(key, ())))

    def _insert(self, claim: ValueClaim) -> set[ClaimedCluster]:
        if claim.value not in self._by_value:  # as that of most
            self._by_value[claim.value] = (claim,)
            return set()
        claims = self._claims(claim.value)
        affected = self._affected(claims, claim)
        claims.insert(claim)
        self._store(claim.value, claims)
        return affected

    def _remove(self, claim: ValueClaim) -> set[ClaimedCluster]:
        claims = self._claims(claim.value)
        claims.remove(claim)
        if claims.by_object:
            self._store(claim.value, claims)
            self._kept_engaged.get(claim.value, set()).discard((claim.rank, claim.key))
        else:
            del self._by_value[claim.value]
            self._kept_engaged.pop(claim.value, None)
        return self._affected(claims, claim)

    def _claims(self, value: str) -> ManyClaims:
        claims = self._by_value[value]
        return claims if isinstance(claims, ManyClaims) else ManyClaims([*claims], [*_earliest(claims)])

    def _store(self, value: str, claims: ManyClaims) -> None:
        self._by_value[value] = claims if len(claims.by_object) > _FEW else (*claims.by_object,)

    def _earliest(self, value: str) -> Sequence[ValueClaim]:
        claims = self._by_value[value]
        return claims.earliest if isinstance(claims, ManyClaims) else _earliest(claims)

    def _affected(self, claims: ManyClaims, changed: ValueClaim) -> set[ClaimedCluster]:
        """Return the clusters whose claims are valid only without `changed`, which is not in `claims`.

        Only claims of the earliest object of a group are: others are not valid, or no object states them, and then they
        precede `changed`. The later ones of one object precede no more than the earlier ones.
        """
        affected = set[ClaimedCluster]()
        for group in _groups(claims.earliest):
            run = _run(claims.by_object, claims.earliest[group.start])
            start = bisect_left(
                claims.by_object, True, run.start, run.stop, key=lambda claim: not self._precedes(claim, changed)
            )
            for claim in map(claims.by_object.__getitem__, range(start, run.stop)):
                if not self._precedes_all(claim, claims.earliest):
                    break
                affected.add((claim.rank, claim.key))
        return affected

    def _precedes_all(self, own: ValueClaim, earliest: Sequence[ValueClaim]) -> bool:
        # A claim that precedes the earliest claim of another object in a group precedes all of the group.
        return len(earliest) == 1 or all(
            self._precedes(own, next((earliest[at] for at in group if not _is_same_object(own, earliest[at])), own))
            for group in _groups(earliest)
        )

    def _precedes(self, own: ValueClaim, other: ValueClaim) -> bool:
        if _is_same_object(own, other) or not (own.is_stated or other.is_stated):
            return True  # two sources show the same object, or no object states the value
        if own.is_stated != other.is_stated and (self.trusts_servers or own.server == other.server):
            return other.is_stated
        if not (own.is_first and other.is_first):
            return own.position < other.position
        return own.is_stated != other.is_stated and own.rank < other.rank


class UidClaims(ValueClaims):
    """Claims on UIDs. A ProjectControlPlane claims the UID in its label, any other object its own UID."""

    what = "project UID"
    trusts_servers = False

    def states(self, observation: Ready | NotReady) -> bool:
        return self.value_of(observation) != observation.uid

    def value_of(self, observation: Ready | NotReady) -> str:
        return (
            observation.target.uid if isinstance(observation, Ready) else observation.project_uid
        ) or observation.uid


class AddressClaims(ValueClaims):
    """Claims on addresses. Objects of the kind `declarative` contain addresses; other addresses follow from settings,
    or are in kubeconfig files on this machine."""

    what = "address"
    trusts_servers = True

    def states(self, observation: Ready | NotReady) -> bool:
        return isinstance(observation, Ready) and observation.target.states_address

    def value_of(self, observation: Ready | NotReady) -> str:
        return address(observation.target) if isinstance(observation, Ready) else ""


def _is_same_object(claim: ValueClaim, other: ValueClaim) -> bool:
    return (claim.server, claim.uid) == (other.server, other.uid)


def _first(claim: ValueClaim) -> ValueClaim:
    return msgspec.structs.replace(claim, is_first=True)


def _earliest(claims: Sequence[ValueClaim]) -> Sequence[ValueClaim]:
    """Return the earliest claim of each object in a group, sorted, from claims that are sorted by object."""
    return sorted({_object(claim): claim for claim in reversed(claims)}.values()) if len(claims) > 1 else claims


def _run(claims: Sequence[ValueClaim], claim: ValueClaim) -> range:
    """Return the indexes of the claims of one object in a group, among claims that are sorted by object."""
    own = _object(claim)
    start = bisect_left(claims, own, key=_object)
    return range(start, bisect_right(claims, own, start, key=_object))


def _groups(claims: Sequence[ValueClaim]) -> Iterator[range]:
    """Return the indexes of each group of sorted claims that differ only in their objects and positions."""
    start = 0
    while start < len(claims):
        group = range(start, bisect_right(claims, _group(claims[start]), start, key=_group))
        yield group
        start = group.stop


class Claimant(msgspec.Struct):
    """The engagements of one source, with the properties that all of its claims share."""

    source: str
    engagements: Engagements
    server: str
    rank: int
    is_restored: bool = False
    compared_at: int = 1
    """The number of contested clusters at which the source is next compared with the other sources."""
    is_duplicate: bool = False

    def add_claim(
        self, claims: ValueClaims, observation: Ready | NotReady, position: int, *, is_first: bool
    ) -> set[ClaimedCluster]:
        value, is_stated = claims.value_of(observation), claims.states(observation)
        uid = observation.uid
        if not value or (
            isinstance(observation, NotReady) and claims.are_of_other_values(observation.name, uid, value)
        ):
            return set()
        return claims.add(
            ValueClaim(self.rank, is_stated, is_first, position, observation.name, value, self.server, uid)
        )


class FleetEngagements:
    def __init__(self) -> None:
        self._with_former: set[str] = set()
        self._kinds: tuple[ValueClaims, ...] = (UidClaims(self._with_former), AddressClaims(self._with_former))
        self._claimants: list[Claimant] = []

    def add_source(
        self,
        source: str,
        engagements: Engagements,
        server: str,
        *,
        states_uids: bool = False,
        states_addresses: bool = False,
    ) -> Claimant:
        """Add the engagements of the next configured source. Sources on the same API server have the same `server`.

        `states_uids` and `states_addresses`: whether its objects contain such values. Then all claims are stored from
        the start: those of a large fleet take seconds to store at once.
        """
        for claims, are_stated in zip(self._kinds, (states_uids, states_addresses), strict=True):
            claims.is_active = claims.is_active or are_stated
        claimant = Claimant(source, engagements, server, len(self._claimants))
        self._claimants.append(claimant)
        return claimant

    def commit(
        self, claimant: Claimant, states: ClusterStates, now: Moment, events: list[Event] | None = None
    ) -> list[Event]:
        """Apply states of a source's clusters. The changes are added to `events`; they may also be about clusters of
        other sources."""
        events = [] if events is None else events
        if not self._stores_claims(states.states):
            claimant.engagements.dropped_names.clear()
            return claimant.engagements.commit(states.states, now, events)
        for index, state in enumerate(states.states):
            at = msgspec.structs.replace(states.position, number=states.position.number_at(index), is_shared=True)
            self._commit_with_claims(claimant, state, at, now, events)
        return events

    def restore(self, claimant: Claimant, stored: Iterable[tuple[Ready, float]], steady: float) -> list[Event]:
        """Engage clusters of an earlier run, with the times at which they were engaged. Only allowed before anything
        was published."""
        claimant.is_restored = True
        position = ObjectPosition(RESTORED_POSITION)
        return [
            event
            for observation, engaged_at in stored
            for event in self.commit(claimant, ClusterStates([observation], position), Moment(engaged_at, steady))
        ]

    def duplicate_of(self, claimant: Claimant) -> str:
        """Return the source whose objects claim what most objects of this source claim; empty if there is none.

        Such sources follow the same projects, for example one Milo in both modes, or at two addresses.
        """
        found = Counter(
            rank
            for name in claimant.engagements.contested
            for rank in set[int]().union(*(claims.ranks_of_others(name) for claims in self._active_kinds()))
        )
        rank, count = max(found.items(), key=itemgetter(1), default=(0, 0))
        return self._claimants[rank].source if 2 * count > claimant.engagements.present_count else ""

    def depends_on_order(self, name: str) -> bool:
        """Return whether a daemon that starts now might not engage a cluster, because other objects claim its values
        and the order of the claims is unknown to it."""
        return any(claims.depends_on_order(name) for claims in self._active_kinds())

    def new_duplicate_of(self, claimant: Claimant) -> str:
        """Return the result of `duplicate_of` the first time that it is not empty.

        Sources are compared whenever the number of contested clusters has doubled, so that calls after each change
        cost little.
        """
        contested = len(claimant.engagements.contested)
        if claimant.is_duplicate or contested < claimant.compared_at:
            return ""
        found, claimant.compared_at = self.duplicate_of(claimant), 2 * contested
        claimant.is_duplicate = bool(found)
        return found

    def _stores_claims(self, states: Sequence[ClusterState]) -> bool:
        """Return whether any claims are stored. Begins to store the claims on UIDs, or on addresses, once an object
        contains such a value."""
        is_any, claiming = False, [state for state in states if isinstance(state, _CLAIMING)]
        for claims in self._kinds:
            if not claims.is_active and any(map(claims.states, claiming)):
                self._begin_claims(claims)
            is_any = is_any or claims.is_active
        return is_any

    def _begin_claims(self, claims: ValueClaims) -> None:
        claims.is_active = True
        for claimant in self._claimants:
            for name, record in claimant.engagements.items():
                target = record.target
                observation = NotReady(name, record.uid, "", "") if target is None else Ready(record.uid, "", target)
                claimant.add_claim(claims, observation, RESTORED_POSITION, is_first=not claimant.is_restored)

    # --- one state ---

    def _commit_with_claims(
        self, claimant: Claimant, state: ClusterState, position: ObjectPosition, now: Moment, events: list[Event]
    ) -> None:
        engagements, name, affected, problem = claimant.engagements, state.name, set[ClaimedCluster](), ""
        if isinstance(state, _CLAIMING):
            for claims in self._active_kinds():
                affected |= claimant.add_claim(claims, state, position.number, is_first=position.is_first)
            problem = self._problem(name)
            if name in self._with_former and not problem:
                affected |= self._drop_former(name)
        events += self._end_contested(affected, now)
        if isinstance(state, Ready) and problem:
            events += engagements.contest(state, problem, now)
        else:
            engagements.commit((state,), now, events)
        if problem and (record := engagements[name]) is not None and record.engaged:
            for claims in self._active_kinds():
                claims.keep_engaged(name)
        if isinstance(state, ConfirmedDeletion) and _is_deleted(engagements, state):
            affected |= self._release(name)
        while engagements.dropped_names:
            affected |= self._release(engagements.dropped_names.pop())
        events += self._begin_uncontested(affected, now)

    def _end_contested(self, affected: Iterable[ClaimedCluster], now: Moment) -> list[Event]:
        events: list[Event] = []
        for rank, name in sorted(affected):
            if problem := self._problem(name):
                events += self._claimants[rank].engagements.end_contested(name, problem, now)
        return events

    def _begin_uncontested(self, affected: set[ClaimedCluster], now: Moment) -> list[Event]:
        events: list[Event] = []
        while affected:
            freed: set[ClaimedCluster] = set()
            for rank, name in sorted(affected):
                if not self._problem(name):
                    events += self._claimants[rank].engagements.begin_uncontested(name, now)
                    freed |= self._drop_former(name)
            affected = freed
        return events

    # --- claims ---

    def _active_kinds(self) -> Iterator[ValueClaims]:
        return (claims for claims in self._kinds if claims.is_active)

    def _problem(self, name: str) -> str:
        """Return a message about the claim that keeps an object from engaging its cluster; empty if all of its claims
        are valid."""
        invalid = (claims for claims in self._active_kinds() if not claims.is_valid(name))
        return next((f"{claims.what} {claims.value(name)} is also claimed by another object" for claims in invalid), "")

    def _drop_former(self, name: str) -> set[ClaimedCluster]:
        self._with_former.discard(name)
        return set[ClaimedCluster]().union(*(claims.drop_former(name) for claims in self._active_kinds()))

    def _release(self, name: str) -> set[ClaimedCluster]:
        """Drop the claims of a cluster's object. Return the clusters to evaluate again."""
        self._with_former.discard(name)
        return set[ClaimedCluster]().union(*(claims.release(name) for claims in self._active_kinds()))


def _is_deleted(engagements: Engagements, deleted: ConfirmedDeletion) -> bool:
    record = engagements[deleted.name]
    return record is not None and record.state is ObjectState.DELETED and record.uid == deleted.uid


def address(target: Target) -> str:
    """Return the address of a cluster, which is equal for two URLs of the same server and path."""
    parts = urlsplit(target.endpoint)
    host = (parts.hostname or "").removesuffix(".")
    return f"{addresses.ip_address(host) or host}:{parts.port or 443}{parts.path.rstrip('/')}"
