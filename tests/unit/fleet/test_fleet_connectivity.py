"""How the fleet applies connectivity results."""

import pytest

from milo_discoveryd.connectivity.reachability import ConnectivityChange
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import ConnectivityStatus, Reachability
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged
from tests.support.sources import new_source
from tests.unit.fleet.fleets import readable_log, ready

AWAY = ConnectivityStatus(Reachability.UNREACHABLE, 5.0, "timeout: it did not answer in time")
BACK = ConnectivityStatus(Reachability.REACHABLE, 9.0)


@pytest.fixture
async def source() -> ClusterSource:
    made = new_source(Journal(Metrics().sources, Audit(Metrics().audit)), readable_log())
    for _ in made.apply(made.collections[0], [ListStarted(), Listed(ready()), ListEnded()], 0.0):
        pass
    return made


async def test_unreachable_cluster_is_disengaged_with_reason_and_engaged_again_when_reachable(
    source: ClusterSource,
) -> None:
    heard: list[str] = []
    for kind in EventType:
        source.changes.add_listener(kind, lambda event: heard.append(f"{event.type.value} {event.cluster.target.name}"))
    (cluster,) = source.engagements.clusters()
    incarnation = cluster.incarnation
    with source.changes.notifier.waiter() as waiter:
        source.clusters.connectivity_changed(ConnectivityChange("a", incarnation, AWAY))
        source.clusters.connectivity_changed(ConnectivityChange("a", incarnation, AWAY, disengages=True))
        assert heard == ["UPDATED a", "DISENGAGED a"]
        await waiter.wait_for_change(1.0)
    record = source.engagements["a"]
    assert record is not None
    assert record.message == "unreachable for too long; timeout: it did not answer in time"
    assert source.engagements.needs_probe("a", incarnation)
    for _ in source.apply(source.collections[0], [ObjectChanged(ready(version="2"))], 1.0):
        pass
    assert source.engagements.engaged == 0
    source.clusters.connectivity_changed(ConnectivityChange("a", incarnation, BACK))
    assert heard[2:] == ["ENGAGED a"]
    assert source.engagements.engaged == 1
