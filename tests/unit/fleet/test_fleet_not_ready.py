"""A fleet in which many clusters become not ready at once: source status, log and subscribers."""

import pytest

from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.source import NOT_READY_HELD, ClusterSource
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import not_ready, ready
from tests.unit.fleet.test_fleet_malformed import Ledger

NAMES = [f"c{number:03}" for number in range(100)]
LIMITS = RemovalLimits()


def take(source: ClusterSource, now: float, *events: SourceEvent) -> None:
    for _ in source.apply(source.collections[0], events, now):
        pass
    source.set_followed(source.collections[0], streaming(now))


def streaming(since: float) -> ViewStatus:
    return ViewStatus(ViewState.STREAMING, since, last_contact=since)


@pytest.fixture
def source() -> ClusterSource:
    made = new_source(
        Ledger(),
        not_ready=NotReadyClusters(0.0, LIMITS),
        removals=LIMITS,
    )
    take(made, 0.0, ListStarted(), *(Listed(ready(name, "1")) for name in NAMES), ListEnded())
    return made


def run(source: ClusterSource, until: float) -> None:
    while (due := source.due_at) is not None and due <= until:
        source.tick(due)


async def test_many_clusters_that_become_not_ready_at_once_are_held_and_reported(source: ClusterSource) -> None:
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    with capture_logs() as logs:
        run(source, 11.0)
    assert [entry["event"] for entry in logs] == ["not-ready clusters held"]
    assert (source.engagements.engaged, source.engagements.not_ready.held_count) == (90, 90)
    assert (source.status.state, source.status.reason) == (ViewState.CATCHING_UP, NOT_READY_HELD)
    assert "100 of 100 engaged clusters" in source.status.message
    assert source.engagements.not_ready.until("c050") is not None


async def test_many_not_ready_clusters_in_a_list_are_held(source: ClusterSource) -> None:
    take(source, 10.0, ListStarted(), *(Listed(not_ready(name)) for name in NAMES), ListEnded())
    run(source, 11.0)
    assert source.engagements.engaged == 90


async def test_restored_fleet_that_became_not_ready_during_the_restart_is_held() -> None:
    source = new_source(
        Ledger(),
        not_ready=NotReadyClusters(0.0, LIMITS),
        removals=LIMITS,
    )
    list(
        source.restore([(ready(name, ""), 0.0) for name in NAMES], (), ViewStatus(ViewState.STALE, 0.0, "Restored", ""))
    )
    take(source, 10.0, ListStarted(), *(Listed(not_ready(name)) for name in NAMES), ListEnded())
    run(source, 11.0)
    assert source.engagements.engaged == 90


async def test_source_is_streaming_again_when_held_clusters_are_ready_again(source: ClusterSource) -> None:
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(source, 15.0)
    take(source, 20.0, *(ObjectChanged(ready(name, "3")) for name in NAMES))
    assert (source.engagements.engaged, source.due_at, source.status.state) == (100, None, ViewState.STREAMING)
    record = source.engagements["c050"]
    assert record is not None
    assert (source.engagements.not_ready.until("c050"), len(record.transitions)) == (None, 1)


async def test_clusters_that_stay_not_ready_are_disengaged_after_the_hold(source: ClusterSource) -> None:
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(source, 11.0 + 29.9)
    assert source.engagements.engaged == 90
    run(source, 11.0 + 30.0)
    assert (source.engagements.engaged, source.status.state) == (89, ViewState.STREAMING)
    run(source, 11.0 + 30.0 + 2.0)
    assert source.engagements.engaged == 0
    record = source.engagements["c050"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.NOT_READY


async def test_held_not_ready_cluster_that_is_replaced_is_disengaged_at_once(source: ClusterSource) -> None:
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(source, 15.0)
    take(source, 15.0, ObjectChanged(not_ready("c099", "3", uid="another")))
    assert source.engagements.engaged == 89


async def test_hold_of_not_ready_clusters_does_not_end_while_the_source_is_lost(source: ClusterSource) -> None:
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in NAMES))
    run(source, 15.0)
    source.set_followed(source.collections[0], ViewStatus(ViewState.STALE, 16.0, "ConnectionLost", "", 15.0))
    run(source, 1000.0)
    assert source.engagements.engaged == 90
    source.set_followed(source.collections[0], streaming(1015.0))
    run(source, 1040.0)
    assert source.engagements.engaged == 90
    run(source, 1050.0)
    assert source.engagements.engaged == 0
