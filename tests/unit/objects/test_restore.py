"""A fleet restored from the state of an earlier run."""

from msgspec.structs import replace

from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.contributions import ContributingObject, ObjectContent
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.objects.pending_deletions import Absent, Inconclusive, PendingDeletions
from milo_discoveryd.objects.staged_list import StagedList
from milo_discoveryd.objects.store import ObjectStore
from milo_kube.reflect.messages import ObjectChanged
from tests.unit.fleet.fleets import at, ready
from tests.unit.objects.test_collection import Source


def restored(*names: str) -> Source:
    source = Source()
    source.restore(((ready(name, version=""), 7.0) for name in names), at(100.0))
    return source


def summarized(done: list[Event]) -> list[tuple[EventType, str, DisengageReason | None]]:
    return [(event.type, event.cluster.target.name, event.reason) for event in done]


def test_restored_fleet_is_served_at_once_with_original_engagement_times() -> None:
    source = restored("alpha", "beta")
    record = source.engagements["alpha"]
    assert source.collection.is_synced
    assert source.engagements.engaged == len(list(source.engagements.items())) == 2
    assert record is not None
    assert record.cluster is not None
    assert (record.state, record.cluster.engaged_at) == (ObjectState.READY, 7.0)


def test_first_list_identical_to_restored_fleet_changes_nothing() -> None:
    source = restored("alpha")
    assert source.lists(ready("alpha")) == []


def test_first_list_is_staged_with_the_contents_of_the_restored_fleet() -> None:
    """Otherwise a large fleet would be in memory twice while the list is read, and later in the store as well."""
    store, contributing = ObjectStore(), ContributingObject("beta", "u1", "", ObjectContent(value="text"))
    store.apply_read(ready("alpha", ""))
    store.apply_read(contributing)
    staged = StagedList(store, PendingDeletions(lambda: 0.0))
    staged.start()
    alpha, beta = ready("alpha", "9"), replace(contributing, version="9", content=ObjectContent(value="text"))
    for observed in (alpha, beta):
        staged.add(observed)
    listed = [*staged.differing()]
    assert listed == [alpha, beta]
    assert all(observed.content is content_of(store, observed.name) for observed in listed)


def content_of(store: ObjectStore, name: str) -> object:
    record = store[name]
    assert record is not None
    return record.content


def test_deletion_of_restored_cluster_missing_from_first_list_is_confirmed() -> None:
    source = restored("alpha", "beta")
    listed = source.lists(ready("beta", labels={"env": "prod"}), ready("gamma"))
    assert summarized(listed) == [(EventType.UPDATED, "beta", None), (EventType.ENGAGED, "gamma", None)]
    (request,) = source.pending_deletions.take_due(source.now)
    assert source.collection.is_restored, "a subscriber that received the deletion must not see the cluster again"
    answered = source.resolve(request, Absent())
    assert summarized(answered) == [(EventType.DISENGAGED, "alpha", DisengageReason.DELETED)]
    assert not source.collection.is_restored


def test_state_no_longer_counts_as_restored_once_a_confirmation_failed() -> None:
    """A server that refuses confirmation reads does not keep subscribers waiting."""
    source = restored("alpha", "beta")
    source.lists(ready("beta"))
    (request,) = source.pending_deletions.take_due(source.now)
    assert source.resolve(request, Inconclusive("refused")) == []
    assert not source.collection.is_restored


def test_state_no_longer_counts_as_restored_once_a_missing_cluster_is_seen_again() -> None:
    source = restored("alpha", "beta")
    source.lists(ready("beta"))
    source.take(ObjectChanged(ready("alpha", version="9")))
    assert not source.collection.is_restored
