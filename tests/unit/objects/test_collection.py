"""The collection of objects: comparison of lists, and confirmation of deletions."""

from collections.abc import Iterable, Iterator

import pytest

from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.object_state import FORGETTABLE_RECORDS_KEPT, ObjectState
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.collection import EVENTS_PER_STEP
from milo_discoveryd.objects.pending_deletions import (
    Absent,
    ConfirmationResult,
    Found,
    Inconclusive,
)
from milo_discoveryd.objects.store import ObjectStore
from milo_kube.reflect.messages import (
    DeletionReported,
    EventIgnored,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
    Unlisted,
)
from tests.unit.fleet.fleets import (
    ListedClusters,
    at,
    cluster,
    disengaged,
    done,
    engaged,
    malformed,
    not_ready,
    outside,
    ready,
    wall,
)

DELETED, NOT_READY, LABELS_CHANGED = (
    DisengageReason.DELETED,
    DisengageReason.NOT_READY,
    DisengageReason.LABELS_CHANGED,
)


class Source(ListedClusters):
    def __init__(self, *listed: Observation) -> None:
        """Begin with a complete first list of these objects, if there are any."""
        super().__init__()
        if listed:
            self.lists(*listed)

    def answer(self, answer: ConfirmationResult) -> list[Event]:
        (request,) = self.due_requests()
        return self.resolve(request, answer)

    def state(self, name: str = "a") -> ObjectState:
        record = self.engagements[name]
        assert record is not None
        return record.state


# --- the first list ---


def test_first_list_is_staged_until_complete() -> None:
    source = Source()
    assert source.take(ListStarted(), Listed(ready("a"))) == []
    assert not source.collection.is_synced
    made = source.take(Listed(ready("b")), ListEnded())
    assert made == [done(engaged(cluster("a", 1))), done(engaged(cluster("b", 2)))]
    assert source.collection.is_synced


def test_restarted_first_list_starts_empty() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a")), Listed(ready("b")))
    source.lists(ready("b"))
    assert source.engagements["a"] is None
    assert source.engagements.engaged == 1
    assert source.requested_names() == []


def test_object_deleted_during_first_list_is_ignored() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a")))
    assert source.take(Unlisted("a"), ListEnded()) == []
    assert source.engagements["a"] is None


def test_first_list_may_contain_versions_in_any_order() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a", "9")), Listed(ready("a", "5", suspended=True)), ListEnded())
    assert source.store.outdated == 0


# --- later lists ---


def test_relist_is_buffered_until_complete() -> None:
    source = Source(ready("a"))
    assert source.take(ListStarted(), Listed(ready("b")), Listed(not_ready("a"))) == []
    assert [event.type.name for event in source.take(ListEnded())] == ["ENGAGED", "DISENGAGED"]


def test_abandoned_relist_changes_nothing() -> None:
    source = Source(ready("a"))
    source.take(ListStarted(), Listed(ready("b")), Listed(not_ready("a")))
    source.take(Relisting("Expired"))
    assert source.lists(ready("a")) == []
    assert source.engagements["b"] is None
    assert source.requested_names() == []


def test_identical_relist_changes_nothing() -> None:
    everything = (ready("a"), not_ready("b"), malformed("c"))
    source = Source(*everything)
    head = source.engagements.log.head
    assert source.lists(*everything) == []
    assert source.engagements.log.head == head
    assert source.requested_names() == []


def test_list_of_a_restored_server_lacks_more_unreadable_objects_than_records_are_kept() -> None:
    clusters = ListedClusters(RemovalLimits())
    unreadable = [malformed(f"a/../{number}", "100", f"u-{number}") for number in range(FORGETTABLE_RECORDS_KEPT + 10)]
    clusters.lists(ready("a", "100"), *unreadable, version="100")
    for _ in range(30):
        clusters.now += 60.0
        clusters.lists(ready("a", "40"), version="50")
    assert clusters.store.present_count == 1


def test_object_created_after_server_restore_is_applied_despite_lower_version() -> None:
    source = Source(ready("a", "9"), not_ready("b", "12", uid="before"))
    for source.now in (0.0, 30.0):
        source.lists(ready("a", "5"), version="5")
    source.answer(Absent())
    made = source.take(ObjectChanged(ready("b", "7", uid="after")))
    assert [(event.type.name, event.cluster.target.uid) for event in made] == [("ENGAGED", "after")]


@pytest.mark.parametrize(
    ("known", "listed", "expected"),
    [
        (not_ready("a", "5"), ready("a", "5"), ["ENGAGED"]),
        (ready("a", "5"), ready("a", "5", suspended=True), ["UPDATED"]),
        (ready("a", "5"), not_ready("a", "5"), ["DISENGAGED"]),
        (ready("a", "5"), ready("a", "5"), []),
        (not_ready("a", "5"), not_ready("a", "5"), []),
    ],
)
def test_relist_applies_changed_state_of_object_with_equal_version(
    known: Observation, listed: Observation, expected: list[str]
) -> None:
    assert [event.type.name for event in Source(known).lists(listed)] == expected


