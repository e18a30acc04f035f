"""Engagements that result from observations of objects."""

import msgspec
import pytest

from milo_discoveryd.engagement import engagement as module
from milo_discoveryd.engagement.engagement import ClusterRecord, Engagements, RecordedTransition
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import EventType
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.model.cluster import UNPROBED, ConnectivityStatus, DisengageReason, Reachability
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from tests.unit.fleet.fleets import (
    at,
    cluster,
    disengaged,
    done,
    engaged,
    engagements,
    malformed,
    not_ready,
    outside,
    read,
    ready,
    target,
    updated,
    wall,
)

DELETED, NOT_READY, REPLACED, LABELS_CHANGED = (
    DisengageReason.DELETED,
    DisengageReason.NOT_READY,
    DisengageReason.REPLACED,
    DisengageReason.LABELS_CHANGED,
)
ANOTHER = "the name now belongs to another object: UID u2, previously u1"


def after(*items: Observation | ConfirmedDeletion) -> Engagements:
    """Commit each item a second after the previous one."""
    fleet = engagements()
    for second, item in enumerate(items):
        fleet.commit([item], at(second))
    return fleet


def known(fleet: Engagements, name: str = "a") -> ClusterRecord:
    record = fleet[name]
    assert record is not None
    return record


# --- engaging ---


def test_ready_object_is_engaged() -> None:
    fleet = engagements()
    assert fleet.commit([ready("a", "7")], at(0)) == [done(engaged(cluster("a", 1, version="7")))]
    assert fleet.engaged == 1
    assert list(fleet.clusters()) == [cluster("a", 1, version="7")]
    assert known(fleet).state is ObjectState.READY


def test_ready_object_is_not_engaged_twice() -> None:
    assert after(ready(version="1")).commit([ready(version="2")], at(1)) == []


def test_change_visible_to_subscribers_is_sent_as_update() -> None:
    fleet = after(ready())
    assert fleet.commit([ready(version="2", suspended=True)], at(1)) == [
        done(updated(cluster(version="2", suspended=True)))
    ]
    assert known(fleet).cluster == cluster(version="2", suspended=True)
    assert fleet.engaged == 1


@pytest.mark.parametrize("observation", [not_ready(version="1"), outside(version="1"), malformed(version="1")])
def test_not_ready_unselected_or_malformed_object_is_not_engaged(observation: Observation) -> None:
    fleet = engagements()
    assert fleet.commit([observation], at(0)) == []
    assert fleet.engaged == 0
    assert known(fleet).transitions == ()


def test_object_is_engaged_when_it_becomes_ready() -> None:
    fleet = after(not_ready(version="1"))
    assert fleet.commit([ready(version="2")], at(1)) == [done(engaged(cluster(engaged_at=1, version="2")))]


# --- disengaging ---


def test_object_no_longer_ready_is_disengaged() -> None:
    fleet = after(ready())
    assert fleet.commit([not_ready(message="degraded")], at(1)) == [done(disengaged(cluster(), NOT_READY, "degraded"))]
    assert fleet.engaged == 0
    assert known(fleet).latest == cluster(), "the event contains the cluster as last engaged"


def test_object_outside_selector_is_disengaged() -> None:
    assert after(ready()).commit([outside()], at(1)) == [done(disengaged(cluster(), LABELS_CHANGED, "not selected"))]


def test_deleted_object_is_disengaged() -> None:
    assert after(ready()).commit([ConfirmedDeletion("a", "u1")], at(1)) == [
        done(disengaged(cluster(), DELETED, "the object was deleted"))
    ]


def test_malformed_object_keeps_its_cluster_engaged() -> None:
    fleet = after(ready())
    assert fleet.commit([malformed()], at(1)) == []
    record = known(fleet)
    assert (record.engaged, record.state, record.message) == (True, ObjectState.MALFORMED, "nonsense")
    assert fleet.commit([ready(version="3")], at(2)) == []


def test_malformed_object_without_uid_is_matched_by_name() -> None:
    fleet = after(ready())
    assert fleet.commit([malformed(uid="")], at(1)) == []
    assert known(fleet).uid == "u1"


def test_deletion_of_an_object_that_was_never_engaged_sends_no_event() -> None:
    fleet = after(not_ready())
    assert fleet.commit([ConfirmedDeletion("a", "u1")], at(1)) == []
    assert known(fleet).state is ObjectState.DELETED


@pytest.mark.parametrize("gone", [ConfirmedDeletion("b", "u1"), ConfirmedDeletion("a", "u2")])
def test_deletion_with_different_name_or_uid_changes_nothing(gone: ConfirmedDeletion) -> None:
    fleet = after(ready())
    assert fleet.commit([gone], at(1)) == []
    assert known(fleet).engaged


