"""Turns objects into clusters, where an object's name is not its cluster's or several objects stand for one cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from milo_discoveryd.model.claims import UNREAD, ClaimingObject, ObjectClaim
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import Registry

Reduce = Callable[[str, Sequence[ObjectClaim], str], Observation | None]
"""The type of `ReducedMode.reduce`."""
Member = tuple[int, str]
"""A watched resource's position, and an object's key."""


class _Group(msgspec.Struct):
    """The claims on one cluster."""

    members: dict[Member, ObjectClaim] = msgspec.field(default_factory=dict)
    engaged_by: frozenset[str] = frozenset()
    """UIDs of the objects that stood for the cluster at the last change."""

    @property
    def uids(self) -> frozenset[str]:
        return frozenset(claim.uid for claim in self.members.values())

    def add(self, member: Member, claim: ObjectClaim) -> None:
        """Add a claim behind those that are as early or earlier."""
        self.members[member] = claim
        if any(other.order > claim.order for other in self.members.values()):
            self.members = dict(sorted(self.members.items(), key=lambda item: item[1].order))


class Reduction:
    """Keeps the claims of all objects by cluster, and commits to the clusters' registry what they mean together."""

    def __init__(self, reduce: Reduce, clusters: Registry) -> None:
        self._reduce = reduce
        self._clusters = clusters
        self._groups: dict[str, _Group] = {}
        self._named: dict[Member, tuple[str, ...]] = {}
        """The clusters that an object names."""

    def apply(self, watch: int, changes: Iterable[Event], order: int, now: Moment) -> list[Event]:
        """Apply changes of one resource's objects; return the resulting changes of clusters.

        `order` grows between calls, except between those of which none is known to be earlier.
        """
        concerned: dict[str, None] = {}
        for change in changes:
            target = change.cluster.target
            assert isinstance(target, ClaimingObject)
            member = (watch, target.name)
            if change.type is EventType.DISENGAGED:
                concerned |= dict.fromkeys(self._remove(member))
            else:
                named = self._claim(member, target, change.cluster.source_version, order)
                concerned |= dict.fromkeys(named)
        events = self._clusters.commit(
            [found for name in concerned for found in self._observations(name)], now, consistent=True
        )
        for name in concerned:
            self._settle(name)
        return events

    def end_unclaimed(self, now: Moment) -> list[Event]:
        """End the engaged clusters that no object names: an earlier run ended before they were disengaged."""
        names = [name for name, record in self._clusters.items() if record.engaged and name not in self._groups]
        found = [each for name in names for each in self._observations(name)]
        for name in names:
            self._settle(name)
        return self._clusters.commit(found, now, consistent=True)

    def restore(self, watch: int, objects: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
        """Start with the objects (key, UID, names of clusters) of an earlier run. What they say is not known yet."""
        for key, uid, names in objects:
            self._named[watch, key] = names
            for name in names:
                self._group(name).members[watch, key] = ObjectClaim(watch, key, uid, "", 0, UNREAD)
                self._settle(name)

    def members(self, cluster: str) -> tuple[Member, ...]:
        """Return the objects that name a cluster."""
        group = self._groups.get(cluster)
        return () if group is None else tuple(group.members)

    def names(self, member: Member) -> tuple[str, ...]:
        """Return the clusters that an object names."""
        return self._named.get(member, ())

    def _claim(self, member: Member, found: ClaimingObject, version: str, order: int) -> list[str]:
        names = self._named.get(member, ())
        known = {name: self._groups[name].members.pop(member) for name in names}
        watch, key = member
        for claim in found.claims:
            before = known.get(claim.cluster)
            place = order if before is None or before.uid != found.uid else before.order
            self._group(claim.cluster).add(member, ObjectClaim(watch, key, found.uid, version, place, claim.content))
        self._named[member] = tuple(dict.fromkeys(claim.cluster for claim in found.claims))
        return [*names, *self._named[member]]

    def _remove(self, member: Member) -> tuple[str, ...]:
        names = self._named.pop(member, ())
        for name in names:
            del self._groups[name].members[member]
        return names

    def _observations(self, name: str) -> Iterator[Observation | ConfirmedDeletion]:
        """Yield what all objects together say about a cluster, if they say anything."""
        group, record = self._group(name), self._clusters[name]
        known = [claim for claim in group.members.values() if claim.content is not UNREAD]
        is_complete = len(known) == len(group.members)
        if not (known or is_complete):
            return
        continues = record is not None and not group.engaged_by.isdisjoint(group.uids)
        found = self._reduce(name, known, record.uid if record is not None and continues else "")
        if found is None:
            if is_complete and record is not None:
                yield ConfirmedDeletion(name, record.uid)
        elif is_complete or isinstance(found, Ready):
            # What was not read since the restart may be what keeps the cluster engaged.
            yield found

    def _settle(self, name: str) -> None:
        group = self._groups[name]
        group.engaged_by = group.uids
        if not group.members:
            del self._groups[name]

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())
