"""The shares of tenants in the budget of a source: one that fills it delays nobody else."""

from collections.abc import Iterable
from itertools import count, islice
from random import Random
from typing import Any

import msgspec
import pytest

from milo_discoveryd.log.events import Event
from milo_discoveryd.model.contributions import ContributingObject, ObjectContent, ObservedObject
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotReady, ObjectFields, Observation, Ready
from milo_discoveryd.objects.budget import MARKERS, OVER_BUDGET, OVER_BUDGET_RETRY_S, ObjectBudget, fair_share
from milo_discoveryd.objects.pending_deletions import Absent
from milo_discoveryd.objects.store import CollectionWeight, ObjectChanges, weigh
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from tests.unit.fleet.fleets import ListedClusters, malformed, not_ready, ready

LIMIT = 350_000
LARGE = 17_500


def of(tenant: str, name: str, version: str = "1", *, size: int = 0, keyed: bool = True) -> Ready:
    """A ready object of a tenant, which is a namespace, or else an organization."""
    key = f"{tenant}/{name}" if keyed else f"{tenant}-{name}"
    return ready(key, version, labels={"mark": "x" * size} if size else {}, organization="" if keyed else tenant)


def objects(tenant: str, count: int, **more: Any) -> Iterable[Ready]:
    return (of(tenant, f"p-{number:03}", **more) for number in range(count))


class SharedSource(ListedClusters):
    def __init__(self) -> None:
        self.weight = CollectionWeight(ObjectBudget(LIMIT))
        super().__init__(weight=self.weight)

    def engaged(self, tenant: str) -> int:
        return sum(cluster.target.name.startswith(tenant) for cluster in self.engagements.clusters())

    def taken(self, tenant: str) -> set[str]:
        known = self.store.items()
        return {key for key, record in known if key.startswith(tenant) and record.state is ObjectState.READY}

    def content(self, tenant: str) -> set[str]:
        return {key for key, record in self.store.items() if key.startswith(tenant) and record.content is not None}

    def states(self, tenant: str) -> set[ObjectState]:
        return {record.state for key, record in self.store.items() if key.startswith(tenant)}


class ContributedSource(SharedSource):
    def _commit(self, objects: ObjectChanges) -> list[Event]:
        return []


@pytest.fixture
def source() -> SharedSource:
    return SharedSource()


@pytest.fixture(params=[True, False], ids=["namespaces", "organizations"])
def keyed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_fair_share_leaves_what_others_need() -> None:
    assert fair_share([], 100) == 100
    assert fair_share([30, 40], 100) == 70
    assert fair_share([10, 500], 100) == 90
    assert fair_share([10, 500, 300, 20], 100) == 35
    assert fair_share([5] * 20, 100) == 5


def test_list_of_a_tenant_with_too_many_objects_has_those_of_the_others(source: SharedSource, keyed: bool) -> None:
    source.lists(*objects("large", 30, size=LARGE, keyed=keyed), *objects("small", 20, keyed=keyed))
    assert (source.engaged("small"), source.collection.over_budget) == (20, "")
    assert 1 <= source.engaged("large") < 30
    assert source.states("large") == {ObjectState.READY, ObjectState.MALFORMED}
    assert source.weight.used <= LIMIT + LIMIT // 4


def test_first_object_of_another_tenant_fits_although_the_source_is_full(source: SharedSource) -> None:
    fillers = [of("large", f"q-{number}") for number in range(30)]
    source.lists(*objects("large", 20, size=LARGE), *fillers, of("small", "p"))
    assert (source.engaged("small"), source.collection.over_budget) == (1, "")


