"""Clusters that are disengaged as unreachable, and engaged again when they answer."""

import msgspec
import pytest

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import ConnectivityStatus, DisengageReason, Reachability, Target
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from tests.unit.fleet.fleets import at, cluster, engagements, malformed, not_ready, outside, ready, wall

AWAY = ConnectivityStatus(Reachability.UNREACHABLE, wall(1), "connect: refused")
BACK = ConnectivityStatus(Reachability.REACHABLE, wall(9), "")
UNREACHABLE = DisengageReason.UNREACHABLE


def with_unreachable_cluster() -> Engagements:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    fleet.set_connectivity("a", 1, AWAY, at(1))
    assert list(fleet.disengage_unreachable("a", 1, "not reached", at(2))) == [
        Event(EventType.DISENGAGED, cluster_with(connectivity=AWAY), UNREACHABLE, "not reached")
    ]
    return fleet


def cluster_with(**fields: object) -> object:
    return msgspec.structs.replace(cluster(), **fields)


def moved() -> Ready:
    target = Target(name="a", uid="u1", place=("https://elsewhere.example.com",))
    return Ready("u1", "5", target)


def test_unreachable_cluster_is_disengaged_with_explanation() -> None:
    fleet = with_unreachable_cluster()
    record = fleet["a"]
    assert record is not None
    assert (record.state, record.engaged, record.message) == (ObjectState.UNREACHABLE, False, "not reached")
    assert record.since == wall(2)
    assert fleet.engaged == 0
    assert fleet.count(ObjectState.UNREACHABLE) == 1


def test_unreachable_cluster_is_disengaged_once() -> None:
    assert list(with_unreachable_cluster().disengage_unreachable("a", 1, "not reached", at(3))) == []


def test_unreachable_cluster_is_still_probed() -> None:
    fleet = with_unreachable_cluster()
    assert fleet.needs_probe("a", 1)
    assert not fleet.needs_probe("a", 2)
    assert not fleet.needs_probe("b", 1)


def test_unreachable_cluster_sends_no_events_on_failed_probes_and_label_changes() -> None:
    fleet = with_unreachable_cluster()
    for found in (AWAY, ConnectivityStatus(Reachability.UNREACHABLE, wall(1), "dns: no such host")):
        assert fleet.set_connectivity("a", 1, found, at(3)) == []
    assert fleet.commit([ready(version="3", labels={"env": "prod"})], at(4)) == []


def test_unreachable_cluster_is_engaged_in_its_current_state_once_reachable() -> None:
    fleet = with_unreachable_cluster()
    fleet.commit([ready(version="3", labels={"env": "prod"})], at(4))
    wanted = msgspec.structs.replace(
        cluster(incarnation=fleet.log.head + 1, engaged_at=9, version="3", labels={"env": "prod"}), connectivity=BACK
    )
    assert fleet.set_connectivity("a", 1, BACK, at(9)) == [Event(EventType.ENGAGED, wanted)]
    assert fleet.engaged == 1
    assert fleet.count(ObjectState.UNREACHABLE) == 0
    assert fleet.set_connectivity("a", 1, AWAY, at(10)) == []


@pytest.mark.parametrize("item", [not_ready(), outside(), malformed(), ConfirmedDeletion("a", "u1")])
def test_unreachable_cluster_is_no_longer_probed_when_its_object_is_no_longer_ready(
    item: Observation | ConfirmedDeletion,
) -> None:
    fleet = with_unreachable_cluster()
    assert fleet.commit([item], at(3)) == []
    assert not fleet.needs_probe("a", 1)
    assert fleet.set_connectivity("a", 1, BACK, at(4)) == []


def test_cluster_that_became_not_ready_while_unreachable_is_engaged_when_ready() -> None:
    fleet = with_unreachable_cluster()
    fleet.commit([not_ready(version="3")], at(3))
    (change,) = fleet.commit([ready(version="4")], at(4))
    assert change.type is EventType.ENGAGED


def test_recreated_object_of_unreachable_cluster_is_engaged_as_new_cluster() -> None:
    fleet = with_unreachable_cluster()
    (change,) = fleet.commit([ready(version="5", uid="u2")], at(3))
    assert (change.type, change.cluster.target.uid) == (EventType.ENGAGED, "u2")


def test_unreachable_cluster_with_changed_endpoint_is_engaged_again() -> None:
    fleet = with_unreachable_cluster()
    (change,) = fleet.commit([moved()], at(3))
    assert (change.type, change.cluster.target.endpoint) == (EventType.ENGAGED, "https://elsewhere.example.com")


@pytest.mark.parametrize(("name", "incarnation"), [("b", 1), ("a", 2)])
def test_unreachable_result_for_another_name_or_incarnation_is_ignored(name: str, incarnation: int) -> None:
    fleet = engagements()
    fleet.commit([ready()], at(0))
    assert list(fleet.disengage_unreachable(name, incarnation, "", at(1))) == []


def test_cluster_in_not_ready_grace_period_is_not_disengaged_as_unreachable() -> None:
    fleet = engagements(grace_s=60.0)
    fleet.commit([ready()], at(0))
    fleet.commit([not_ready()], at(1))
    assert list(fleet.disengage_unreachable("a", 1, "", at(2))) == []
    assert fleet.engaged == 1


def test_unreachable_count_covers_engaged_clusters_only() -> None:
    fleet = engagements()
    fleet.commit([ready("a"), ready("b", uid="u2"), ready("c", uid="u3"), ready("d", uid="u4")], at(0))
    for incarnation, name in enumerate("abcd", 1):
        fleet.set_connectivity(name, incarnation, AWAY, at(1))
    fleet.set_connectivity("a", 1, AWAY, at(2))
    assert fleet.unreachable == 4
    fleet.set_connectivity("a", 1, BACK, at(3))
    fleet.commit([not_ready("b", uid="u2"), ready("c", "9", "u5")], at(4))
    assert fleet.unreachable == 1
    fleet.disengage_unreachable("d", 4, "not reached", at(5))
    assert fleet.unreachable == 0


def test_readiness_is_reported_only_with_the_first_engagement_of_an_object() -> None:
    fleet = engagements()

    def seen(version: str, uid: str = "u1") -> Observation:
        return msgspec.structs.replace(ready("a", version, uid), readiness=("created", version))

    def first_ready(*observed: Observation) -> list[tuple[str, str] | None]:
        events = fleet.commit(observed, at(0))
        return [event.readiness for event in events if event.type is EventType.ENGAGED]

    assert first_ready(not_ready("a", "0"), seen("1")) == [("created", "1")]
    assert first_ready(not_ready("a", "2"), seen("3")) == [None]
    assert first_ready(seen("4", "u2")) == [("created", "4")]
