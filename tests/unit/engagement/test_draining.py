"""Planned disengagements wait for subscribers that confirm releases; all others are immediate."""

import msgspec
import pytest

from milo_discoveryd.engagement import engagement
from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
)
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotReady, ObjectFields, Observation, Outside
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import (
    at,
    cluster,
    disengaged,
    end_overdue,
    engaged,
    engagements,
    finish,
    malformed,
    not_ready,
    outside,
    read,
    ready,
    updated,
    wall,
)

KEY = SubscriberKey("caller", "operator")
CONFIRMING = Filter(confirms_releases=True)
NOT_READY, LABELS_CHANGED = DisengageReason.NOT_READY, DisengageReason.LABELS_CHANGED


def with_subscriber(view: Filter = CONFIRMING, grace_s: float = 0.0) -> Engagements:
    """Return engagements with one subscriber and cluster "a", engaged at second 0."""
    fleet = engagements(grace_s, drain_s=30.0)
    fleet.commit([ready()], at(0))
    finish(fleet.releases.open(Subscription(KEY, "", view), 0.0))
    return fleet


def draining(message: str = "degraded", since: float = 10.0, reason: DisengageReason = NOT_READY) -> Cluster:
    return msgspec.structs.replace(cluster(), draining=Drain(reason, message, wall(since + 30.0)))


def drained(fleet: Engagements | None = None) -> Engagements:
    fleet = fleet or with_subscriber()
    assert fleet.commit([not_ready(message="degraded")], at(10)) == [updated(draining())]
    return fleet


def moved(fleet: Engagements, now: float = 10) -> list[Event]:
    """Assign the cluster to another member of the shard group."""
    fleet.assigned_elsewhere = lambda _: "another member owns it"
    return fleet.reassign("a", 30.0, at(now))


def current(fleet: Engagements) -> Cluster | None:
    record = fleet["a"]
    assert record is not None
    return record.cluster


def test_not_ready_cluster_drains() -> None:
    fleet = drained()
    assert current(fleet) == draining()
    assert fleet.engaged == 1
    assert fleet.releases.due_at == 40.0
    assert [*fleet.clusters()] == [draining()], "a draining cluster counts as engaged, for credentials and probes"


def test_cluster_that_left_the_selector_drains() -> None:
    fleet = with_subscriber()
    assert fleet.commit([outside()], at(10)) == [updated(draining("not selected", reason=LABELS_CHANGED))]


def test_not_ready_cluster_drains_after_its_grace_period() -> None:
    fleet = with_subscriber(grace_s=60.0)
    assert fleet.commit([not_ready(message="degraded")], at(10)) == []
    assert [*end_overdue(fleet, at(70))] == [[updated(draining(since=70.0))]]
    assert fleet.commit([not_ready(version="3", message="worse")], at(71)) == []
    assert fleet.not_ready.due_at is None, "there is no grace within a drain"


@pytest.mark.parametrize("options", [{}, {"drain_s": 30.0}])
def test_not_ready_cluster_does_not_drain_without_timeout_or_subscribers(options: dict[str, float]) -> None:
    fleet = engagements(**options)
    fleet.commit([ready()], at(0))
    assert fleet.commit([not_ready(message="degraded")], at(10)) == [disengaged(cluster(), NOT_READY, "degraded")]


def test_not_ready_cluster_does_not_drain_if_no_filter_matches() -> None:
    fleet = with_subscriber(Filter(names=frozenset({"b"}), confirms_releases=True))
    assert fleet.commit([not_ready()], at(10))[0].type is EventType.DISENGAGED


def test_cluster_is_disengaged_with_the_drain_reason_when_its_drain_ends() -> None:
    fleet = drained()
    assert fleet.end_drain("a", at(20)) == [disengaged(draining(), NOT_READY, "degraded")]
    assert fleet.engaged == 0
    assert fleet.releases.due_at is None
    record = fleet["a"]
    assert record is not None
    assert record.former == cluster(), "the drain has left no trace"
    assert (record.past[-1].reason, record.past[-1].at) == (NOT_READY, wall(20))


