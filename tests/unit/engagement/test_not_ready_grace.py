"""The `not_ready_grace` setting: a cluster that stops being ready stays engaged for that time."""

import pytest

from milo_discoveryd.engagement.engagement import ClusterRecord, Engagements
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from tests.unit.fleet.fleets import (
    at,
    cluster,
    disengaged,
    done,
    end_overdue,
    engagements,
    malformed,
    not_ready,
    outside,
    ready,
    updated,
    wall,
)

NOT_READY = DisengageReason.NOT_READY


def held(since: float = 10.0) -> Engagements:
    """Return engagements with a cluster engaged at 0, not ready since `since`, with a grace of a minute."""
    fleet = engagements(grace_s=60.0)
    fleet.commit([ready()], at(0))
    assert fleet.commit([not_ready(message="degraded")], at(since)) == []
    return fleet


def known(fleet: Engagements) -> ClusterRecord:
    record = fleet["a"]
    assert record is not None
    return record


def test_not_ready_cluster_stays_engaged_with_message_during_grace_period() -> None:
    fleet = held()
    record = known(fleet)
    assert (record.engaged, record.state, record.message) == (True, ObjectState.NOT_READY, "degraded")
    assert fleet.grace_until("a", at(10)) == wall(70)
    assert fleet.not_ready.due_at == 70.0
    assert (fleet.engaged, fleet.not_ready.held_count) == (1, 0)


def test_running_grace_period_is_extended_by_source_outage() -> None:
    fleet = held(since=10.0)
    fleet.not_ready.pause(20.0)
    fleet.not_ready.resume(50.0)
    assert fleet.not_ready.due_at == 100.0
    assert fleet.grace_until("a", at(10)) == wall(100)


def test_grace_period_that_started_after_source_outage_is_not_extended() -> None:
    fleet = held(since=60.0)
    fleet.not_ready.pause(20.0)
    fleet.not_ready.resume(50.0)
    assert fleet.not_ready.due_at == 120.0


def test_not_ready_cluster_is_disengaged_when_grace_period_ends() -> None:
    fleet = held()
    assert [*end_overdue(fleet, at(69.9))] == []
    assert [*end_overdue(fleet, at(70))] == [[done(disengaged(cluster(), NOT_READY, "degraded"))]]
    assert fleet.not_ready.due_at is None
    assert fleet.grace_until("a", at(10)) is None
    assert known(fleet).past[-1].at == wall(70)
    assert [*end_overdue(fleet, at(200))] == []


def test_cluster_ready_again_within_grace_period_is_never_disengaged() -> None:
    fleet = held()
    assert fleet.commit([ready(version="3")], at(30)) == []
    assert fleet.not_ready.due_at is None
    assert fleet.grace_until("a", at(10)) is None
    assert [*end_overdue(fleet, at(200))] == []
    assert len(known(fleet).transitions) == 1


def test_cluster_ready_again_within_grace_period_with_changes_is_updated() -> None:
    assert held().commit([ready(version="3", suspended=True)], at(30)) == [
        done(updated(cluster(version="3", suspended=True)))
    ]


def test_repeated_not_ready_state_updates_message_and_does_not_extend_grace_period() -> None:
    fleet = held()
    fleet.commit([not_ready(version="3", message="still degraded")], at(60))
    assert fleet.not_ready.due_at == 70.0
    assert fleet.grace_until("a", at(10)) == wall(70)
    assert [*end_overdue(fleet, at(70))] == [[done(disengaged(cluster(), NOT_READY, "still degraded"))]]


def test_grace_period_restarts_each_time_the_cluster_becomes_not_ready() -> None:
    fleet = held()
    fleet.commit([ready(version="3")], at(30))
    fleet.commit([not_ready(version="4")], at(40))
    assert fleet.not_ready.due_at == 100.0


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (ConfirmedDeletion("a", "u1"), DisengageReason.DELETED),
        (outside(version="3"), DisengageReason.LABELS_CHANGED),
        (not_ready(version="3", uid="u2"), DisengageReason.REPLACED),
        (ready(version="3", uid="u2"), DisengageReason.REPLACED),
    ],
)
def test_deletion_replacement_and_label_change_do_not_wait_for_not_ready_grace_period(
    observed: Observation | ConfirmedDeletion, reason: DisengageReason
) -> None:
    fleet = held()
    assert fleet.commit([observed], at(20))[0].reason is reason
    assert fleet.not_ready.due_at is None
    assert fleet.grace_until("a", at(10)) is None


def test_grace_period_ends_without_disengagement_when_the_object_becomes_malformed() -> None:
    fleet = held()
    fleet.commit([malformed(version="3")], at(20))
    assert fleet.not_ready.due_at is None
    assert [*end_overdue(fleet, at(200))] == []
    assert known(fleet).engaged


def test_overdue_not_ready_clusters_are_ordered_by_start_of_grace_period() -> None:
    fleet = engagements(grace_s=60.0)
    fleet.commit([ready("a"), ready("b"), ready("c")], at(0))
    for second, name in ((1, "b"), (2, "a"), (3, "c")):
        fleet.commit([not_ready(name)], at(second))
    assert [event.cluster.target.name for (event,) in end_overdue(fleet, at(62))] == ["b", "a"]
    assert fleet.not_ready.due_at == 63.0


def test_object_that_was_never_engaged_has_no_not_ready_grace_period() -> None:
    fleet = engagements(grace_s=60.0)
    fleet.commit([not_ready()], at(0))
    assert fleet.not_ready.due_at is None
    assert fleet.grace_until("a", at(10)) is None


def test_not_ready_cluster_with_zero_grace_period_is_disengaged_at_once() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    assert fleet.commit([not_ready(message="degraded")], at(1)) == [done(disengaged(cluster(), NOT_READY, "degraded"))]
    assert fleet.not_ready.due_at is None
