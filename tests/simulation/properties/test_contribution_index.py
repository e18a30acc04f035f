"""Clusters whose objects reference others: the result of changes in any order equals a computation from scratch."""

from collections.abc import Iterable, Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milo_discoveryd.engagement.claims import FleetEngagements
from milo_discoveryd.engagement.contribution_index import ContributionIndex
from milo_discoveryd.engagement.engagement import ClusterStates, Engagements
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.contributions import (
    ContributingObject,
    ObjectReference,
)
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion, PendingDeletions
from milo_discoveryd.objects.store import ObjectChanges, ObjectPosition, ObjectStore, Positions, SourcePositions
from milo_discoveryd.state_file.encoding import StoredObject
from milo_kube.moment import Moment
from tests.unit.engagement.test_contribution_index_references import OBJECTS, SECRETS, a_secret, an_object, at_secret

NAMES, KEYS = ("a", "b", "c"), ("k", "m")


class ReductionOfReferences(RuleBasedStateMachine):
    """Changes of both resources in any order and in batches, and restarts, against a computation from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, ContributingObject] = {}
        self.secrets: dict[str, ContributingObject] = {}
        self.version = 0
        self.must_list: list[int] = []
        """The resources that were not listed since the restart."""
        self.should_stay: set[str] = set()
        self.known: dict[int, set[str]] = {OBJECTS: set(), SECRETS: set()}
        """The objects in the state file."""
        self.commits_later = False
        self.began((), ())

    def began(self, engaged: Iterable[Cluster], known: Iterable[tuple[int, ContributingObject]]) -> None:
        self.clusters, self.fleet = Engagements(ChangeLog(lambda _: b"", Retention())), FleetEngagements()
        self.claimant = self.fleet.add_source("", self.clusters, "")
        self.stores = [ObjectStore(), ObjectStore()]
        self.index = ContributionIndex(at_secret, self.clusters, self.stores)
        self.ended: set[str] = set()
        self.uncommitted: list[Iterator[ClusterStates]] = []
        self.fleet.restore(
            self.claimant, [(Ready(cluster.target.uid, "", cluster.target), 0.0) for cluster in engaged], 0.0
        )
        stored = [
            StoredObject(watch, seen.name, seen.uid, tuple(made.cluster for made in seen.content.contributions))
            for watch, seen in known
        ]
        positions = SourcePositions(Positions(), range(2))
        collections = [
            ObjectCollection(watch, store, PendingDeletions(lambda: 0.0), positions, RemovalLimits())
            for watch, store in enumerate(self.stores)
        ]
        self.index.restore(collections, (), stored)

    def apply(self, watch: int, *seen: ContributingObject | ConfirmedDeletion) -> None:
        self.version += 1
        changes = [change for read in seen for change in self.stores[watch].apply_read(read)]
        self.uncommitted.append(self.index.states(watch, ObjectChanges(changes, ObjectPosition(self.version))))
        if not self.commits_later:
            self.commit_all()

    @rule(size=st.integers(1, 3))
    def commit(self, size: int) -> None:
        for _ in range(size):
            if self.uncommitted:
                found = next(self.uncommitted[0], None)
                if found is None:
                    self.uncommitted.pop(0)
                else:
                    self.note(self.fleet.commit(self.claimant, found, Moment(0.0, 0.0)))

    def commit_all(self) -> None:
        while self.uncommitted:
            self.commit(1)

    @rule(later=st.booleans())
    def commit_later(self, later: bool) -> None:
        """Choose whether other changes are applied before the remaining batches of a change to many clusters."""
        self.commits_later = later
        if not later:
            self.commit_all()

    def note(self, events: Iterable[Event]) -> None:
        self.ended |= {event.cluster.target.name for event in events if event.type is EventType.DISENGAGED}

    def change(self, watch: int, seen: ContributingObject | ConfirmedDeletion) -> None:
        if watch not in self.must_list:
            self.apply(watch, seen)

    @rule(name=st.sampled_from(NAMES), needs=st.sampled_from(KEYS), ready=st.booleans())
    def put_object(self, name: str, needs: str, ready: bool) -> None:
        self.objects[name] = an_object(name, needs, self.version, ready=ready)
        self.change(OBJECTS, self.objects[name])

    @rule(name=st.sampled_from(KEYS), server=st.sampled_from(("s1", "s2")))
    def put_secret(self, name: str, server: str) -> None:
        self.secrets[name] = a_secret(name, server, self.version)
        self.change(SECRETS, self.secrets[name])

    @rule(name=st.sampled_from(NAMES))
    def delete_object(self, name: str) -> None:
        if self.objects.pop(name, None) is not None:
            self.change(OBJECTS, deleted(name))

    @rule(name=st.sampled_from(KEYS))
    def delete_secret(self, name: str) -> None:
        if self.secrets.pop(name, None) is not None:
            self.change(SECRETS, deleted(name))

    @initialize(order=st.permutations((OBJECTS, SECRETS)))
    def start(self, order: list[int]) -> None:
        self.must_list = order

    @precondition(lambda self: self.must_list)
    @rule()
    def read_list(self) -> None:
        """Apply a complete list; objects that it lacks were confirmed as deleted."""
        watch = self.must_list[0]
        listed = (self.objects, self.secrets)[watch]
        missing = self.known[watch] - listed.keys()
        self.apply(watch, *listed.values())
        self.apply(watch, *map(deleted, missing))
        self.must_list = self.must_list[1:]
        if not self.must_list:
            self.uncommitted.append(self.index.states_once_listed(ObjectPosition(self.version)))
            if not self.commits_later:
                self.commit_all()

    @precondition(lambda self: not self.must_list)
    @rule(order=st.permutations((OBJECTS, SECRETS)), forgets=st.booleans())
    def restart(self, order: list[int], forgets: bool) -> None:
        """Start again from the state file, which may be of a version that did not watch Secrets."""
        known = [(OBJECTS, obj) for obj in self.objects.values()]
        known += [] if forgets else [(SECRETS, secret) for secret in self.secrets.values()]
        self.began([*self.clusters.clusters()], known)
        self.known = {OBJECTS: set(self.objects), SECRETS: set() if forgets else set(self.secrets)}
        self.must_list = order

    @invariant()
    def equals_a_computation_from_scratch(self) -> None:
        if self.must_list or self.uncommitted:
            return
        scratch = Engagements(ChangeLog(lambda _: b"", Retention()))
        stores = [ObjectStore(), ObjectStore()]
        index = ContributionIndex(at_secret, scratch, stores)
        for watch, present in ((SECRETS, self.secrets), (OBJECTS, self.objects)):
            changes = stores[watch].apply_listed((seen, 0, "") for seen in present.values())
            for found_states in index.states(watch, ObjectChanges(changes, ObjectPosition(0))):
                scratch.commit(found_states.states, Moment(0.0, 0.0))
        found, expected = map(servers, (self.clusters, scratch))
        assert found == expected == self.truth
        for name in NAMES:
            assert set(self.index.objects_of(name)) == set(index.objects_of(name))
        # Entries that a new index does not have would be a leak.
        assert self.index._dependents.keys() == index._dependents.keys()
        assert self.index._members.keys() == index._members.keys()
        assert not self.index._committed

    @invariant()
    def nothing_ends_that_should_be_engaged(self) -> None:
        self.should_stay &= self.truth.keys()
        assert not self.ended & self.should_stay
        self.ended.clear()
        if not self.must_list:
            self.should_stay = set(self.truth)

    @property
    def truth(self) -> dict[str, str]:
        """Return the clusters that are to be engaged, with their servers."""
        return {
            name: content_of(self.secrets[secret])
            for name, seen in self.objects.items()
            for _, secret in needs_of(seen)
            if secret in self.secrets
        }


def servers(clusters: Engagements) -> dict[str, str]:
    return {cluster.target.name: cluster.target.organization for cluster in clusters.clusters()}


def content_of(secret: ContributingObject) -> str:
    return str(secret.content.value)


def needs_of(obj: ContributingObject) -> list[ObjectReference]:
    return [need for contribution in obj.content.contributions for need in contribution.needs]


def deleted(key: str) -> ConfirmedDeletion:
    return ConfirmedDeletion(key, f"uid-{key}")


TestReductionOfReferences = ReductionOfReferences.TestCase
TestReductionOfReferences.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