def test_relist_that_contains_an_object_twice_does_not_hide_a_missing_object() -> None:
    source = Source(ready("a"), ready("b"))
    source.lists(ready("a"), ready("a"))
    assert source.requested_names() == ["b"]


def test_object_deleted_while_a_relist_is_read_does_not_hide_another_missing_object() -> None:
    source = Source(ready("a"), ready("b"), ready("c"))
    source.lists(ready("b"), ready("c"))
    (request,) = source.due_requests()
    source.take(ListStarted(), Listed(ready("a")), Listed(ready("b")))
    source.resolve(request, Absent())
    source.take(ListEnded())
    assert source.requested_names() == ["c"]


def test_object_missing_from_relist_stays_engaged_until_its_deletion_is_confirmed() -> None:
    source = Source(ready("a"), ready("b"), ready("c"))
    assert source.lists(ready("b")) == []
    assert sorted(source.requested_names()) == ["a", "c"]
    assert source.engagements.engaged == 3


def test_reference_objects_are_three_existing_objects_without_pending_deletion() -> None:
    source = Source(*(ready(name, uid=f"uid-{name}") for name in "abcd"), not_ready("e", uid="uid-e"))
    first = source.collection.reference_objects
    assert first == (("a", "uid-a"), ("b", "uid-b"), ("c", "uid-c"))
    assert source.collection.reference_objects is first
    source.take(DeletionReported("b", "uid-b"))
    assert source.collection.reference_objects == (("a", "uid-a"), ("c", "uid-c"), ("d", "uid-d"))
    source.take(ObjectChanged(ready("a", "7", uid="another")))
    assert source.collection.reference_objects == (("c", "uid-c"), ("d", "uid-d"), ("a", "another"))
    source.take(
        DeletionReported("c", "uid-c"), DeletionReported("d", "uid-d"), ObjectChanged(outside("a", "8", uid="another"))
    )
    assert source.collection.reference_objects == (("e", "uid-e"),)


def test_reference_objects_are_drawn() -> None:
    """A tenant may be deleting the first objects of the list, or the last ones."""
    source = Source(*(ready(name, uid=f"uid-{name}") for name in "abcde"))
    source.pending_deletions.jitter = iter((0.6, 0.9, 0.9)).__next__
    assert source.collection.reference_objects == (("d", "uid-d"), ("e", "uid-e"), ("a", "uid-a"))


def test_reference_objects_are_unavailable_if_all_objects_are_missing() -> None:
    source = Source(ready("a"), ready("b"))
    source.take(DeletionReported("a", "u1"), DeletionReported("b", "u1"))
    assert source.collection.reference_objects == ()


def test_fleet_that_is_removed_is_searched_once_for_reference_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(*(ready(name, uid=f"uid-{name}") for name in "abcdef"))
    searches, present = list[ObjectStore](), ObjectStore.present

    def searched(store: ObjectStore) -> Iterator[tuple[str, str]]:
        searches.append(store)
        return present(store)

    monkeypatch.setattr(ObjectStore, "present", searched)
    source.take(*(DeletionReported(name, f"uid-{name}") for name in "abcde"))
    for request in source.due_requests():
        assert source.collection.reference_objects == (("f", "uid-f"),)
        source.resolve(request, Absent())
    assert len(searches) == 4, "two draws, each from a drawn place to the end and from the start to that place"
    source.take(ObjectChanged(ready("g", "7", uid="uid-g")))
    assert source.collection.reference_objects == (("f", "uid-f"), ("g", "uid-g"))
    source.take(DeletionReported("f", "uid-f"))
    assert source.collection.reference_objects == (("g", "uid-g"),)
    source.take(ObjectChanged(ready("f", "8", uid="uid-f")))
    assert source.collection.reference_objects == (("f", "uid-f"), ("g", "uid-g"))


def test_relist_cancels_pending_deletion_of_listed_object() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    (request,) = source.due_requests()
    source.lists(ready())
    assert source.resolve(request, Absent()) == []
    assert source.engagements.engaged == 1


def test_object_found_outside_selector_is_not_checked_again_after_each_list() -> None:
    source = Source(ready())
    source.lists()
    source.answer(Found(outside()))
    source.lists()
    assert source.requested_names() == []


def test_deleted_object_that_a_list_contains_again_is_engaged_at_any_version() -> None:
    source = Source(ready(version="10"))
    source.lists()
    source.answer(Absent())
    assert source.lists(ready(version="10"))[0].type.name == "ENGAGED"


# --- a restart ---


def restored() -> Source:
    """Return a source restored with clusters `a` and `b`, engaged by an earlier run at second 5."""
    source = Source()
    source.restore([(ready("a"), wall(5)), (ready("b"), wall(5))], at(100))
    return source


def test_restored_clusters_are_engaged_at_once_with_their_original_engagement_times() -> None:
    source = restored()
    assert source.collection.is_synced
    assert list(source.engagements.clusters()) == [cluster("a", 1, engaged_at=5), cluster("b", 2, engaged_at=5)]
    assert [record.uid for _, record in source.engagements.items()] == ["u1", "u1"]


