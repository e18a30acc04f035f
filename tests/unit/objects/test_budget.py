"""The budget of the objects of a source."""

import sys
import tracemalloc
from collections.abc import Iterable

import msgspec
import pytest

from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotReady, ObjectFields, Observation
from milo_discoveryd.objects.budget import AllObjects, ObjectBudget
from milo_discoveryd.objects.pending_deletions import Absent, Found
from milo_discoveryd.objects.store import CollectionWeight, ObjectStore, weigh
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Unlisted,
)
from tests.unit.fleet.fleets import ListedClusters, malformed, not_ready, ready

LIMIT = 12
MOST = 2 * LIMIT - LIMIT // 4
"""How many clusters may be known while deletions are unconfirmed."""
SIZE = weigh(ready("p-000").target)


class BudgetedClusters(ListedClusters):
    """The clusters of a collection whose budget is enough for `LIMIT` clusters; collections can share a budget."""

    def __init__(self, budget: ObjectBudget | None = None) -> None:
        self.weight = CollectionWeight(budget or ObjectBudget(LIMIT * SIZE))
        super().__init__(weight=self.weight)

    def lists_clusters(self, count: int) -> None:
        self.lists(*objects(count))

    def confirm(self, name: str) -> None:
        self.take(DeletionReported(name, "u1"))
        (request,) = self.due_requests()
        self.resolve(request, Absent())


def objects(count: int, first: int = 0) -> Iterable[Observation]:
    return (ready(f"p-{number:03}") for number in range(first, first + count))


def test_many_short_labels_count_with_their_memory_overhead() -> None:
    labels = tuple((f"{number:03}", "") for number in range(1000))
    content = NotReady(name="p", uid="u", version="1", message="", fields=ObjectFields("p", "", labels))
    size = sys.getsizeof(labels) + sum(sys.getsizeof(label) + sys.getsizeof(label[0]) for label in labels)
    assert weigh(content) > size
    few = msgspec.structs.replace(content, fields=ObjectFields("p", "", labels[:2]))
    assert weigh(few) < 1536


def test_large_object_counts_with_its_frame() -> None:
    labels = tuple((f"{number:03}", "x" * 60) for number in range(1000))
    content = ready("p", labels=dict(labels)).target
    in_memory = sum(sys.getsizeof(pair) + sys.getsizeof(pair[0]) + sys.getsizeof(pair[1]) for pair in labels)
    assert weigh(content, has_frame=True) > in_memory + 60_000
    store = BudgetedClusters(ObjectBudget())
    store.lists(ready("p", labels=dict(labels)))
    assert store.weight.used == weigh(content, has_frame=True)


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u0142", "\u4e2d", "\U0001f600"])
def test_text_counts_with_its_size_in_memory(character: str) -> None:
    message = character + 2000 * "x"
    assert weigh(NotReady(name="p", uid="u", version="1", message=message)) > sys.getsizeof(message)


def test_list_within_the_budget_is_applied() -> None:
    clusters = BudgetedClusters()
    for _ in range(2):
        clusters.lists_clusters(LIMIT)
    assert (clusters.engagements.engaged, clusters.weight.used) == (LIMIT, LIMIT * SIZE)
    assert clusters.weight.problem == ""


def test_list_that_exceeds_the_budget_is_not_applied() -> None:
    clusters = BudgetedClusters()
    clusters.lists_clusters(LIMIT + 1)
    assert not clusters.collection.is_synced
    assert clusters.engagements.engaged == 0
    assert "watch.objects_limit" in clusters.collection.over_budget


def test_new_objects_of_a_watch_are_applied_up_to_the_budget() -> None:
    clusters = BudgetedClusters()
    clusters.lists_clusters(5)
    clusters.take(*map(ObjectChanged, objects(100, first=100)))
    assert clusters.engagements.engaged == LIMIT
    assert clusters.weight.problem
    clusters.take(*map(ObjectChanged, objects(5, first=300)))
    assert clusters.engagements.engaged == LIMIT


