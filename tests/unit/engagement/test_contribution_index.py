"""Clusters that are reduced from several objects."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.engagement.contribution_index import MOST_CONTRIBUTIONS, ContributionIndex
from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource, ObjectsAreClusters, SourcePolicy
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.contributions import (
    ContributingObject,
    Contribution,
    ObjectContent,
    ObjectContribution,
    ObservedObject,
    Reduce,
    earliest,
)
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready, Refused, Withdrawn
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.objects import comparison
from milo_discoveryd.objects.collection import REMOVALS_HELD, ObjectCollection
from milo_discoveryd.objects.pending_deletions import Absent, Inconclusive, PendingDeletions
from milo_discoveryd.objects.store import ObjectChange, ObjectChanges, ObjectPosition
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
)
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.unit.fleet.fleets import malformed, ready, target

STREAMING = ViewStatus(ViewState.STREAMING, 0.0, last_contact=0.0)


def any_of(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
    """Engage a cluster while any object contributes to it, with the UID of the first object of the engagement."""
    if not contributions:
        return None
    first = contributions[0]
    if not any(contribution.content for contribution in contributions):
        return NotReady(cluster, uid or first.uid, first.version, "no object wants it")
    return Ready(uid or first.uid, first.version, target(cluster, cluster))


def first_of(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
    return earliest(cluster, contributions)


class RecordingJournal(Journal):
    def __init__(self) -> None:
        super().__init__(Metrics().sources, Audit(Metrics().audit))
        self.events: list[tuple[str, ...]] = []
        self.statuses: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def object_reported(self, observation: Malformed | Refused) -> None:
        self.refused.append((observation.name, observation.message))

    def changed(self, done: Event, *, is_live: bool) -> None:
        reason = () if done.reason is None else (done.reason.value,)
        self.events.append((done.type.value, done.cluster.target.name, *reason))

    def source_status_changed(self, status: ViewStatus) -> None:
        self.statuses.append(status.reason)


class RecordedFleet:
    """A source that computes clusters from contributions of objects by `reduce`, and its journal."""

    def __init__(self, reduce: Reduce = any_of, resources: int = 1, grace_s: float = 0.0) -> None:
        self.journal = RecordingJournal()
        fleet = Fleet(ChangeLog(lambda _: b"", Retention()))
        made = ClusterSource(
            fleet.changes,
            self.journal,
            SourcePolicy(
                pending_deletions=lambda: PendingDeletions(lambda: 0.0),
                removals=RemovalLimits(),
                not_ready=NotReadyClusters(grace_s),
            ),
            reduce=reduce,
            keys=[NAMES] * resources,
        )
        self.source = fleet.add(made)

    @property
    def engaged(self) -> set[str]:
        return {cluster.target.name for cluster in self.source.engagements.clusters()}

    def collection(self, watch: int = 0) -> ObjectCollection:
        return self.source.collections[watch]

    def take(self, *events: SourceEvent[ObservedObject], watch: int = 0, at: float = 0.0) -> list[tuple[str, ...]]:
        before = len(self.journal.events)
        for _ in self.source.apply(self.collection(watch), events, at):
            pass
        return self.journal.events[before:]

    def listed(self, *objects: ObservedObject, watch: int = 0, at: float = 0.0) -> list[tuple[str, ...]]:
        return self.take(ListStarted(), *map(Listed, objects), ListEnded(), watch=watch, at=at)

    def delete(self, name: str, uid: str, watch: int = 0) -> list[tuple[str, ...]]:
        """Report a deletion and confirm it."""
        before = len(self.journal.events)
        self.take(DeletionReported(name, uid), watch=watch)
        assert self.journal.events[before:] == []
        collection = self.collection(watch)
        for request in collection.pending_deletions.take_due(0.0):
            self.source.resolve(collection, request, Absent(), 0.0)
        return self.journal.events[before:]


def thing(
    name: str, version: int = 1, uid: str = "", *, is_terminating: bool = False, **contributions: object
) -> ContributingObject:
    uid = uid or f"uid-{name}"
    said = tuple(Contribution(cluster, content) for cluster, content in contributions.items())
    return ContributingObject(name, uid, str(version), ObjectContent(said), is_terminating)


def test_cluster_with_malformed_contributions_is_reported_once() -> None:
    """The objects themselves are valid, so their collection reports nothing."""

    def reduce(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        del uid
        return (
            Malformed(cluster, contributions[0].uid, contributions[0].version, str(contributions[0].content))
            if contributions
            else None
        )

    fleet = RecordedFleet(reduce)
    fleet.listed(thing("x", 1, red="169.254.169.254"))
    fleet.take(ObjectChanged(thing("x", 2, red="169.254.169.253")))
    assert fleet.journal.refused == [("red", "169.254.169.254")]


def test_cluster_is_engaged_while_at_least_one_object_contributes_to_it() -> None:
    fleet = RecordedFleet()
    assert fleet.listed(thing("x", shop=True), thing("y", shop=True)) == [("ENGAGED", "shop")]
    assert fleet.take(ObjectChanged(thing("x", 2, shop=False))) == []
    assert fleet.take(ObjectChanged(thing("y", 3, shop=False))) == [("DISENGAGED", "shop", "NOT_READY")]
    assert fleet.take(ObjectChanged(thing("y", 4, shop=True))) == [("ENGAGED", "shop")]


def test_only_the_earliest_of_very_many_contributions_to_one_cluster_count() -> None:
    """Each change of one of them would otherwise be compared with all others."""
    counted: list[str] = []

    def reduce(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        counted[:] = [contribution.object for contribution in contributions]
        return any_of(cluster, contributions, uid)

    fleet = RecordedFleet(reduce)
    names = [f"x-{number}" for number in range(MOST_CONTRIBUTIONS + 3)]
    fleet.listed()
    fleet.take(*(ObjectChanged(thing(name, 1, shop=True)) for name in names))
    assert counted == names[:-3]
    fleet.take(ObjectChanged(thing(names[0], 2, shop=False)), ObjectChanged(thing(names[-1], 2, shop=False)))
    assert counted == names[:-3]
    fleet.delete(names[1], f"uid-{names[1]}")
    assert counted == [names[0], *names[2:-2]]
    assert fleet.engaged == {"shop"}


def test_object_with_several_changes_in_a_batch_contributes_to_a_cluster_once() -> None:
    """As when a controller writes the status right after an object was created."""
    fleet = RecordedFleet()
    fleet.listed()
    assert fleet.take(ObjectChanged(thing("x")), ObjectChanged(thing("x", 2, shop=True))) == [("ENGAGED", "shop")]
    changes = [ObjectChanged(thing("x", 3, bank=True)), ObjectChanged(thing("x", 4, shop=True, bank=True))]
    assert fleet.take(*changes) == [("ENGAGED", "bank")]
    assert set(fleet.delete("x", "uid-x")) == {("DISENGAGED", name, "DELETED") for name in ("shop", "bank")}


CHANGES = st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from(["shop", "bank"]))), max_size=8)


@given(CHANGES)
def test_changes_in_one_batch_have_the_same_result_as_changes_applied_one_by_one(
    changes: list[tuple[str, set[str]]],
) -> None:
    events = [
        ObjectChanged(thing(name, version, **dict.fromkeys(contributions, True)))
        for version, (name, contributions) in enumerate(changes, 1)
    ]
    together, one_by_one = RecordedFleet(), RecordedFleet()
    for fleet in (together, one_by_one):
        fleet.listed()
    together.take(*events)
    for event in events:
        one_by_one.take(event)
    for name in "xyz":
        assert together.engaged == one_by_one.engaged
        for fleet in (together, one_by_one):
            fleet.delete(name, f"uid-{name}")
    assert together.engaged == one_by_one.engaged == set()


def test_cluster_is_disengaged_when_the_deletion_of_its_last_object_is_confirmed() -> None:
    fleet = RecordedFleet()
    fleet.listed(thing("x", shop=True), thing("y", shop=True))
    assert fleet.delete("x", "uid-x") == []
    fleet.take(DeletionReported("y", "uid-y"))
    assert fleet.source.pending_deletion("shop") == (0.0, "")
    assert fleet.source.pending_deletion("none") is None
    assert fleet.source.deletions_unconfirmed == 1
    (request,) = fleet.collection().pending_deletions.take_due(0.0)
    fleet.source.resolve(fleet.collection(), request, Inconclusive("timeout"), 0.0)
    assert fleet.engaged == {"shop"}
    assert fleet.delete("y", "uid-y") == []
    (request,) = fleet.collection().pending_deletions.take_due(100.0)
    fleet.source.resolve(fleet.collection(), request, Absent(), 100.0)
    assert fleet.journal.events[-1] == ("DISENGAGED", "shop", DisengageReason.DELETED.value)
    assert fleet.source.engagements["shop"].state is ObjectState.DELETED  # type: ignore[union-attr]


def test_object_that_contributes_to_several_clusters_may_switch_to_another_cluster() -> None:
    fleet = RecordedFleet()
    assert fleet.listed(thing("x", shop=True, bank=True)) == [("ENGAGED", "shop"), ("ENGAGED", "bank")]
    assert fleet.take(ObjectChanged(thing("x", 2, bank=True, farm=True))) == [
        ("DISENGAGED", "shop", "DELETED"),
        ("ENGAGED", "farm"),
    ]


def test_cluster_is_replaced_only_when_all_its_objects_are_new() -> None:
    fleet = RecordedFleet()
    fleet.listed(thing("x", shop=True))
    fleet.take(ObjectChanged(thing("y", 2, shop=True)))
    assert fleet.delete("x", "uid-x") == []
    replaced = fleet.take(ObjectChanged(thing("y", 3, uid="another", shop=True)))
    assert replaced == [("DISENGAGED", "shop", "REPLACED"), ("ENGAGED", "shop")]


def test_earliest_object_keeps_its_cluster_when_a_later_object_contributes_to_it() -> None:
    fleet = RecordedFleet(first_of)
    mine = Ready("mine", "1", target("shop", "mine"))
    theirs = Ready("theirs", "2", target("shop", "theirs"))
    assert fleet.listed(thing("b", uid="mine", shop=mine)) == [("ENGAGED", "shop")]
    assert fleet.take(ObjectChanged(thing("a", 2, uid="theirs", shop=theirs))) == []
    again = Ready("mine", "3", target("shop", "mine", organization="acme"))
    assert fleet.take(ObjectChanged(thing("b", 3, uid="mine", shop=again))) == [("UPDATED", "shop")]
    assert fleet.delete("b", "mine") == [("DISENGAGED", "shop", "REPLACED"), ("ENGAGED", "shop")]


def test_cluster_claimed_by_two_objects_of_one_list_is_not_engaged() -> None:
    fleet = RecordedFleet(first_of)
    both = [thing(name, shop=Ready(f"uid-{name}", "1", target("shop", name))) for name in "ab"]
    assert fleet.listed(*both) == []
    assert fleet.source.engagements["shop"].state is ObjectState.MALFORMED  # type: ignore[union-attr]
    assert fleet.delete("a", "uid-a") == [("ENGAGED", "shop")]


def test_object_that_becomes_malformed_keeps_its_last_contributions() -> None:
    fleet = RecordedFleet()
    fleet.listed(thing("x", shop=True))
    assert fleet.take(ObjectChanged(malformed("x", "2", "uid-x"))) == []
    assert fleet.engaged == {"shop"}


def test_fleet_is_synced_when_every_resource_was_listed() -> None:
    fleet = RecordedFleet(resources=2)
    fleet.listed(thing("x", shop=True))
    assert not fleet.source.synced
    fleet.listed(thing("x", shop=False), watch=1)
    assert fleet.source.synced
    assert fleet.engaged == {"shop"}


def test_source_status_is_the_worst_status_of_its_resources() -> None:
    fleet = RecordedFleet(resources=2)
    fleet.source.set_followed(fleet.collection(0), STREAMING)
    assert fleet.source.status.state is ViewState.CATCHING_UP
    fleet.source.set_followed(fleet.collection(1), STREAMING)
    assert fleet.source.status.state is ViewState.STREAMING
    fleet.source.set_followed(fleet.collection(0), ViewStatus(ViewState.STALE, 5.0, "Timeout", "", 4.0))
    assert (fleet.source.status.reason, fleet.source.status.last_contact) == ("Timeout", 0.0)


def test_relist_that_lacks_most_contributing_objects_holds_their_removal() -> None:
    fleet = RecordedFleet()
    fleet.listed(*(thing(f"x{n}", **{f"c{n}": True}) for n in range(30)))
    assert fleet.listed() == []
    assert fleet.source.deletions_held == 30
    fleet.source.set_followed(fleet.collection(), STREAMING)
    assert fleet.source.status.reason == REMOVALS_HELD
    assert fleet.collection().relist_at is not None


def test_list_that_lacks_contributing_objects_is_applied_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = RecordedFleet()
    fleet.listed(*(thing(f"x{n}", **{f"c{n}": True}) for n in range(30)))
    monkeypatch.setattr(comparison, "OBJECTS_PER_STEP", 5)
    steps = [*fleet.source.apply(fleet.collection(), (ListStarted(), ListEnded()), 0.0)]
    assert len(steps) >= 6
    assert fleet.source.deletions_held == 30


def test_relist_without_the_contributing_objects_that_were_terminating_holds_no_removal() -> None:
    fleet = RecordedFleet()
    fleet.listed(*(thing(f"x{n}", **{f"c{n}": True}) for n in range(30)), thing("y", shop=True))
    fleet.take(*(ObjectChanged(thing(f"x{n}", 2, is_terminating=True, **{f"c{n}": True})) for n in range(30)))
    assert fleet.listed(thing("y", shop=True)) == []
    assert fleet.source.deletions_held == 0


async def test_not_ready_grace_period_of_cluster_with_contributions_ends_at_its_due_time() -> None:
    fleet = RecordedFleet(grace_s=10.0)
    fleet.listed(thing("x", shop=True))
    fleet.source.set_followed(fleet.collection(), STREAMING)
    assert fleet.take(ObjectChanged(thing("x", 2, shop=False)), at=1.0) == []
    assert fleet.source.due_at == 11.0
    fleet.source.tick(11.0)
    assert fleet.journal.events[-1] == ("DISENGAGED", "shop", "NOT_READY")


def test_relisting_and_liveness_checks_change_no_cluster_with_contributions() -> None:
    fleet = RecordedFleet()
    assert fleet.take(Relisting("Expired")) == []
    fleet.source.observer.liveness_checked("answered")
    assert fleet.collection().reference_objects == ()


@pytest.fixture
def restored() -> RecordedFleet:
    """Return a fleet restored from an earlier run: x and y contributed to shop, z to bank, no object to farm."""
    before = RecordedFleet(resources=2)
    before.listed(thing("x", shop=True), thing("y", shop=True), thing("w"))
    before.listed(thing("z", bank=True), watch=1)
    fleet = RecordedFleet(resources=2)
    stored = [(Ready(record.uid, "", record.cluster.target), 5.0) for _, record in before.source.engagements.items()]  # type: ignore[union-attr]
    stored.append((Ready("gone", "", target("farm", "farm")), 5.0))
    status = ViewStatus(ViewState.STALE, 0.0, "Restored", "")
    list(fleet.source.restore(stored, before.source.stored_objects(), status))
    assert fleet.engaged == {"shop", "bank", "farm"}
    assert fleet.source.synced
    assert fleet.source.progress.is_restored
    fleet.journal.events.clear()
    return fleet


def test_restored_clusters_stay_engaged_until_all_their_objects_were_seen_again(restored: RecordedFleet) -> None:
    assert restored.listed(thing("x", 9, shop=False), thing("y", 9, shop=True), thing("w", 9)) == []
    assert restored.listed(thing("z", 9, bank=False), watch=1)[0] == ("DISENGAGED", "bank", "NOT_READY")
    assert not restored.source.progress.is_restored
    assert restored.engaged == {"shop"}


def test_restored_cluster_is_disengaged_when_the_deletion_of_its_objects_is_confirmed(restored: RecordedFleet) -> None:
    assert restored.listed(thing("x", 9, shop=False), thing("w", 9)) == []
    collection = restored.collection()
    for request in collection.pending_deletions.take_due(0.0):
        restored.source.resolve(collection, request, Absent(), 0.0)
    assert restored.journal.events == [("DISENGAGED", "shop", "NOT_READY")]


def test_restored_clusters_stay_engaged_while_objects_are_malformed_or_not_listed(restored: RecordedFleet) -> None:
    restored.take(ListStarted(), Listed(malformed("x", "9", "uid-x")), Listed(thing("y", 9)), ListEnded())
    assert restored.engaged == {"shop", "bank", "farm"}


def test_restored_cluster_without_contributions_is_disengaged_once_all_resources_were_listed(
    restored: RecordedFleet,
) -> None:
    restored.listed(thing("x", 9, shop=True), thing("y", 9, shop=True))
    assert restored.listed(thing("z", 9, bank=True), watch=1) == [("DISENGAGED", "farm", "DELETED")]


def test_deletion_of_namespaced_object_is_confirmed_by_namespace_and_name() -> None:
    fleet = RecordedFleet()
    shared = Fleet(ChangeLog(lambda _: b"", Retention()))
    made = ClusterSource(
        shared.changes,
        fleet.journal,
        SourcePolicy(pending_deletions=lambda: PendingDeletions(lambda: 0.0)),
        reduce=any_of,
        keys=[ObjectKeys(namespaced=True)],
    )
    fleet.source = shared.add(made)
    fleet.listed(thing("a/x", shop=True), thing("b/x", shop=False))
    fleet.take(DeletionReported("x", "uid-a/x", "a"))
    (request,) = fleet.collection().pending_deletions.take_due(0.0)
    assert request.name == "a/x"
    fleet.source.resolve(fleet.collection(), request, Absent(), 0.0)
    assert fleet.journal.events[-1] == ("DISENGAGED", "shop", "NOT_READY")


def test_cluster_is_not_engaged_if_its_contributions_yield_no_observation() -> None:
    fleet = RecordedFleet(lambda *_: None)
    assert fleet.listed(thing("x", shop=True)) == []
    assert fleet.source.engagements["shop"] is None


def test_withdrawn_cluster_is_disengaged_as_removed() -> None:
    def withdrawn(cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        if contributions and contributions[0].content:
            return any_of(cluster, contributions, uid)
        return Withdrawn(cluster, uid, "", "deactivated")

    fleet = RecordedFleet(withdrawn)
    fleet.listed(thing("x", shop=True))
    assert fleet.take(ObjectChanged(thing("x", 2, shop=False))) == [("DISENGAGED", "shop", "REMOVED")]
    assert fleet.source.engagements["shop"].state is ObjectState.WITHDRAWN  # type: ignore[union-attr]


def test_contribution_of_a_list_precedes_one_that_was_read_while_the_list_was_applied() -> None:
    log = ChangeLog(lambda _: b"", Retention())
    index = ContributionIndex(first_of, Engagements(log), [])
    for name, position in (("read", 2), ("listed", 1)):
        content = ObjectContent((Contribution("shop", ready("shop", "1", f"uid-{name}")),))
        changes = ObjectChanges([ObjectChange(name, f"uid-{name}", "1", None, content, None)], ObjectPosition(position))
        [states] = index.states(0, changes)
    assert [state.uid for state in states.states] == ["uid-listed"]
    assert index.objects_of("shop") == ((0, "listed"), (0, "read"))


def test_object_that_represents_a_cluster_contributes_to_no_other_cluster() -> None:
    meaning, position = ObjectsAreClusters(), ObjectPosition(1)
    clusters = [ready()]
    change = ObjectChange("a", "u1", "1", None, clusters[0].target, clusters[0])
    [states] = meaning.states(0, ObjectChanges([change], position))
    assert (states.states, states.position) == (clusters, position)
    assert [*meaning.states_once_listed(position)] == []
    assert meaning.objects_of("a") == ((0, "a"),)
    assert [*meaning.stored_objects()] == []