def test_first_list_is_compared_with_restored_clusters() -> None:
    source = restored()
    assert source.lists(ready("a"), ready("c", "9")) == [done(engaged(cluster("c", 3, version="9")))]
    assert source.requested_names() == ["b"]
    assert source.engagements.engaged == 3


def test_abandoned_first_list_after_restore_changes_nothing() -> None:
    source = restored()
    source.take(ListStarted(), Listed(ready("c")), ListStarted())
    assert source.engagements.engaged == 2


# --- reported deletions ---


def test_cluster_stays_engaged_until_watch_deletion_is_confirmed() -> None:
    source = Source(ready())
    assert source.take(DeletionReported("a", "u1")) == []
    assert source.engagements.engaged == 1
    assert source.answer(Absent()) == [done(disengaged(cluster(incarnation=1), DELETED, "the object was deleted"))]


def test_unconfirmed_deletion_keeps_cluster_engaged() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Inconclusive("503")) == []
    assert source.engagements.engaged == 1
    assert source.pending_deletions.explain("a") == (0.0, "503")
    source.now = 1.0
    assert source.answer(Absent())[0].reason is DELETED


def test_refuted_deletion_keeps_cluster_engaged() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(ready())) == []
    assert source.engagements.engaged == 1


@pytest.mark.parametrize(
    ("found", "reason"),
    [(outside(), LABELS_CHANGED), (not_ready(), NOT_READY), (ready(uid="u2"), DisengageReason.REPLACED)],
)
def test_confirmation_read_applies_the_state_that_it_finds(found: Observation, reason: DisengageReason) -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(found))[0].reason is reason


def test_pending_deletion_ends_when_object_is_seen() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    (request,) = source.due_requests()
    source.take(ObjectChanged(ready(version="5")))
    assert source.resolve(request, Absent()) == []
    assert source.engagements.engaged == 1


@pytest.mark.parametrize("version", ["9", "10"])
def test_replayed_event_does_not_resolve_pending_deletion(version: str) -> None:
    source = Source(ready(version="10"))
    source.take(DeletionReported("a", "u1"), ObjectChanged(ready(version=version)))
    assert source.answer(Absent())[0].reason is DELETED


def test_event_before_deletion_in_one_batch_is_applied() -> None:
    source = Source(ready("b"))
    assert source.take(ObjectChanged(ready("a")), DeletionReported("a", "u1")) == [done(engaged(cluster("a", 2)))]
    assert source.requested_names() == ["a"]


def test_reported_deletion_without_uid_applies_to_the_current_object() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", ""))
    assert source.requested_names() == ["a"]


@pytest.mark.parametrize("report", [DeletionReported("b", "u1"), DeletionReported("a", "u0")])
def test_reported_deletion_of_unknown_object_causes_no_confirmation_read(report: DeletionReported) -> None:
    source = Source(ready())
    source.take(report)
    assert source.requested_names() == []


def test_reported_deletion_of_deleted_object_causes_no_confirmation_read() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    source.answer(Absent())
    source.take(DeletionReported("a", "u1"))
    assert source.requested_names() == []


def test_reported_deletion_of_object_that_is_not_engaged_causes_a_confirmation_read() -> None:
    source = Source(not_ready("a"))
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(outside(version="3"))) == []
    assert source.state() is ObjectState.OUTSIDE


# --- the stream ---


def test_changes_received_together_are_committed_in_one_batch() -> None:
    source = Source(ready("a"))
    batches = list(source.take_batches([ObjectChanged(ready("b")), ObjectChanged(not_ready("a")), EventIgnored("?")]))
    assert [len(batch) for batch in batches] == [2]


def test_list_and_subsequent_events_in_one_chunk_are_both_applied() -> None:
    source = Source()
    expected = source.take(ListStarted(), Listed(ready("a")), ListEnded(), ObjectChanged(not_ready("a")))
    assert [event.type.name for event in expected] == ["ENGAGED", "DISENGAGED"]


@pytest.mark.parametrize("count", [EVENTS_PER_STEP - 1, EVENTS_PER_STEP, 3 * EVENTS_PER_STEP + 1])
def test_large_list_is_applied_in_batches(count: int) -> None:
    def findings() -> Iterable[SourceEvent[Observation]]:
        yield ListStarted()
        yield from (Listed(ready(f"a{index}")) for index in range(count))
        yield ListEnded()

    for source in (Source(), Source(ready("b"))):
        batches = list(source.take_batches(findings()))
        assert sum(map(len, batches)) == count
        assert max(map(len, batches)) <= EVENTS_PER_STEP


def test_reported_deletion_of_object_with_invalid_name_is_applied_without_a_read() -> None:
    """No subscriber has a cluster of that name, and a GET of the object is impossible."""
    source = Source(malformed("..", uid="u9"))
    source.take(DeletionReported("..", "u9"))
    assert source.requested_names() == []
    assert source.state("..") is ObjectState.DELETED


def test_first_list_is_unverified_until_a_second_one() -> None:
    source = Source(ready("a"))
    assert source.collection.unverified is not None
    due = source.collection.relist_at
    assert due is not None
    source.now = due
    source.lists(ready("a"))
    assert source.collection.unverified is None