def test_source_over_its_budget_recovers_with_a_shorter_list() -> None:
    clusters = BudgetedClusters()
    clusters.take(*map(ObjectChanged, objects(LIMIT + 5)))
    assert clusters.weight.problem
    clusters.lists_clusters(3)
    assert clusters.weight.problem == ""
    assert clusters.weight.used == 3 * SIZE


def test_most_of_a_fleet_at_the_budget_can_be_replaced_while_its_deletions_are_unconfirmed() -> None:
    clusters = BudgetedClusters()
    for first in (0, MOST - LIMIT):
        clusters.lists(*objects(LIMIT, first))
    clusters.take(ObjectChanged(ready(f"p-{LIMIT:03}", "2")))
    assert (clusters.engagements.engaged, clusters.weight.problem) == (MOST, "")


def test_fleet_at_the_budget_that_is_replaced_at_once_stays_as_it_is() -> None:
    clusters = BudgetedClusters()
    for first in (0, LIMIT - 1):
        clusters.lists(*objects(LIMIT, first))
    assert (clusters.engagements.engaged, bool(clusters.weight.problem)) == (LIMIT, True)


def test_repeated_lists_of_new_objects_keep_at_most_twice_the_budget() -> None:
    clusters = BudgetedClusters()
    for number in range(3):
        clusters.lists(ready("anchor"), *objects(LIMIT - 1, first=number * (LIMIT - 1)))
    assert clusters.weight.problem
    assert clusters.engagements.engaged <= 2 * LIMIT
    clusters.lists(ready("anchor"), *objects(LIMIT - 1))
    assert clusters.weight.problem == ""


def test_new_objects_of_a_watch_and_unconfirmed_deletions_keep_less_than_twice_the_budget() -> None:
    clusters = BudgetedClusters()
    for first in (0, MOST - LIMIT - 1):
        clusters.lists(*objects(LIMIT, first))
    clusters.lists_clusters(1)
    clusters.take(ObjectChanged(ready("new")), ObjectChanged(ready("newer")))
    assert clusters.weight.problem
    assert clusters.engagements.engaged == MOST


def test_reads_that_find_larger_objects_do_not_exceed_the_budget() -> None:
    clusters = BudgetedClusters()
    for first in (0, LIMIT - 1):
        clusters.lists(*objects(LIMIT, first))
    for request in clusters.due_requests():
        clusters.resolve(request, Found(ready(request.name, "2", labels={"mark": "x" * 1000})))
    assert clusters.weight.problem
    assert clusters.weight.used <= LIMIT * SIZE
    assert not any(cluster.target.labels for cluster in clusters.engagements.clusters())


def test_fleet_can_be_replaced_again_after_its_deletions_are_confirmed() -> None:
    clusters = BudgetedClusters()
    half = LIMIT // 2
    for first in (0, LIMIT, 2 * LIMIT):
        clusters.lists(*objects(half, first))
        for request in clusters.due_requests():
            clusters.resolve(request, Absent())
    assert (clusters.engagements.engaged, clusters.weight.problem) == (half, "")


def test_long_name_of_a_deleted_object_counts_toward_the_budget() -> None:
    clusters = BudgetedClusters()
    invalid = malformed("/" * 5 * SIZE)
    clusters.lists(invalid, ready("anchor"))
    clusters.lists(ready("anchor"))
    record = clusters.store[invalid.name]
    assert record is not None
    assert record.state is ObjectState.DELETED
    assert clusters.weight.used > 5 * SIZE


def test_object_that_reappears_counts_toward_the_budget_again() -> None:
    clusters = BudgetedClusters()
    for count in (LIMIT, 1, LIMIT):
        clusters.lists_clusters(count)
    assert clusters.weight.used == LIMIT * SIZE


def test_changes_of_the_same_object_do_not_exhaust_the_budget() -> None:
    clusters = BudgetedClusters()
    clusters.lists_clusters(5)
    for version in range(2, 1000):
        clusters.take(ObjectChanged(ready("p-000", str(version), labels={"mark": f"{version:04}"})))
    assert clusters.weight.problem == ""
    assert clusters.store.outdated == 0


