"""Clusters that other members of a shard group own are known and not engaged."""

import pytest

from milo_discoveryd.engagement.engagement import ClusterRecord, Engagements
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import ConnectivityStatus, DisengageReason, Reachability, Target
from milo_discoveryd.model.object_state import ObjectState
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import at, engagements, finish, malformed, not_ready, ready, wall

KEY = SubscriberKey("caller", "operator")
MOVED, LOST = DisengageReason.MOVED, DisengageReason.OWNERSHIP_LOST
AWAY = ConnectivityStatus(Reachability.UNREACHABLE, wall(1), "connect: refused")
BACK = ConnectivityStatus(Reachability.REACHABLE, wall(9), "")


def assigned_to(member: str | None, fleet: Engagements | None = None) -> Engagements:
    """Return engagements in which `member` owns every cluster; None is this daemon itself."""
    fleet = fleet or engagements()
    fleet.assigned_elsewhere = lambda _: member and f"{member} owns it"
    return fleet


def record(fleet: Engagements) -> ClusterRecord:
    found = fleet["a"]
    assert found is not None
    return found


def confirming(fleet: Engagements) -> Engagements:
    finish(fleet.releases.open(Subscription(KEY, "", Filter(confirms_releases=True)), 0.0))
    return fleet


def kinds(events: list[Event]) -> list[tuple[EventType, DisengageReason | None]]:
    return [(event.type, event.reason) for event in events]


def test_cluster_of_another_member_is_unassigned_and_not_engaged() -> None:
    fleet = assigned_to("b")
    assert fleet.commit([ready()], at(0)) == []
    assert (record(fleet).state, record(fleet).message) == (ObjectState.UNASSIGNED, "b owns it")
    assert fleet.count(ObjectState.UNASSIGNED) == 1
    assert fleet.present_count == 1


def test_cluster_is_engaged_once_it_is_assigned() -> None:
    fleet = assigned_to("b")
    fleet.commit([ready()], at(0))
    assert fleet.reassign("a", 30.0, at(1)) == []
    assigned_to(None, fleet)
    (event,) = fleet.reassign("a", 30.0, at(2))
    assert event.type is EventType.ENGAGED
    assert event.cluster.target == ready().target
    assert fleet.reassign("a", 30.0, at(3)) == []


def test_object_state_of_another_members_cluster_is_tracked_without_events() -> None:
    fleet = assigned_to("b")
    fleet.commit([ready()], at(0))
    assert fleet.commit([not_ready()], at(1)) == []
    assert record(fleet).state is ObjectState.NOT_READY
    assert fleet.reassign("a", 30.0, at(1)) == []
    assert record(fleet).state is ObjectState.NOT_READY
    assert fleet.commit([ready(version="9")], at(2)) == []
    assert record(fleet).state is ObjectState.UNASSIGNED
    assert fleet.commit([malformed(version="10")], at(3)) == []


@pytest.mark.parametrize("is_sharded", [False, True])
def test_cluster_that_leaves_a_filter_is_unreached_only_in_a_shard_group(*, is_sharded: bool) -> None:
    fleet = engagements()
    fleet.releases.is_sharded = is_sharded
    fleet.commit([ready(labels={"tier": "gold"})], at(0))
    gold = Subscription(KEY, "", Filter(selector=parse("tier=gold"), confirms_releases=True))
    finish(fleet.releases.open(gold, 0.0))
    fleet.releases.close(gold, 1.0)
    fleet.commit([ready(version="2", labels={"tier": "silver"})], at(2))
    assert [*fleet.releases.unreached(2.0)] == ["a"] * is_sharded


def test_moved_cluster_is_disengaged_at_once_if_no_subscriber_confirms_releases() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    assigned_to("b", fleet)
    assert kinds(fleet.reassign("a", 30.0, at(1))) == [(EventType.DISENGAGED, MOVED)]
    assert (record(fleet).state, record(fleet).message) == (ObjectState.UNASSIGNED, "b owns it")
    assert record(fleet).target == ready().target


def test_moved_cluster_drains_until_it_is_released() -> None:
    fleet = confirming(engagements())
    fleet.commit([ready()], at(0))
    assigned_to("b", fleet)
    assert kinds(fleet.reassign("a", 30.0, at(1))) == [(EventType.UPDATED, None)]
    assert record(fleet).engaged
    assert fleet.commit([ready(version="5", labels={"tier": "gold"})], at(2)) != [], (
        "a draining cluster is still updated"
    )
    assert kinds(fleet.end_drain("a", at(3))) == [(EventType.DISENGAGED, MOVED)]
    assert record(fleet).state is ObjectState.UNASSIGNED
    assert dict(record(fleet).target.labels) == {"tier": "gold"}  # type: ignore[union-attr]


def test_moved_cluster_assigned_back_is_engaged_again_after_its_drain() -> None:
    fleet = confirming(engagements())
    fleet.commit([ready()], at(0))
    fleet.reassign("a", 30.0, at(1))
    assigned_to("b", fleet)
    fleet.reassign("a", 30.0, at(1))
    assigned_to(None, fleet)
    assert kinds(fleet.end_drain("a", at(3))) == [(EventType.DISENGAGED, MOVED), (EventType.ENGAGED, None)]


