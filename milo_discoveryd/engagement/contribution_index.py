"""The contributions of objects to clusters: one object to several clusters, or several objects to one cluster."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from milo_discoveryd.engagement.engagement import ClusterState, ClusterStates, Engagements
from milo_discoveryd.model.contributions import (
    UNREAD,
    ContributingObject,
    Contribution,
    ObjectContent,
    ObjectContribution,
    ObjectReference,
    ObservedObject,
    Reduce,
)
from milo_discoveryd.model.observation import Malformed, Ready
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.objects.store import ObjectChange, ObjectChanges, ObjectPosition, ObjectRecord, ObjectStore
from milo_discoveryd.state_file.encoding import StoredObject

CLUSTERS_PER_STEP = 250
"""Maximum number of clusters changed per event-loop iteration."""
MOST_CONTRIBUTIONS = 100
"""How many contributions to one cluster count, the earliest of them: a user who can create objects can name one cluster
in all of them, and each change of one is compared with the others."""
MOST_DEPENDENTS = 100
"""How many clusters may need one object. A user who can create objects can name one Secret in all of them: each change
of it would change all their clusters before any later change of another user's object is applied, although all would
be at one address, so that one of them can be engaged."""
_Members = tuple[ObjectContribution, ...]
"""The contributions to one cluster that count, the earliest first."""
_AllMembers = dict[ObjectReference, ObjectContribution]
"""All contributions to one cluster, the earliest first."""


class ContributionIndex:
    """The contributions of all objects, indexed by cluster."""

    def __init__(self, reduce: Reduce, clusters: Engagements, stores: Sequence[ObjectStore]) -> None:
        """`stores` has the objects of each collection."""
        self._reduce = reduce
        self._clusters = clusters
        self._stores = stores
        self._members: dict[str, _AllMembers | ObjectContribution] = {}
        """The contributions to each cluster. Nearly all clusters have one, which is stored without a dict."""
        self._committed: dict[str, _Members] = {}
        """The former contributions to the clusters whose contributions have changed since their states were last
        applied."""
        self._dependents: dict[ObjectReference, dict[str, None]] = {}
        """The clusters whose contributions need another object, keyed by that object, which may not exist. The earliest
        `MOST_DEPENDENTS` of them count."""
        self._promoted: list[str] = []
        """The clusters that count as dependents since an earlier one ended, and whose states were not applied yet."""
        self._is_listed = False
        """Whether every collection was listed, so that unknown objects do not exist."""

    def restore(
        self,
        collections: Sequence[ObjectCollection],
        clusters: Iterable[Ready],
        objects: Iterable[StoredObject],
    ) -> None:
        """Restore the collections with stored objects, whose contents are unknown until they are seen again."""
        del clusters
        objects_by_collection: list[list[ObservedObject]] = [[] for _ in self._stores]
        for stored in objects:
            content = ObjectContent(tuple(Contribution(name, UNREAD) for name in stored.clusters), UNREAD)
            objects_by_collection[stored.watch].append(ContributingObject(stored.key, stored.uid, "", content))
        for collection, known in zip(collections, objects_by_collection, strict=True):
            for name in self._apply(collection.number, collection.restore(known)):
                self._settle(name)

    def states(self, collection: int, objects: ObjectChanges) -> Iterator[ClusterStates]:
        # The order of the contributions within a batch is unknown, so they share a position.
        position = msgspec.structs.replace(objects.position, is_shared=True)
        return self._states_of(self._apply(collection, objects), position)

    def states_once_listed(self, position: ObjectPosition) -> Iterator[ClusterStates]:
        """Yield the states of the clusters that can be decided only after every collection was listed.

        These are engaged clusters without contributions, which the earlier run of the daemon left engaged, and clusters
        whose contributions need an object that does not exist or has no content.
        """
        self._is_listed = True
        without_contribution = [
            name for name, record in self._clusters.items() if record.engaged and name not in self._members
        ]
        lacking = [name for needed, names in self._dependents.items() if self._is_absent(needed) for name in names]
        return self._states_of([*dict.fromkeys([*without_contribution, *lacking])], position)

    def objects_of(self, cluster: str) -> tuple[ObjectReference, ...]:
        """Return the objects that contribute to a cluster, and the objects that these contributions need."""
        members = self._contributions_to(cluster)
        return (*((contribution.watch, contribution.object) for contribution in members), *_needs(members))

    def stored_objects(self) -> Iterator[StoredObject]:
        for collection, store in enumerate(self._stores):
            for key, record in store.items():
                if record.content is not None:
                    clusters = tuple(contribution.cluster for contribution in _content(record).contributions)
                    yield StoredObject(collection, key, record.uid, clusters)

    # --- contributions ---

    def _apply(self, collection: int, objects: ObjectChanges) -> list[str]:
        """Apply changes of a collection's objects. Return the names of the clusters that the changes affect."""
        concerned: dict[str, None] = {}
        for index, change in enumerate(objects.changes):
            if change.before == change.after and not (change.is_replaced and change.after):
                continue
            member = (collection, change.key)
            concerned |= dict.fromkeys(self._dependents_on(member))
            concerned |= self._replace_contributions(member, change, objects.position.number_at(index))
        return [*concerned]

    def _replace_contributions(self, member: ObjectReference, change: ObjectChange, position: int) -> dict[str, None]:
        before, contributions = _named(change.before), _named(change.after)
        for cluster in before | contributions:
            self._committed.setdefault(cluster, self._contributions_to(cluster))
            contribution = contributions.get(cluster)
            if contribution is None:
                self._remove(cluster, member)
                continue
            former, uid = self._all_of(cluster).get(member), change.uid
            order = position if former is None or former.uid != uid else former.order
            self._put(
                cluster,
                ObjectContribution(*member, uid, change.version, order, contribution.content, contribution.needs),
            )
        return dict.fromkeys(before | contributions)

    def _put(self, cluster: str, contribution: ObjectContribution) -> None:
        """Insert a contribution after all other contributions of the same or a lower order, or replace the object's
        former one, in its place if it has the same order."""
        members, member = self._all_of(cluster), (contribution.watch, contribution.object)
        former = members.get(member)
        if former is None or former.order != contribution.order:
            members.pop(member, None)
            last = members[next(reversed(members))] if members else contribution
            members[member] = contribution
            if last.order > contribution.order:
                members = dict(sorted(members.items(), key=lambda item: item[1].order))
        else:
            members[member] = contribution
        self._members[cluster] = members if len(members) > 1 else contribution

    def _remove(self, cluster: str, member: ObjectReference) -> None:
        members = self._all_of(cluster)
        members.pop(member, None)
        self._members[cluster] = next(iter(members.values())) if len(members) == 1 else members

    def _all_of(self, cluster: str) -> _AllMembers:
        members = self._members.get(cluster, {})
        return members if isinstance(members, dict) else {(members.watch, members.object): members}

    def _contributions_to(self, cluster: str) -> _Members:
        members = self._members.get(cluster)
        if members is None:
            return ()
        return tuple(islice(members.values(), MOST_CONTRIBUTIONS)) if isinstance(members, dict) else (members,)

    # --- states of clusters ---

    def _states_of(self, names: Sequence[str], position: ObjectPosition) -> Iterator[ClusterStates]:
        size = min(CLUSTERS_PER_STEP, self._clusters.releases.clusters_per_step)
        rest = deque(names)
        while rest or self._promoted:
            if not rest:
                rest.extend(self._promoted)
                self._promoted.clear()
            batch = [rest.popleft() for _ in range(min(size, len(rest)))]
            for name in batch:
                self._depend(name)
            states = [state for state in map(self._state, batch) if state is not None]
            for state in states:
                if isinstance(state, Malformed):
                    self._clusters.report_malformed(state)
            for name in batch:
                self._settle(name)
            yield ClusterStates(states, position)

    def _state(self, name: str) -> ClusterState | None:
        """Return the state of a cluster that follows from all contributions to it; None if it stays as it is."""
        members, record = self._contributions_to(name), self._clusters[name]
        contributions = [contribution for contribution in members if contribution.content is not UNREAD]
        is_complete = len(contributions) == len(members)
        if not (contributions or is_complete):
            return None
        for needed in _needs(members):
            if name not in self._dependents_on(needed):
                message = f"more than {MOST_DEPENDENTS} clusters need {needed[1]}, and this is not one of the earliest"
                return Malformed(name, members[0].uid, members[0].version, message)
            needed_record = self._found(needed)
            value = None if needed_record is None else _content(needed_record).value
            if needed_record is not None and value is not UNREAD and value is not None:
                contributions.append(ObjectContribution(*needed, needed_record.uid, needed_record.version, 0, value))
            else:
                is_complete = is_complete and self._is_absent(needed)
        if record is None:
            return self._reduce(name, contributions, "")
        before = {contribution.uid for contribution in self._committed.get(name, members)}
        continues = any(contribution.uid in before for contribution in members)
        result = self._reduce(name, contributions, record.uid if continues else "")
        if result is None:
            return ConfirmedDeletion(name, record.uid) if is_complete else None
        # An object that was not read since the restart may be the reason why the cluster is engaged.
        return result if is_complete or isinstance(result, Ready) or not record.engaged else None

    def _settle(self, name: str) -> None:
        members = self._contributions_to(name)
        self._depend(name)
        needed, before = _needs(members), _needs(self._committed.pop(name, members))
        for reference in before:
            if reference not in needed:
                self._forget_dependent(reference, name)
        if not members:
            self._members.pop(name, None)

    def _depend(self, name: str) -> None:
        for reference in _needs(self._contributions_to(name)):
            self._dependents.setdefault(reference, {})[name] = None

    def _dependents_on(self, needed: ObjectReference) -> list[str]:
        return [*islice(self._dependents.get(needed, ()), MOST_DEPENDENTS)]

    def _forget_dependent(self, needed: ObjectReference, name: str) -> None:
        names, counted = self._dependents[needed], self._dependents_on(needed)
        del names[name]
        if name in counted and len(names) >= MOST_DEPENDENTS:
            self._promoted.append(self._dependents_on(needed)[-1])
        if not names:
            del self._dependents[needed]

    def _is_absent(self, needed: ObjectReference) -> bool:
        """Return whether an object does not exist or has no content, according to the lists of this run."""
        record = self._found(needed)
        return self._is_listed and (record is None or _content(record).value is None)

    def _found(self, needed: ObjectReference) -> ObjectRecord | None:
        collection, key = needed
        record = self._stores[collection][key]
        return record if record is not None and record.content is not None else None


def _content(record: ObjectRecord) -> ObjectContent:
    assert isinstance(record.content, ObjectContent), "the object has no contributions: its content is a cluster"
    return record.content


def _named(content: ObjectContent | None) -> dict[str, Contribution]:
    return {} if content is None else {contribution.cluster: contribution for contribution in content.contributions}


def _needs(members: Iterable[ObjectContribution]) -> tuple[ObjectReference, ...]:
    return tuple({needed: None for contribution in members for needed in contribution.needs})