def test_object_that_grows_counts_with_its_current_size() -> None:
    clusters = BudgetedClusters()
    clusters.lists_clusters(1)
    clusters.take(ObjectChanged(ready("p-000", "2", labels={"mark": "x" * 1000})))
    assert clusters.weight.used > SIZE + 1000
    clusters.take(ObjectChanged(ready("p-000", "3")))
    assert clusters.weight.used == SIZE


def test_last_ready_state_of_a_not_ready_object_counts_toward_the_budget() -> None:
    clusters = BudgetedClusters()
    clusters.take(ObjectChanged(ready("p-000", labels={"mark": "x" * 1000})))
    clusters.take(ObjectChanged(not_ready("p-000")))
    assert clusters.weight.used > SIZE + 1000


def test_object_deleted_during_a_list_counts_toward_the_budget_until_the_list_is_complete() -> None:
    clusters = BudgetedClusters()
    clusters.take(ListStarted(), Listed(ready("a")), Unlisted("a"))
    assert clusters.weight.used > 0
    clusters.take(ListEnded())
    assert clusters.weight.used == 0


def test_deletion_is_applied_although_the_budget_is_exceeded() -> None:
    clusters = BudgetedClusters()
    clusters.lists_clusters(LIMIT)
    clusters.take(ObjectChanged(ready("big", labels={"mark": "x" * 1000})))
    assert clusters.weight.problem
    clusters.confirm("p-000")
    assert clusters.engagements.engaged == LIMIT - 1


def test_collections_of_a_source_share_its_budget() -> None:
    budget = ObjectBudget(LIMIT * SIZE)
    first, second = BudgetedClusters(budget), BudgetedClusters(budget)
    first.lists_clusters(LIMIT // 2 + 1)
    second.lists_clusters(LIMIT // 2)
    assert (first.engagements.engaged, second.engagements.engaged) == (LIMIT // 2 + 1, 0)
    assert second.weight.problem


def test_not_ready_object_without_fields_counts_with_its_record_overhead() -> None:
    store = ObjectStore()
    store.apply_watched([NotReady(name="p", uid="u", version="1", message="")])
    assert 1024 <= store.weight.used < 1536


def test_sources_at_their_limit_share_what_unconfirmed_deletions_may_take() -> None:
    of_all = AllObjects()
    sources = [BudgetedClusters(ObjectBudget(LIMIT * SIZE, of_all)) for _ in range(2)]
    count = MOST // 2
    for source in sources:
        source.lists_clusters(count)
    assert [source.weight.problem for source in sources] == ["", ""]
    for source in sources:
        source.lists(*objects(count, first=count - 1))
        assert source.weight.problem
        assert source.engagements.engaged == count
        assert of_all.kept <= 2 * LIMIT * SIZE
    for source in sources:
        source.lists_clusters(count)
    assert of_all.kept == 2 * count * SIZE


def test_source_beside_another_that_keeps_everything_has_its_part() -> None:
    of_all = AllObjects()
    greedy, small = (BudgetedClusters(ObjectBudget(LIMIT * SIZE, of_all)) for _ in range(2))
    for first in (0, MOST - LIMIT - 1):
        greedy.lists(*objects(LIMIT, first))
    greedy.lists_clusters(1)
    greedy.take(ObjectChanged(ready("p-new")))
    assert of_all.kept == MOST * SIZE
    small.lists_clusters(LIMIT // 8)
    assert (small.engagements.engaged, small.weight.problem) == (LIMIT // 8, "")
    small.take(ObjectChanged(ready("further")))
    assert small.weight.problem


def test_small_objects_weigh_what_their_clusters_take_in_memory() -> None:
    count, clusters = 1000, BudgetedClusters(ObjectBudget())
    tracemalloc.start()
    try:
        clusters.lists(*(ready(f"p-{number:03}", uid=f"{number:036}") for number in range(count)))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert clusters.engagements.engaged == count
    assert taken < clusters.weight.used < 2 * taken
