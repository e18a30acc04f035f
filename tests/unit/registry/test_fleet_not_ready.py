"""A fleet of which many clusters become not ready at once: source status, log and subscribers."""

import msgspec
import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.registry.direct_fleet import DirectFleet
from milo_discoveryd.registry.fleet import NOT_READY_HELD
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from milo_discoveryd.registry.removal_guard import RemovalGuard, RemovalLimits
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.source_status import SourceState, SourceStatus
from tests.support.logs import capture_logs
from tests.unit.registry.fleets import not_ready, ready
from tests.unit.registry.test_fleet_malformed import Ledger

NAMES = [f"c{number:03}" for number in range(100)]
LIMITS = RemovalLimits()


def take(fleet: DirectFleet, now: float, *events: SourceEvent) -> None:
    for _ in fleet.take(events, now):
        pass
    fleet.source(streaming(now))


def streaming(since: float) -> SourceStatus:
    return SourceStatus(SourceState.STREAMING, since, last_contact=since)


@pytest.fixture
def fleet() -> DirectFleet:
    made = DirectFleet(
        ChangeLog(msgspec.json.encode, Retention()),
        PendingDeletions(lambda: 0.0),
        Ledger(),
        not_ready=NotReadyClusters(0.0, LIMITS),
        guard=RemovalGuard(LIMITS),
    )
    take(made, 0.0, ListStarted(), *(Listed(ready(name, "1")) for name in NAMES), ListEnded())
    return made


def run(fleet: DirectFleet, until: float) -> None:
    while (due := fleet.due_at) is not None and due <= until:
        fleet.tick(due)


def test_mass_of_not_ready_clusters_is_held_and_reported(fleet: DirectFleet) -> None:
    take(fleet, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    with capture_logs() as logs:
        run(fleet, 11.0)
    assert [entry["event"] for entry in logs] == ["not-ready clusters held"]
    assert (fleet.registry.engaged, fleet.registry.not_ready_held_count) == (90, 90)
    assert (fleet.status.state, fleet.status.reason) == (SourceState.CATCHING_UP, NOT_READY_HELD)
    assert "100 of 100 engaged clusters" in fleet.status.message
    assert fleet.registry.grace_until("c050") is not None


def test_list_in_which_much_of_the_fleet_is_not_ready_is_held(fleet: DirectFleet) -> None:
    take(fleet, 10.0, ListStarted(), *(Listed(not_ready(name)) for name in NAMES), ListEnded())
    run(fleet, 11.0)
    assert fleet.registry.engaged == 90


def test_restored_fleet_that_became_not_ready_meanwhile_is_held() -> None:
    fleet = DirectFleet(
        ChangeLog(msgspec.json.encode, Retention()),
        PendingDeletions(lambda: 0.0),
        Ledger(),
        not_ready=NotReadyClusters(0.0, LIMITS),
        guard=RemovalGuard(LIMITS),
    )
    fleet.restore([(ready(name, ""), 0.0) for name in NAMES], (), SourceStatus(SourceState.STALE, 0.0, "Restored", ""))
    take(fleet, 10.0, ListStarted(), *(Listed(not_ready(name)) for name in NAMES), ListEnded())
    run(fleet, 11.0)
    assert fleet.registry.engaged == 90


def test_source_is_streaming_again_when_held_clusters_are_ready_again(fleet: DirectFleet) -> None:
    take(fleet, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(fleet, 15.0)
    take(fleet, 20.0, *(ObjectChanged(ready(name, "3")) for name in NAMES))
    assert (fleet.registry.engaged, fleet.due_at, fleet.status.state) == (100, None, SourceState.STREAMING)
    record = fleet.registry["c050"]
    assert record is not None
    assert (fleet.registry.grace_until("c050"), len(record.transitions)) == (None, 1)


def test_clusters_that_stay_not_ready_are_disengaged_after_the_hold(fleet: DirectFleet) -> None:
    take(fleet, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(fleet, 11.0 + 29.9)
    assert fleet.registry.engaged == 90
    run(fleet, 11.0 + 30.0)
    assert (fleet.registry.engaged, fleet.status.state) == (89, SourceState.STREAMING)
    run(fleet, 11.0 + 30.0 + 2.0)
    assert fleet.registry.engaged == 0
    record = fleet.registry["c050"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.NOT_READY


def test_held_not_ready_cluster_that_is_replaced_is_disengaged_at_once(fleet: DirectFleet) -> None:
    take(fleet, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(fleet, 15.0)
    take(fleet, 15.0, ObjectChanged(not_ready("c099", "3", uid="another")))
    assert fleet.registry.engaged == 89


def test_hold_does_not_end_while_the_source_is_lost(fleet: DirectFleet) -> None:
    take(fleet, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(fleet, 15.0)
    fleet.source(SourceStatus(SourceState.STALE, 16.0, "ConnectionLost", "", 15.0))
    run(fleet, 1000.0)
    assert fleet.registry.engaged == 90
    fleet.source(streaming(1015.0))
    run(fleet, 1040.0)
    assert fleet.registry.engaged == 90
    run(fleet, 1050.0)
    assert fleet.registry.engaged == 0