def test_replacement_of_a_draining_cluster_that_moved_is_not_engaged() -> None:
    fleet = confirming(engagements())
    fleet.commit([ready()], at(0))
    assigned_to("b", fleet)
    fleet.reassign("a", 30.0, at(1))
    events = fleet.commit([ready(uid="u2", version="7")], at(2))
    assert kinds(events) == [(EventType.DISENGAGED, DisengageReason.REPLACED)]
    assert record(fleet).state is ObjectState.UNASSIGNED
    assert record(fleet).uid == "u2"


def test_lost_ownership_disengages_a_draining_cluster_at_once() -> None:
    fleet = confirming(engagements())
    fleet.commit([ready()], at(0))
    assigned_to("b", fleet)
    fleet.reassign("a", 30.0, at(1))
    assert kinds(fleet.lose("a", "not renewed", at(2))) == [(EventType.DISENGAGED, LOST)]
    assert (record(fleet).state, record(fleet).message) == (ObjectState.UNASSIGNED, "not renewed")
    assert fleet.lose("a", "still not renewed", at(3)) == []
    assert len(fleet.releases) == 0


def test_cluster_that_is_not_ready_stays_not_ready_after_lost_ownership() -> None:
    fleet = engagements(60.0)
    fleet.commit([ready()], at(0))
    fleet.commit([not_ready()], at(1))
    assert kinds(fleet.lose("a", "not renewed", at(2))) == [(EventType.DISENGAGED, LOST)]
    assert record(fleet).state is ObjectState.NOT_READY


def test_malformed_cluster_that_was_engaged_is_engaged_as_last_described_once_the_ownership_is_back() -> None:
    """Found by a reader: it stayed disengaged until its object was corrected."""
    fleet = engagements()
    fleet.commit([ready()], at(0))
    fleet.commit([malformed()], at(1))
    assert kinds(fleet.lose("a", "not renewed", at(2))) == [(EventType.DISENGAGED, LOST)]
    (event,) = fleet.reassign("a", 30.0, at(3))
    assert (event.type, event.cluster.target) == (EventType.ENGAGED, ready().target)
    assigned_to("b", fleet)
    fleet.commit([malformed(version="3")], at(4))
    assert kinds(fleet.reassign("a", 30.0, at(5))) == [(EventType.DISENGAGED, MOVED)]
    assigned_to(None, fleet)
    assert kinds(fleet.reassign("a", 30.0, at(6))) == [(EventType.ENGAGED, None)]


def test_malformed_cluster_that_moved_and_is_assigned_back_is_engaged_again_after_its_drain() -> None:
    fleet = confirming(engagements())
    fleet.commit([ready()], at(0))
    fleet.commit([malformed()], at(1))
    assigned_to("b", fleet)
    fleet.reassign("a", 30.0, at(2))
    assigned_to(None, fleet)
    assert kinds(fleet.end_drain("a", at(3))) == [(EventType.DISENGAGED, MOVED), (EventType.ENGAGED, None)]


@pytest.mark.parametrize("is_lost", [False, True])
def test_malformed_cluster_that_drained_because_it_was_not_ready_is_not_engaged_again(*, is_lost: bool) -> None:
    fleet = confirming(engagements(drain_s=30.0))
    fleet.commit([ready()], at(0))
    fleet.commit([not_ready()], at(1))
    fleet.commit([malformed(version="3")], at(2))
    reason = LOST if is_lost else DisengageReason.NOT_READY
    events = fleet.lose("a", "not renewed", at(3)) if is_lost else fleet.end_drain("a", at(3))
    assert kinds(events) == [(EventType.DISENGAGED, reason)]
    assert record(fleet).state is ObjectState.MALFORMED
    assert fleet.lose("a", "not renewed", at(4)) == []
    assert fleet.reassign("a", 30.0, at(5)) == []


def test_contested_cluster_that_was_engaged_is_not_engaged_once_the_ownership_is_back() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    fleet.contest(ready(version="2"), "its address is claimed by another object", at(1))
    assert kinds(fleet.lose("a", "not renewed", at(2))) == [(EventType.DISENGAGED, LOST)]
    assert fleet.reassign("a", 30.0, at(3)) == []
    assert kinds(fleet.begin_uncontested("a", at(4))) == [(EventType.ENGAGED, None)]


def test_unreachable_cluster_of_another_member_is_not_engaged_when_reachable() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    fleet.set_connectivity("a", 1, AWAY, at(1))
    fleet.disengage_unreachable("a", 1, "not reached", at(2))
    assigned_to("b", fleet)
    assert fleet.set_connectivity("a", 1, BACK, at(3)) == []
    assert record(fleet).state is ObjectState.UNASSIGNED


def test_unreachable_cluster_that_moved_is_unassigned() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    fleet.set_connectivity("a", 1, AWAY, at(1))
    fleet.disengage_unreachable("a", 1, "not reached", at(2))
    assigned_to("b", fleet)
    assert fleet.reassign("a", 30.0, at(3)) == []
    assert record(fleet).state is ObjectState.UNASSIGNED


def test_record_of_not_ready_object_has_a_target_and_record_of_malformed_object_has_none() -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    assert record(fleet).target == ready().target
    fleet.commit([not_ready()], at(1))
    assert isinstance(record(fleet).target, Target)
    fleet.commit([malformed(name="b")], at(1))
    found = fleet["b"]
    assert found is not None
    assert found.target is None
