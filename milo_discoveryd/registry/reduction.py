"""Maps objects to clusters whose names differ from those of the objects, or that several objects describe."""

from collections.abc import Callable, Iterable, Sequence

from milo_discoveryd.model.claims import UNREAD, Claim, ObjectClaim, ObjectReference
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, Observation, Ready
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.object_records import ObjectChange, ObjectRecord, ObjectRecords
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import Registry

Reduce = Callable[[str, Sequence[ObjectClaim], str], Observation | None]
"""What several claims on a cluster mean together: the cluster, its claims, and the UID that it has."""
_Members = tuple[ObjectClaim, ...]
"""The claims on one cluster, the earliest first; a tuple, because nearly all clusters have one."""


class Reduction:
    """The claims of all objects by cluster. Commits the result of each cluster's claims to the clusters' registry."""

    def __init__(self, reduce: Reduce, clusters: Registry, objects: Sequence[ObjectRecords]) -> None:
        """`objects` has the records of each watched resource."""
        self._reduce = reduce
        self._clusters = clusters
        self._objects = objects
        self._members: dict[str, _Members] = {}
        self._committed: dict[str, _Members] = {}
        """The claims on each cluster at its last commit, where they differ from the present ones."""
        self._dependents: dict[ObjectReference, dict[str, None]] = {}
        """For each object, existing or not, the clusters with claims that need it."""
        self._is_listed = False
        """Whether every resource was listed, so that unknown objects do not exist."""

    def apply(self, watch: int, changes: Iterable[ObjectChange], order: int) -> list[str]:
        """Apply changes of one resource's objects; return the names of the clusters to commit.

        `order` increases from call to call; it is equal for calls whose order in time is unknown.
        """
        concerned: dict[str, None] = {}
        for change in changes:
            member, record = (watch, change.key), self._objects[watch][change.key]
            concerned |= self._dependents.get(member, {})
            claims = _named((record and record.claims) or ())
            # The present claims were added already if the batch has an earlier change of the object.
            known = {cluster: self._remove(cluster, member) for cluster in _named(change.before) | claims}
            concerned |= dict.fromkeys(known)
            for cluster, claim in claims.items():
                assert record is not None
                before = known[cluster]
                place = order if before is None or before.uid != record.uid else before.order
                added = ObjectClaim(*member, record.uid, record.version, place, claim.content, claim.needs)
                self._add(cluster, added)
        return [*concerned]

    def restore(self, watch: int, changes: Iterable[ObjectChange]) -> None:
        """Start with the claims of an earlier run's objects."""
        for name in self.apply(watch, changes, 0):
            self._settle(name)

    def commit(self, names: Sequence[str], now: Moment) -> list[Event]:
        """Commit the present result of all claims on these clusters; return the resulting changes of clusters."""
        found = [each for each in map(self._observation, names) if each is not None]
        for each in found:
            if isinstance(each, Malformed):
                self._clusters.report_refused(each)
        # Of the claims that one call of `apply` made, none is known to be earlier, as in a list.
        events = self._clusters.commit(found, now, consistent=True, listed=True)
        for name in names:
            self._settle(name)
        return events

    def listed(self, now: Moment) -> list[Event]:
        """Record that every resource was listed, so that unknown objects do not exist.

        Disengage the clusters that no object names: the earlier run ended before it disengaged them.
        """
        self._is_listed = True
        unclaimed = [name for name, record in self._clusters.items() if record.engaged and name not in self._members]
        lacking = [name for needed, names in self._dependents.items() if self._is_absent(needed) for name in names]
        return self.commit([*dict.fromkeys([*unclaimed, *lacking])], now)

    def objects(self, cluster: str) -> tuple[ObjectReference, ...]:
        """Return the objects that name a cluster, and those that they need."""
        members = self._members.get(cluster, ())
        return (*((each.watch, each.object) for each in members), *_needs(members))

    def _add(self, cluster: str, claim: ObjectClaim) -> None:
        """Insert a claim after those of the same or a lower order."""
        members = self._changing(cluster)
        self._members[cluster] = (*members, claim)
        if members and members[-1].order > claim.order:
            self._members[cluster] = tuple(sorted(self._members[cluster], key=lambda each: each.order))

    def _remove(self, cluster: str, member: ObjectReference) -> ObjectClaim | None:
        members = self._changing(cluster)
        found = next((each for each in members if (each.watch, each.object) == member), None)
        self._members[cluster] = tuple(each for each in members if each is not found)
        return found

    def _changing(self, cluster: str) -> _Members:
        members = self._members.get(cluster, ())
        self._committed.setdefault(cluster, members)
        return members

    def _observation(self, name: str) -> Observation | ConfirmedDeletion | None:
        """Return the result of all claims on a cluster, if there are any."""
        members, record = self._members.get(name, ()), self._clusters[name]
        claims = [claim for claim in members if claim.content is not UNREAD]
        is_complete = len(claims) == len(members)
        if not (claims or is_complete):
            return None
        for needed in _needs(members):
            found = self._in_use(needed)
            if found is not None and found.content is not UNREAD and found.content is not None:
                claims.append(ObjectClaim(*needed, found.uid, found.version, 0, found.content))
            else:
                is_complete = is_complete and self._is_absent(needed)
        if record is None:
            return self._reduce(name, claims, "")
        before = {claim.uid for claim in self._committed.get(name, members)}
        continues = any(claim.uid in before for claim in members)
        result = self._reduce(name, claims, record.uid if continues else "")
        if result is None:
            return ConfirmedDeletion(name, record.uid) if is_complete else None
        # An object that was not read since the restart may be the reason for which the cluster is engaged.
        return result if is_complete or isinstance(result, Ready) or not record.engaged else None

    def _settle(self, name: str) -> None:
        members = self._members.get(name, ())
        needed, before = _needs(members), _needs(self._committed.pop(name, members))
        for each in needed:
            self._dependents.setdefault(each, {})[name] = None
        for each in before:
            if each not in needed:
                self._forget_dependent(each, name)
        if not members:
            self._members.pop(name, None)

    def _forget_dependent(self, needed: ObjectReference, name: str) -> None:
        names = self._dependents[needed]
        del names[name]
        if not names:
            del self._dependents[needed]

    def _is_absent(self, needed: ObjectReference) -> bool:
        """Return whether an object does not exist or has no content, as far as the lists are known."""
        found = self._in_use(needed)
        return self._is_listed and (found is None or found.content is None)

    def _in_use(self, needed: ObjectReference) -> ObjectRecord | None:
        watch, key = needed
        found = self._objects[watch][key]
        return found if found is not None and found.engaged else None


def _named(claims: Iterable[Claim]) -> dict[str, Claim]:
    return {claim.cluster: claim for claim in claims}


def _needs(members: _Members) -> tuple[ObjectReference, ...]:
    return tuple({needed: None for claim in members for needed in claim.needs})