def test_ready_cluster_is_engaged_again_after_its_drain() -> None:
    fleet = drained()
    assert fleet.commit([ready(version="3")], at(15)) == [], "a drain is not canceled"
    ended, begun = fleet.end_drain("a", at(20))
    assert ended.type is EventType.DISENGAGED
    assert begun == engaged(cluster(incarnation=fleet.log.head, engaged_at=20.0))
    assert fleet.engaged == 1


def test_engagement_after_a_drain_has_the_latest_fields_and_no_probe_result() -> None:
    fleet = drained()
    fleet.set_connectivity("a", 1, ConnectivityStatus(Reachability.REACHABLE), at(11))
    assert fleet.commit([ready(version="3", suspended=True)], at(15))[0].cluster.draining is not None
    begun = fleet.end_drain("a", at(20))[1].cluster
    assert (begun.target.suspended, begun.connectivity, begun.draining) == (True, UNPROBED, None)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ConfirmedDeletion("a", "u1"), DisengageReason.DELETED),
        (not_ready(version="3", uid="u2"), DisengageReason.REPLACED),
        (ready(version="3", uid="u2"), DisengageReason.REPLACED),
    ],
)
def test_deletion_and_replacement_disengage_at_once_without_drain(
    end: Observation | ConfirmedDeletion, reason: DisengageReason
) -> None:
    for fleet in (with_subscriber(), drained()):
        assert fleet.commit([end], at(20))[0].reason is reason
        assert len(fleet.releases) == 0


def test_draining_cluster_that_becomes_unreachable_is_disengaged_at_once() -> None:
    fleet = with_subscriber()
    moved(fleet)
    (ended,) = fleet.disengage_unreachable("a", 1, "not reached", at(20))
    assert ended.reason is DisengageReason.UNREACHABLE
    assert len(fleet.releases) == 0


def test_malformed_object_does_not_end_a_drain() -> None:
    fleet = drained()
    assert fleet.commit([malformed(version="3")], at(20)) == []
    assert len(fleet.releases) == 1


def test_drain_keeps_its_reason_and_deadline_when_the_object_changes() -> None:
    fleet = drained()
    assert fleet.commit([not_ready(version="3", message="worse")], at(20)) == []
    assert fleet.commit([outside(version="4")], at(21)) == []
    assert fleet.end_drain("a", at(40))[0] == disengaged(draining(), NOT_READY, "degraded")


def test_move_does_not_change_the_promised_reason_and_deadline_of_a_drain() -> None:
    fleet = drained()
    assert moved(fleet, 20) == []
    assert (current(fleet), fleet.releases.due_at) == (draining(), 40.0)
    fleet.commit([ready(version="3")], at(21))
    [ended] = fleet.end_drain("a", at(40))
    assert (ended.type, ended.reason) == (EventType.DISENGAGED, NOT_READY), "it is not engaged again here"


def test_drain_can_begin_with_reason_moved() -> None:
    fleet = with_subscriber()
    assert moved(fleet) == [updated(draining("another member owns it", reason=DisengageReason.MOVED))]
    assert moved(fleet, 11) == []


# --- labels ---


def observed(kind: type[NotReady] | type[Outside], version: str, env: str) -> NotReady | Outside:
    return kind("a", "u1", version, "", fields=ObjectFields("a", "", (("env", env),)))


@pytest.mark.parametrize("kind", [NotReady, Outside])
def test_cluster_that_leaves_the_filter_of_the_only_subscriber_does_not_drain(
    kind: type[NotReady] | type[Outside],
) -> None:
    fleet = engagements(drain_s=30.0)
    fleet.commit([ready(labels={"env": "prod"})], at(0))
    finish(fleet.releases.open(Subscription(KEY, "", Filter(parse("env=prod"), confirms_releases=True)), 0.0))
    assert fleet.commit([observed(kind, "2", "dev")], at(10))[0].type is EventType.DISENGAGED