def test_repeated_deletion_is_ignored() -> None:
    fleet = after(ready(), ConfirmedDeletion("a", "u1"))
    assert fleet.commit([ConfirmedDeletion("a", "u1")], at(2)) == []
    assert known(fleet).since == wall(1)


# --- another object under the same name ---


def test_recreated_cluster_replaces_the_old_one_in_one_revision() -> None:
    fleet = after(ready())
    assert fleet.commit([ready(version="5", uid="u2")], at(1)) == [
        done(disengaged(cluster(), REPLACED, ANOTHER)),
        done(engaged(cluster(incarnation=2, uid="u2", engaged_at=1, version="5"))),
    ]
    assert fleet.log.head == 2
    assert fleet.engaged == 1


@pytest.mark.parametrize(
    "observation",
    [not_ready(uid="u2", version="5"), outside(uid="u2", version="5"), malformed(uid="u2", version="5")],
)
def test_recreated_object_that_is_not_ready_disengages_cluster_as_replaced(observation: Observation) -> None:
    fleet = after(ready())
    assert fleet.commit([observation], at(1)) == [done(disengaged(cluster(), REPLACED, ANOTHER))]
    assert (known(fleet).uid, known(fleet).since) == ("u2", wall(1))


def test_object_recreated_under_a_name_that_was_never_engaged_is_engaged() -> None:
    fleet = after(not_ready())
    assert fleet.commit([ready(version="5", uid="u2")], at(1)) == [
        done(engaged(cluster(uid="u2", engaged_at=1, version="5")))
    ]


def test_recreated_not_ready_object_has_new_start_time() -> None:
    fleet = after(not_ready(), not_ready(uid="u2", version="5"))
    assert known(fleet).since == wall(1)


# --- probes ---

REFUSED = ConnectivityStatus(Reachability.UNREACHABLE, wall(1), "connection refused")


def test_connectivity_result_is_sent_as_update() -> None:
    fleet = after(ready())
    items = msgspec.structs.replace(cluster(), connectivity=REFUSED)
    assert fleet.set_connectivity("a", 1, REFUSED, at(1)) == [done(updated(items))]
    assert list(fleet.clusters()) == [items]
    assert fleet.log.head == 2


def test_connectivity_survives_updates_and_is_reset_for_new_incarnation() -> None:
    fleet = after(ready())
    fleet.set_connectivity("a", 1, REFUSED, at(1))
    (change,) = fleet.commit([ready(version="2", suspended=True)], at(2))
    assert change.cluster.connectivity == REFUSED
    _, change = fleet.commit([ready(version="3", uid="u2")], at(3))
    assert change.cluster.connectivity == UNPROBED


@pytest.mark.parametrize(("name", "incarnation"), [("b", 1), ("a", 2), ("gone", 2)])
def test_connectivity_result_for_disengaged_cluster_is_ignored(name: str, incarnation: int) -> None:
    fleet = after(ready(), ready("gone"), ConfirmedDeletion("gone", "u1"))
    assert fleet.set_connectivity(name, incarnation, REFUSED, at(3)) == []


# --- explanations ---


def test_cluster_transitions_are_kept_with_their_reasons() -> None:
    fleet = after(ready(), not_ready(message="degraded"), ready(version="3"))
    assert known(fleet).transitions == (
        RecordedTransition(EventType.ENGAGED, wall(0), 1),
        RecordedTransition(EventType.DISENGAGED, wall(1), 1, NOT_READY, "degraded"),
        RecordedTransition(EventType.ENGAGED, wall(2), 3),
    )


@pytest.mark.parametrize(("character", "kept"), [("x", 256), ("\U0001f600", 64)])
def test_messages_of_past_transitions_are_shortened(character: str, kept: int) -> None:
    fleet = after(ready())
    (event,) = fleet.commit([not_ready(message=2000 * character)], at(1))
    assert event == done(disengaged(cluster(), NOT_READY, 2000 * character))
    assert known(fleet).transitions[-1].message == f"{kept * character}..."


def test_last_eight_past_cluster_transitions_are_kept() -> None:
    fleet = engagements()
    for second in range(40):
        fleet.commit(
            [ready(version=f"{100 + second}") if second % 2 == 0 else not_ready(version=f"{100 + second}")], at(second)
        )
    assert [transition.at for transition in known(fleet).transitions] == [wall(second) for second in range(32, 40)]
    fleet.commit([ready(version="200")], at(40))
    assert [transition.at for transition in known(fleet).transitions] == [wall(second) for second in range(32, 41)]