def test_changes_of_others_go_on_while_a_tenant_fills_the_source(source: SharedSource, keyed: bool) -> None:
    source.lists(*objects("large", 5, size=LARGE, keyed=keyed), *objects("small", 5, keyed=keyed))
    source.take(*map(ObjectChanged, objects("large", 30, version="2", size=2 * LARGE, keyed=keyed)))
    source.take(ObjectChanged(of("small", "p-001", "2", size=500, keyed=keyed)))
    source.take(*map(ObjectChanged, objects("small", 20, version="3", keyed=keyed)))
    source.take(DeletionReported(of("small", "p-001", keyed=keyed).name, "u1"))
    for request in source.due_requests():
        source.resolve(request, Absent())
    assert (source.engaged("small"), source.collection.over_budget) == (19, "")


def test_cluster_whose_object_outgrew_the_share_keeps_its_last_state(source: SharedSource) -> None:
    source.lists(*objects("large", 5), *objects("small", 5))
    source.take(*map(ObjectChanged, objects("large", 5, version="2", size=LIMIT // 2)))
    assert source.engaged("large") == 5
    problem = source.collection.problem_of("large/p-004")
    assert "large" in problem
    assert "watch.objects_limit" in problem


def test_objects_that_were_not_taken_are_listed_again_and_taken_once_there_is_room(source: SharedSource) -> None:
    small = [*objects("small", 20)]
    source.lists(*objects("large", 30, size=LARGE), *small)
    at = source.collection.relist_at
    assert at is not None
    assert at <= OVER_BUDGET_RETRY_S
    source.now = 60.0
    source.lists(*objects("large", 8, size=LARGE), *small)
    for request in source.due_requests():
        source.resolve(request, Absent())
    assert source.engaged("large") == 8
    source.now = OVER_BUDGET_RETRY_S
    source.lists(*objects("large", 8, size=LARGE), *small)
    assert source.states("large") == {ObjectState.READY, ObjectState.DELETED}
    assert source.collection.relist_at is None


def test_large_honest_tenant_keeps_what_nobody_else_needs(source: SharedSource) -> None:
    others = [of(f"small-{number}", "p") for number in range(20)]
    source.lists(*objects("large", 30, size=LARGE), *others, *objects("medium", 4, size=LARGE))
    assert (source.engaged("medium"), source.engaged("small")) == (4, 20)


def test_unchanged_objects_stay_although_new_ones_of_another_tenant_are_listed_first(source: SharedSource) -> None:
    known = [*objects("known", 15, size=LARGE // 2)]
    source.lists(*known)
    source.lists(*objects("a-new", 30, size=LARGE), *known)
    assert (source.engaged("known"), source.collection.over_budget) == (15, "")
    assert source.states("known") == {ObjectState.READY}


def test_state_of_an_object_that_is_not_taken_is_known(source: SharedSource) -> None:
    source.lists(*objects("large", 30, size=LARGE), *objects("small", 5))
    fields = ObjectFields("large/p-000", "", (("mark", "y" * 4 * LARGE),))
    source.take(ObjectChanged(msgspec.structs.replace(not_ready("large/p-000", "2"), fields=fields)))
    record = source.store["large/p-000"]
    assert record is not None
    assert record.state is ObjectState.NOT_READY
    assert source.collection.over_budget == ""


@pytest.fixture(params=["namespaces", "organizations", "contributions"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def of_kind(kind: str, tenant: str, numbers: Iterable[int], version: str = "1", size: int = 0) -> list[ObservedObject]:
    keyed = kind != "organizations"
    seen = [of(tenant, f"p-{number:04}", version, size=size, keyed=keyed) for number in numbers]
    if kind != "contributions":
        return [*seen]
    return [ContributingObject(each.name, each.uid, version, ObjectContent(value=each.target)) for each in seen]


def test_further_objects_of_a_tenant_of_which_there_is_room_for_nothing_are_left_out(kind: str) -> None:
    source = ContributedSource() if kind == "contributions" else SharedSource()

    def lists() -> None:
        source.lists(*evil, *honest)
        assert (source.collection.over_budget, source.collection.is_synced) == ("", True)

    def sees(*events: SourceEvent[ObservedObject]) -> None:
        source.take(*events)
        assert source.collection.over_budget == ""

    evil, honest = of_kind(kind, "evil", range(800)), of_kind(kind, "honest", range(5))
    lists()
    taken, known = source.taken("evil"), len([*source.store.items()])
    assert (len(source.taken("honest")), source.states("evil")) == (5, {ObjectState.READY, ObjectState.MALFORMED})
    assert 100 < len(taken) < known < 800
    further, new = of_kind(kind, "evil", range(800, 1600)), of_kind(kind, "honest", range(5, 20))
    sees(*map(ObjectChanged, further), *map(ObjectChanged, new), *map(ObjectChanged, further))
    sees(DeletionReported(further[0].name, "u1"))
    evil, honest = evil + further, honest + new
    assert (len(source.taken("honest")), source.taken("evil")) == (20, taken)
    assert (len([*source.store.items()]), source.due_requests()) == (known + 15, [])
    lists()
    assert (len(source.taken("honest")), source.taken("evil"), source.due_requests()) == (20, taken, [])
    sees(*map(ObjectChanged, of_kind(kind, "evil", range(1600), "2", size=100)))
    assert (source.content("evil"), source.taken("evil")) == (taken, set())
    assert all(source.collection.problem_of(key) for key in taken)
    assert source.weight.used == sum(source.weight.by_owner.values()) < LIMIT + LIMIT // 4
    assert source.weight.relist_at == OVER_BUDGET_RETRY_S
    evil = of_kind(kind, "evil", range(1500, 1600), "3")
    lists()
    while requests := source.due_requests():
        for request in requests:
            source.resolve(request, Absent())
    assert source.taken("evil") == source.content("evil")
    assert len(source.taken("evil")) == 100
    assert (len(source.taken("honest")), source.weight.relist_at) == (20, None)


def test_known_object_of_which_there_is_no_room_for_a_marker_weighs_no_more_than_before(source: SharedSource) -> None:
    names = [f"large/n-{number}" for number in range(50)]
    source.lists(*map(not_ready, names), *objects("large", 800), *objects("small", 1))
    used = source.weight.used
    source.take(*(ObjectChanged(ready(name, "3", labels={"mark": "x" * 1000})) for name in names))
    assert (source.weight.used, source.collection.over_budget) == (used, "")
    assert {source.collection.problem_of(name) for name in names} == {OVER_BUDGET}
    source.lists(*(ready(name, "3") for name in names), *objects("small", 1))
    assert len([key for key in source.taken("large") if key in names]) == 50


def test_lists_with_ever_more_objects_of_a_tenant_leave_room_for_those_of_others(source: SharedSource) -> None:
    evil, honest = [*objects("evil", 400)], [*objects("honest", 1)]
    for number in range(1, 10):
        evil = [*(of("evil", f"n-{number}-{each:03}") for each in range(100)), *evil]
        source.lists(*evil, *honest)
        assert source.weight.by_owner[MARKERS] <= LIMIT // 8
        honest = [of("honest", f"p-{number}-first"), *honest]
        source.lists(honest[0], *evil, *honest[1:])
        honest = [*honest, of("honest", f"p-{number}-seen")]
        source.take(ObjectChanged(honest[-1]))
        assert (source.collection.over_budget, source.engaged("honest")) == ("", len(honest))
    assert source.due_requests() == []


def test_object_that_was_deleted_and_for_which_there_is_no_room_again_stays_deleted(source: SharedSource) -> None:
    source.lists(*objects("large", 999), *objects("small", 1))
    source.take(DeletionReported("large/p-000", "u1"))
    for request in source.due_requests():
        source.resolve(request, Absent())
    source.take(ObjectChanged(of("large", "q")), *map(ObjectChanged, objects("large", 1, version="2")))
    record = source.store["large/p-000"]
    assert (record and record.state, source.collection.over_budget) == (ObjectState.DELETED, "")
    source.lists(*objects("large", 1, version="2"), *objects("small", 1))
    assert source.engaged("large") >= 1


def test_object_that_a_list_has_twice_is_taken_although_the_second_one_does_not_fit(source: SharedSource) -> None:
    twice = of("large", "twice")
    source.lists(twice, *objects("large", 999), of("large", "twice", "2", size=LARGE), *objects("small", 1))
    assert source.store.is_present("large/twice", "u1")
    assert source.due_requests() == []


def test_list_that_does_not_end_is_over_the_budget(source: SharedSource) -> None:
    more = (of("large", f"p-{number}") for number in count())
    source.take(ListStarted(), Listed(of("small", "p")), *map(Listed, islice(more, 5000)))
    assert "watch.objects_limit" in source.collection.over_budget
    source.lists(*objects("large", 10), *objects("small", 1))
    assert (source.engaged("large"), source.engaged("small"), source.collection.over_budget) == (10, 1, "")


def test_source_of_too_many_tenants_is_over_its_budget(source: SharedSource) -> None:
    source.lists(*(of(f"tenant-{number}", "p") for number in range(1000)))
    assert "watch.objects_limit" in source.collection.over_budget
    assert not source.collection.is_synced


def test_malformed_object_that_is_not_taken_is_known_by_an_excerpt_of_its_message(source: SharedSource) -> None:
    fillers = [of("large", f"q-{number}") for number in range(30)]
    message = "y" * LARGE
    nonsense = [msgspec.structs.replace(malformed(f"large/n-{number}"), message=message) for number in range(2)]
    source.lists(*objects("large", 20, size=LARGE), *fillers, *nonsense, of("small", "p"))
    assert source.collection.problem_of("large/n-1") == message[:256]


def test_object_that_moves_to_another_organization_and_grows_counts_as_its_own(source: SharedSource) -> None:
    moved, second = of("first", "p", keyed=False), "second" * 10
    source.lists(moved)
    target = msgspec.structs.replace(moved.target, organization=second)
    source.take(ObjectChanged(msgspec.structs.replace(moved, version="2", target=target)))
    assert source.weight.by_owner == {second: source.weight.used}


def test_weights_of_tenants_add_up_after_any_changes() -> None:
    random, source = Random(1), SharedSource()
    for version in range(1, 400):
        chosen = [
            of(random.choice("abc"), f"p-{random.randrange(12)}", str(version), size=random.choice((0, 100, LARGE)))
            for _ in range(random.randrange(1, 4))
        ]
        events: list[Observation] = [
            random.choice((seen, seen, NotReady(seen.name, seen.uid, seen.version, "", fields=None))) for seen in chosen
        ]
        match random.randrange(4):
            case 0:
                source.take(ListStarted(), *map(Listed, {seen.name: seen for seen in events}.values()), ListEnded())
            case 1:
                source.take(*[DeletionReported(seen.name, "u1") for seen in events])
                for request in source.due_requests():
                    source.resolve(request, Absent())
            case _:
                source.take(*map(ObjectChanged, events))
        weight = source.weight
        assert sum(weight.by_owner.values()) == weight.used == weight.budget.used
        assert all(more > 0 for more in weight.by_owner.values())
        assert weight.budget.kept == sum(record.weight for _, record in source.store.items())


def test_changes_of_objects_that_are_not_taken_count_once(source: SharedSource) -> None:
    source.lists(*objects("large", 20, size=LARGE), *objects("small", 1))
    for version in range(2, 100):
        source.take(*map(ObjectChanged, objects("large", 20, version=str(version), size=LARGE)))
        assert source.collection.over_budget == ""
    source.take(*map(ObjectChanged, objects("large", 1000, version="100", size=LARGE)))
    assert source.collection.over_budget == ""
    assert source.weight.budget.kept < 2 * LIMIT


def test_small_object_has_the_expected_weight() -> None:
    assert weigh(of("small", "p-000").target) < 1500
