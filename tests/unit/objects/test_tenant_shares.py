"""The shares of tenants in the budget of a source: one that fills it delays nobody else."""

from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec
import pytest

from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotReady, ObjectFields, Observation, Ready
from milo_discoveryd.objects.budget import OVER_BUDGET_RETRY_S, ObjectBudget, fair_share
from milo_discoveryd.objects.pending_deletions import Absent
from milo_discoveryd.objects.store import CollectionWeight, weigh
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted, ObjectChanged
from tests.unit.fleet.fleets import ListedClusters, malformed, not_ready, ready

LIMIT = 200_000
LARGE = 10_000


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

    def states(self, tenant: str) -> set[ObjectState]:
        return {record.state for key, record in self.store.items() if key.startswith(tenant)}


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


def test_source_with_more_objects_than_can_be_known_is_over_its_budget(source: SharedSource) -> None:
    source.lists(*objects("large", 1000), *objects("small", 1))
    assert not source.collection.is_synced
    assert "watch.objects_limit" in source.collection.over_budget
    source.lists(*objects("large", 10), *objects("small", 1))
    assert (source.engaged("large"), source.engaged("small"), source.collection.over_budget) == (10, 1, "")


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
    assert source.collection.over_budget
    assert source.weight.budget.kept < 2 * LIMIT


def test_small_object_has_the_expected_weight() -> None:
    assert weigh(of("small", "p-000").target) < 1000
