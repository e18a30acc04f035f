"""Clusters whose objects need other objects: changes in any order equal a computation from scratch."""

from collections.abc import Iterable

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milo_discoveryd.model.claims import UNREAD, Claim, ClaimingObject, ObjectReference
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.object_records import ObjectRecords
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.reduction import Reduction
from milo_discoveryd.registry.registry import Registry
from tests.unit.registry.test_reduction_references import OBJECTS, SECRETS, a_secret, an_object, at_secret

NAMES, KEYS = ("a", "b", "c"), ("k", "m")


class ReductionOfReferences(RuleBasedStateMachine):
    """Changes of both resources in any order and in batches, and restarts, against a computation from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, Ready] = {}
        self.secrets: dict[str, Ready] = {}
        self.version = 0
        self.must_list: list[int] = []
        """The resources that were not listed since the restart."""
        self.should_stay: set[str] = set()
        self.known: dict[int, set[str]] = {OBJECTS: set(), SECRETS: set()}
        """The objects in the state file."""
        self.commits_later = False
        self.began((), ())

    def began(self, engaged: Iterable[Cluster], known: Iterable[tuple[int, Ready]]) -> None:
        self.clusters = Registry(ChangeLog(lambda _: b"", Retention()))
        self.records = [ObjectRecords(), ObjectRecords()]
        self.reduction = Reduction(at_secret, self.clusters, self.records)
        self.ended: set[str] = set()
        self.uncommitted: list[str] = []
        for each in engaged:
            self.clusters.restore(Ready(each.target.uid, "", each.target), 0.0, Moment(0.0, 0.0))
        for watch, seen in known:
            found = seen.target
            assert isinstance(found, ClaimingObject)
            claims = tuple(Claim(each.cluster, UNREAD) for each in found.claims)
            unread = msgspec.structs.replace(found, claims=claims, content=UNREAD)
            changes = self.records[watch].restore(Ready(seen.uid, "", unread), 0.0, Moment(0.0, 0.0))
            self.reduction.restore(watch, changes)

    def apply(self, watch: int, *seen: Ready | ConfirmedDeletion) -> None:
        self.version += 1
        changes = self.records[watch].commit(seen, Moment(0.0, 0.0), consistent=True)
        self.uncommitted += self.reduction.apply(watch, changes, self.version)
        if not self.commits_later:
            self.commit(len(self.uncommitted))

    @rule(size=st.integers(1, 3))
    def commit(self, size: int) -> None:
        batch, self.uncommitted = self.uncommitted[:size], self.uncommitted[size:]
        self.note(self.reduction.commit([*dict.fromkeys(batch)], Moment(0.0, 0.0)))

    @rule(later=st.booleans())
    def commit_later(self, later: bool) -> None:
        """Let other changes come before the batches of a change that concerns many clusters."""
        self.commits_later = later
        if not later:
            self.commit(len(self.uncommitted))

    def note(self, events: Iterable[Event]) -> None:
        self.ended |= {each.cluster.target.name for each in events if each.type is EventType.DISENGAGED}

    def change(self, watch: int, seen: Ready | ConfirmedDeletion) -> None:
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
        """Apply a complete list; what it lacks was confirmed as deleted."""
        watch = self.must_list[0]
        listed = (self.objects, self.secrets)[watch]
        missing = self.known[watch] - listed.keys()
        self.apply(watch, *listed.values())
        self.apply(watch, *map(deleted, missing))
        self.must_list = self.must_list[1:]
        if not self.must_list:
            self.note(self.reduction.listed(Moment(0.0, 0.0)))

    @precondition(lambda self: not self.must_list)
    @rule(order=st.permutations((OBJECTS, SECRETS)), forgets=st.booleans())
    def restart(self, order: list[int], forgets: bool) -> None:
        """Start again from the state file, which may be of a version that did not watch Secrets."""
        known = [(OBJECTS, each) for each in self.objects.values()]
        known += [] if forgets else [(SECRETS, each) for each in self.secrets.values()]
        self.began([*self.clusters.clusters()], known)
        self.known = {OBJECTS: set(self.objects), SECRETS: set() if forgets else set(self.secrets)}
        self.must_list = order

    @invariant()
    def equals_a_computation_from_scratch(self) -> None:
        if self.must_list or self.uncommitted:
            return
        scratch = Registry(ChangeLog(lambda _: b"", Retention()))
        records, now = [ObjectRecords(), ObjectRecords()], Moment(0.0, 0.0)
        reduction = Reduction(at_secret, scratch, records)
        for watch, present in ((SECRETS, self.secrets), (OBJECTS, self.objects)):
            changes = records[watch].commit(present.values(), now, consistent=True)
            reduction.commit(reduction.apply(watch, changes, 0), now)
        found, expected = map(servers, (self.clusters, scratch))
        assert found == expected == self.truth
        for name in NAMES:
            assert set(self.reduction.objects(name)) == set(reduction.objects(name))
        # Anything else would be a leak.
        assert self.reduction._dependents.keys() == reduction._dependents.keys()
        assert self.reduction._members.keys() == reduction._members.keys()
        assert not self.reduction._committed

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


def servers(clusters: Registry) -> dict[str, str]:
    return {each.target.name: each.target.organization for each in clusters.clusters()}


def content_of(secret: Ready) -> str:
    assert isinstance(secret.target, ClaimingObject)
    return str(secret.target.content)


def needs_of(obj: Ready) -> list[ObjectReference]:
    assert isinstance(obj.target, ClaimingObject)
    return [each for claim in obj.target.claims for each in claim.needs]


def deleted(key: str) -> ConfirmedDeletion:
    return ConfirmedDeletion(key, f"uid-{key}")


TestReductionOfReferences = ReductionOfReferences.TestCase
TestReductionOfReferences.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