def test_drain_ends_when_the_cluster_leaves_the_filter_of_the_last_subscriber() -> None:
    fleet = engagements(drain_s=30.0)
    fleet.commit([ready(labels={"env": "prod"})], at(0))
    finish(fleet.releases.open(Subscription(KEY, "", Filter(parse("env=prod"), confirms_releases=True)), 0.0))
    assert fleet.commit([observed(NotReady, "2", "prod")], at(10))[0].cluster.draining is not None
    events = fleet.commit([observed(NotReady, "3", "dev")], at(11))
    assert [event.type for event in events] == [EventType.UPDATED, EventType.DISENGAGED]


def test_record_of_draining_cluster_is_not_evicted_with_records_of_absent_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engagement, "FORGETTABLE_RECORDS_KEPT", 1)
    for fleet in (with_subscriber(), drained()):
        fleet.commit([outside("a"), outside("b"), outside("c")], at(12))
        assert fleet["a"] is not None
        assert fleet["b"] is None
        assert fleet.end_drain("a", at(20))[0].type is EventType.DISENGAGED
        fleet.commit([outside("d")], at(30))
        assert fleet["a"] is None
        assert fleet.count(ObjectState.OUTSIDE) == 1


# --- events that readers receive ---


def received(cursor: Cursor) -> list[Event]:
    batch = cursor.next_batch()
    return [] if batch is None else read(batch.slice.frames)


def test_drain_is_sent_only_to_readers_that_confirm_releases() -> None:
    fleet = with_subscriber()
    confirming, other = Cursor(fleet.log, CONFIRMING, None), Cursor(fleet.log, EVERYTHING, None)
    assert received(confirming) == received(other) == [engaged(cluster())]
    drained(fleet)
    assert received(confirming) == [updated(draining())]
    assert received(other) == [disengaged(cluster(), NOT_READY, "degraded")]
    fleet.end_drain("a", at(20))
    assert received(confirming) == [disengaged(draining(), NOT_READY, "degraded")]
    assert received(other) == []


def test_snapshot_has_draining_clusters_only_for_readers_that_confirm_releases() -> None:
    fleet = drained()
    assert received(Cursor(fleet.log, CONFIRMING, None)) == [engaged(draining())]
    assert received(Cursor(fleet.log, EVERYTHING, None)) == []


def test_reader_that_missed_the_whole_drain_receives_only_the_disengagement() -> None:
    fleet = with_subscriber()
    cursors = [Cursor(fleet.log, view, None) for view in (CONFIRMING, EVERYTHING)]
    for cursor in cursors:
        received(cursor)
    drained(fleet)
    fleet.end_drain("a", at(20))
    (confirming,), (other,) = (received(cursor) for cursor in cursors)
    assert (confirming.type, confirming.reason) == (other.type, other.reason) == (EventType.DISENGAGED, NOT_READY)
    assert confirming.cluster.draining is not None
    assert other.cluster.draining is None


def test_draining_cluster_is_sent_again_to_a_reader_that_received_the_drain() -> None:
    fleet = with_subscriber()
    engaged_at = fleet.log.head
    drained(fleet)
    draining_at = fleet.log.head
    record = fleet["a"]
    assert record is not None
    entries = [record.entry]
    assert read(fleet.log.draining_frames(entries, draining_at, CONFIRMING)) == [updated(draining())]
    assert read(fleet.log.draining_frames(entries, engaged_at, CONFIRMING)) == [], (
        "the drain is an update for a reader that has the cluster"
    )
    assert read(fleet.log.draining_frames(entries, draining_at, EVERYTHING)) == []


def test_drain_of_moved_cluster_does_not_wait_for_subscribers_of_an_earlier_run() -> None:
    for reason, drains in ((LABELS_CHANGED, True), (DisengageReason.MOVED, False)):
        fleet = engagements(drain_s=30.0)
        fleet.commit([ready()], at(0))
        fleet.releases.expect_return(0.0)
        events = moved(fleet) if reason is DisengageReason.MOVED else fleet.commit([outside()], at(10))
        assert (events[0].type is EventType.UPDATED) is drains
