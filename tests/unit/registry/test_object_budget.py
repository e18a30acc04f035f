"""The budget of the objects of a source."""

import sys
from collections.abc import Iterator

import msgspec
import pytest

from milo_discoveryd.model.observation import NotReady, ObjectFields, Observation
from milo_discoveryd.registry.object_budget import CollectionBudget, ObjectBudget, kept_bytes
from milo_discoveryd.registry.object_records import ObjectRecords
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, Relisting, SourceEvent
from tests.unit.registry.fleets import at, ready, registry


def seen(number: int) -> Observation:
    return NotReady(name=f"p-{number:03}", uid="u", version="1", message="")


SIZE = kept_bytes(seen(0))
LIMIT = 10


class Collection:
    """A collection whose objects are those that the budget let through."""

    def __init__(self, budget: ObjectBudget) -> None:
        self.known: dict[str, Observation] = {}
        self._listed: dict[str, Observation] = {}
        self.counts = 0
        self.budget: CollectionBudget = budget.collection(self._count)

    def _count(self) -> int:
        self.counts += 1
        return sum(map(kept_bytes, self.known.values()))

    def take(self, *events: SourceEvent[Observation]) -> int:
        """Apply events, and return how many the budget let through."""
        taken = 0
        for event in self.budget.within(events):
            taken += 1
            match event:
                case ListStarted():
                    self._listed = {}
                case Listed(observation):
                    self._listed[observation.name] = observation
                case ObjectChanged(observation):
                    self.known[observation.name] = observation
                case ListEnded():
                    self.known = self._listed
        return taken


def listing(count: int) -> Iterator[SourceEvent[Observation]]:
    yield ListStarted()
    yield from (Listed(seen(number)) for number in range(count))
    yield ListEnded()


@pytest.fixture
def collection() -> Collection:
    return Collection(ObjectBudget(LIMIT * SIZE))


def test_object_with_many_short_labels_counts_what_they_take_in_memory() -> None:
    labels = tuple((f"{number:03}", "") for number in range(1000))
    content = NotReady(name="p", uid="u", version="1", message="", fields=ObjectFields("p", "", labels))
    size = sys.getsizeof(labels) + sum(sys.getsizeof(each) + sys.getsizeof(each[0]) for each in labels)
    assert kept_bytes(content) > size
    few = msgspec.structs.replace(content, fields=ObjectFields("p", "", labels[:8]))
    assert kept_bytes(few) < 1024


def test_list_within_the_budget_is_taken(collection: Collection) -> None:
    assert collection.take(*listing(LIMIT), Relisting("Expired"), *listing(LIMIT)) == 2 * LIMIT + 5
    assert collection.budget.problem == ""


def test_list_is_taken_up_to_the_budget(collection: Collection) -> None:
    assert collection.take(*listing(LIMIT + 5)) == LIMIT + 1
    assert "watch.objects_limit" in collection.budget.problem


def test_new_objects_of_a_watch_are_taken_up_to_the_budget(collection: Collection) -> None:
    collection.take(*listing(5))
    assert collection.take(*(ObjectChanged(seen(number)) for number in range(100, 200))) < LIMIT
    assert collection.budget.problem


def test_changes_of_the_same_object_do_not_exhaust_the_budget(collection: Collection) -> None:
    collection.take(*listing(5))
    assert sum(collection.take(ObjectChanged(seen(0))) for _ in range(1000)) == 1000
    assert collection.counts < 300


def test_collections_of_a_source_share_its_budget() -> None:
    budget = ObjectBudget(LIMIT * SIZE)
    first, second = Collection(budget), Collection(budget)
    first.take(*listing(6))
    assert second.take(*listing(6)) < 6
    assert second.budget.problem


def test_known_objects_count_what_is_kept_of_them() -> None:
    clusters, objects = registry(), ObjectRecords()
    clusters.commit([ready("a")], at(0))
    before = clusters.kept_bytes()
    clusters.commit([ready("b", labels={"tier": "gold"})], at(1))
    assert clusters.kept_bytes() > 2 * before
    objects.commit([seen(0)], at(0))
    assert objects.kept_bytes() == kept_bytes((None, None))
    assert (clusters.is_used("a"), clusters.is_used("none"), objects.is_used(seen(0).name)) == (True, False, False)