def test_past_transitions_of_clusters_that_ended_least_recently_are_dropped_beyond_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRANSITIONS_WEIGHT_KEPT", 3000)
    fleet = engagements()

    def flap(name: str, times: int) -> None:
        for second in range(times):
            fleet.commit([ready(name=name)], at(second))
            fleet.commit([not_ready(name=name, message=f"{second}")], at(second))

    for name in ("a", "b"):
        flap(name, 4)
    flap("b", 1000)
    assert {name: len(record.past) for name, record in fleet.items()} == {"a": 8, "b": 8}
    flap("c", 4)
    assert {name: len(record.past) for name, record in fleet.items()} == {"a": 0, "b": 8, "c": 8}
    flap("a", 1)
    assert {name: len(record.past) for name, record in fleet.items()} == {"a": 2, "b": 8, "c": 8}


def test_repeated_not_ready_observation_keeps_start_time_of_state_and_updates_message() -> None:
    record = known(after(not_ready(version="1", message="starting"), not_ready(version="2", message="almost")))
    assert (record.since, record.message) == (wall(0), "almost")


def test_object_states_are_counted() -> None:
    fleet = after(
        ready("a"),
        not_ready("b"),
        malformed("c"),
        outside("d"),
        ready("e"),
        ConfirmedDeletion("e", "u1"),
        ready("b", "3"),
    )
    assert {state: fleet.count(state) for state in ObjectState if fleet.count(state)} == {
        ObjectState.READY: 2,
        ObjectState.MALFORMED: 1,
        ObjectState.OUTSIDE: 1,
        ObjectState.DELETED: 1,
    }


def test_recent_deletions_are_kept_and_older_records_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_RECORDS_KEPT", 2)
    fleet = after(ready("a"), outside("b"), ConfirmedDeletion("a", "u1"))
    assert fleet["b"] is not None
    fleet.commit([ready("c"), ConfirmedDeletion("c", "u1")], at(9))
    assert fleet["b"] is None
    assert known(fleet, "a").state is ObjectState.DELETED
    assert (fleet.count(ObjectState.DELETED), fleet.count(ObjectState.OUTSIDE)) == (2, 0)
    fleet.commit([outside("d", "9")], at(10))
    assert fleet["a"] is None


def test_records_of_deletions_are_forgotten_earlier_if_their_objects_were_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_WEIGHT_KEPT", 40_000)
    fleet = engagements()
    for number, length in enumerate((10, 10_000, 10_000, 10_000, 10)):
        name, never = f"deleted-{number}", f"never-ready-{number}"
        fleet.commit([ready(name, labels={"team": "x" * length}), ConfirmedDeletion(name, "u1")], at(number))
        fleet.commit([not_ready(never, message="x" * length), ConfirmedDeletion(never, "u1")], at(number))
    assert [name for name, _ in fleet.items()] == [
        "never-ready-2",
        "deleted-3",
        "never-ready-3",
        "deleted-4",
        "never-ready-4",
    ]
    assert fleet.count(ObjectState.DELETED) == 5
    assert len(fleet.dropped_names) == 5


def test_resume_reports_disengagement_of_evicted_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_RECORDS_KEPT", 0)
    fleet = after(ready("a"))
    reader = Cursor(fleet.log, EVERYTHING, fleet.log.head)
    fleet.commit([ConfirmedDeletion("a", "u1")], at(1))
    assert fleet["a"] is None
    fleet.commit([ready("a", "5", "u2")], at(2))
    batch = reader.next_batch()
    assert batch is not None
    assert [(event.type, event.cluster.target.uid) for event in read(batch.slice.frames)] == [
        (EventType.DISENGAGED, "u1"),
        (EventType.ENGAGED, "u2"),
    ]


def test_recreated_object_does_not_count_toward_the_limit_of_kept_deletion_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_RECORDS_KEPT", 1)
    fleet = after(
        ready("a"), ConfirmedDeletion("a", "u1"), ready("a", "5", "u2"), ready("b"), ConfirmedDeletion("b", "u1")
    )
    assert known(fleet, "a").engaged
    assert known(fleet, "b").state is ObjectState.DELETED


def test_registry_has_no_record_of_an_unknown_name() -> None:
    assert engagements()["a"] is None


def test_every_change_has_its_own_revision() -> None:
    fleet = engagements()
    fleet.commit([ready("a"), ready("b"), ready("b", "2", suspended=True), ConfirmedDeletion("a", "u1")], at(0))
    assert fleet.log.head == 4


def test_identical_observation_creates_no_revision() -> None:
    everything = [ready("a"), not_ready("b"), malformed("c"), outside("d")]
    fleet = engagements()
    fleet.commit(everything, at(0))
    head = fleet.log.head
    assert fleet.commit(everything, at(1)) == []
    assert fleet.log.head == head


def test_ready_observation_has_the_name_of_its_target() -> None:
    assert ready().name == target().name


def test_registry_items_contain_all_known_names() -> None:
    fleet = after(ready("a"), not_ready("b"))
    assert {name: record.state for name, record in fleet.items()} == {
        "a": ObjectState.READY,
        "b": ObjectState.NOT_READY,
    }
