"""Maps objects to clusters whose names differ from those of the objects, or that several objects describe."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from milo_discoveryd.model.claims import UNREAD, ClaimingObject, ObjectClaim, ObjectReference
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import Registry

Reduce = Callable[[str, Sequence[ObjectClaim], str], Observation | None]
"""The type of `ReducedMode.reduce`."""


class _Group(msgspec.Struct):
    """The claims on one cluster."""

    members: dict[ObjectReference, ObjectClaim] = msgspec.field(default_factory=dict)
    engaged_by: frozenset[str] = frozenset()
    """UIDs of the objects that claimed the cluster at the last change."""
    needed: tuple[ObjectReference, ...] = ()
    """The objects that its claims needed at the last change."""

    @property
    def uids(self) -> frozenset[str]:
        return frozenset(claim.uid for claim in self.members.values())

    @property
    def needs(self) -> tuple[ObjectReference, ...]:
        return tuple(dict.fromkeys(needed for claim in self.members.values() for needed in claim.needs))

    def add(self, member: ObjectReference, claim: ObjectClaim) -> None:
        """Insert a claim after those of the same or a lower order."""
        self.members[member] = claim
        if any(other.order > claim.order for other in self.members.values()):
            self.members = dict(sorted(self.members.items(), key=lambda item: item[1].order))


class Reduction:
    """The claims of all objects by cluster. Commits the result of each cluster's claims to the clusters' registry."""

    def __init__(self, reduce: Reduce, clusters: Registry) -> None:
        self._reduce = reduce
        self._clusters = clusters
        self._groups: dict[str, _Group] = {}
        self._named: dict[ObjectReference, tuple[str, ...]] = {}
        """The clusters that each object names."""
        self._contents: dict[ObjectReference, ObjectClaim] = {}
        """The contents of the objects that claims need."""
        self._dependents: dict[ObjectReference, dict[str, None]] = {}
        """For each object, existing or not, the clusters with claims that need it."""
        self._unread: set[ObjectReference] = set()
        """Objects of an earlier run whose content is not known yet."""
        self._is_listed = False
        """Whether every resource was listed, so that unknown objects do not exist."""

    def apply(self, watch: int, changes: Iterable[Event], order: int) -> list[str]:
        """Apply changes of one resource's objects; return the names of the clusters to commit.

        `order` increases from call to call; it is equal for calls whose order in time is unknown.
        """
        concerned: dict[str, None] = {}
        for change in changes:
            target = change.cluster.target
            assert isinstance(target, ClaimingObject)
            member = (watch, target.name)
            self._unread.discard(member)
            self._contents.pop(member, None)
            concerned |= self._dependents.get(member, {})
            if change.type is EventType.DISENGAGED:
                concerned |= dict.fromkeys(self._remove(member))
                continue
            version = change.cluster.source_version
            if target.content is not None:
                self._contents[member] = ObjectClaim(*member, target.uid, version, order, target.content)
            concerned |= dict.fromkeys(self._claim(member, target, version, order))
        return [*concerned]

    def commit(self, names: Sequence[str], now: Moment) -> list[Event]:
        """Commit the present result of all claims on these clusters; return the resulting changes of clusters."""
        found = [each for name in names for each in self._observations(name)]
        events = self._clusters.commit(found, now, consistent=True)
        for name in names:
            self._settle(name)
        return events

    def listed(self, now: Moment) -> list[Event]:
        """Record that every resource was listed, so that unknown objects do not exist.

        Disengage the clusters that no object names: the earlier run ended before it disengaged them.
        """
        self._is_listed = True
        unclaimed = [name for name, record in self._clusters.items() if record.engaged and name not in self._groups]
        lacking = [name for needed, names in self._dependents.items() if self._is_absent(needed) for name in names]
        return self.commit([*dict.fromkeys([*unclaimed, *lacking])], now)

    def restore(self, watch: int, objects: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
        """Start with the objects (key, UID, names of clusters) of an earlier run. Their content is not known yet."""
        for key, uid, names in objects:
            self._unread.add((watch, key))
            self._named[watch, key] = names
            for name in names:
                self._group(name).members[watch, key] = ObjectClaim(watch, key, uid, "", 0, UNREAD)
                self._settle(name)

    def objects(self, cluster: str) -> tuple[ObjectReference, ...]:
        """Return the objects that name a cluster, and those that they need."""
        group = self._groups.get(cluster)
        return () if group is None else (*group.members, *group.needed)

    def names(self, member: ObjectReference) -> tuple[str, ...]:
        """Return the clusters that an object names."""
        return self._named.get(member, ())

    def _claim(self, member: ObjectReference, found: ClaimingObject, version: str, order: int) -> list[str]:
        names = self._named.pop(member, ())
        known = {name: self._groups[name].members.pop(member) for name in names}
        watch, key = member
        for claim in found.claims:
            before = known.get(claim.cluster)
            place = order if before is None or before.uid != found.uid else before.order
            added = ObjectClaim(watch, key, found.uid, version, place, claim.content, claim.needs)
            self._group(claim.cluster).add(member, added)
        if found.claims:
            self._named[member] = tuple(dict.fromkeys(claim.cluster for claim in found.claims))
        return [*names, *self.names(member)]

    def _remove(self, member: ObjectReference) -> tuple[str, ...]:
        names = self._named.pop(member, ())
        for name in names:
            del self._groups[name].members[member]
        return names

    def _observations(self, name: str) -> Iterator[Observation | ConfirmedDeletion]:
        """Yield the result of all claims on a cluster, if there are any."""
        group, record = self._group(name), self._clusters[name]
        known = [claim for member, claim in group.members.items() if member not in self._unread]
        is_complete = len(known) == len(group.members)
        if not (known or is_complete):
            return
        needs = group.needs
        is_complete = is_complete and all(each in self._contents or self._is_absent(each) for each in needs)
        known += [self._contents[each] for each in needs if each in self._contents]
        continues = record is not None and not group.engaged_by.isdisjoint(group.uids)
        found = self._reduce(name, known, record.uid if record is not None and continues else "")
        if found is None:
            if is_complete and record is not None:
                yield ConfirmedDeletion(name, record.uid)
        elif is_complete or isinstance(found, Ready) or record is None or not record.engaged:
            # An object that was not read since the restart may be the reason for which the cluster is engaged.
            yield found

    def _settle(self, name: str) -> None:
        group = self._groups[name]
        group.engaged_by = group.uids
        before, group.needed = group.needed, group.needs
        for each in group.needed:
            self._dependents.setdefault(each, {})[name] = None
        for each in before:
            if each not in group.needed:
                self._forget_dependent(each, name)
        if not group.members:
            del self._groups[name]

    def _forget_dependent(self, needed: ObjectReference, name: str) -> None:
        names = self._dependents[needed]
        del names[name]
        if not names:
            del self._dependents[needed]

    def _is_absent(self, needed: ObjectReference) -> bool:
        """Return whether an object does not exist or has no content, as far as the lists are known."""
        return self._is_listed and needed not in self._contents and needed not in self._unread

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())
