"""The `not_ready_grace` timer is paused while the source is lost."""

from itertools import count

import msgspec
import pytest

from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.changes import STEP_S
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.sources import new_source
from tests.unit.fleet.fleets import not_ready, ready
from tests.unit.fleet.test_fleet_malformed import Ledger

GRACE_S = 10.0


def streaming(since: float) -> ViewStatus:
    return ViewStatus(ViewState.STREAMING, since, last_contact=since)


def lost(since: float, last_contact: float) -> ViewStatus:
    return ViewStatus(ViewState.STALE, since, "ConnectionLost", "", last_contact)


def take(source: ClusterSource, now: float, *events: SourceEvent) -> None:
    for _ in source.apply(source.collections[0], events, now):
        pass


@pytest.fixture
def source() -> ClusterSource:
    """Return a source with one cluster, not ready since second 100."""
    log = ChangeLog(msgspec.json.encode, Retention())
    made = new_source(Ledger(), log, not_ready=NotReadyClusters(GRACE_S), removals=RemovalLimits())
    take(made, 0.0, ListStarted(), Listed(ready("a", "1")), ListEnded())
    made.set_followed(made.collections[0], streaming(0.0))
    take(made, 100.0, ObjectChanged(not_ready("a", "2")))
    return made


async def test_not_ready_cluster_is_disengaged_at_the_end_of_the_grace_period_while_source_is_connected(
    source: ClusterSource,
) -> None:
    assert source.due_at == 110.0
    source.tick(110.0)
    assert source.engagements.engaged == 0


async def test_not_ready_grace_period_does_not_end_while_the_source_is_lost(source: ClusterSource) -> None:
    source.set_followed(source.collections[0], lost(100.5, 100.5))
    assert source.due_at is None
    source.tick(1000.0)
    assert source.engagements.engaged == 1


async def test_not_ready_grace_period_resumes_with_its_remaining_time(source: ClusterSource) -> None:
    source.set_followed(source.collections[0], lost(104.0, 103.0))
    source.set_followed(source.collections[0], lost(110.0, 103.0))
    source.set_followed(source.collections[0], streaming(203.0))
    assert source.due_at == 210.0
    take(source, 204.0, ObjectChanged(ready("a", "3")))
    source.tick(300.0)
    assert source.engagements.engaged == 1


async def test_not_ready_grace_period_that_began_after_source_loss_is_not_extended(source: ClusterSource) -> None:
    source.set_followed(source.collections[0], lost(104.0, 104.0))
    take(source, 200.0, ObjectChanged(ready("a", "3")), ObjectChanged(not_ready("a", "4")))
    source.set_followed(source.collections[0], streaming(200.0))
    assert source.due_at == 210.0


def listed(source: ClusterSource, now: float, *names: str) -> None:
    take(source, now, ListStarted(), *(Listed(ready(name, "5")) for name in names), ListEnded())


async def test_not_ready_cluster_whose_removal_is_held_stays_when_its_grace_period_ends(source: ClusterSource) -> None:
    """What is not known ends nothing: the list may lack that it is ready again."""
    take(source, 100.0, ObjectChanged(ready("b", "3")), ObjectChanged(ready("c", "4")))
    listed(source, 105.0, "b")
    take(source, 105.0, ObjectChanged(not_ready("b", "6")))
    assert (source.deletions_held, source.due_at) == (2, 110.0)
    source.tick(110.0)
    assert (source.engagements.engaged, source.due_at) == (3, 115.0)
    source.tick(115.0)
    assert (source.engagements.engaged, source.due_at) == (2, 120.0)
    take(source, 116.0, ObjectChanged(not_ready("a", "7")))
    assert source.deletions_held == 1
    source.tick(120.0)
    assert source.engagements.engaged == 1


async def test_not_ready_cluster_stays_when_its_grace_period_ends_while_lists_are_ignored(
    source: ClusterSource,
) -> None:
    take(source, 101.0, ObjectChanged(ready("b", "3")))
    listed(source, 105.0, "x", "y")
    source.tick(111.0)
    assert source.engagements.engaged == 2


async def test_tick_takes_a_step_of_the_overdue_clusters_also_while_lists_are_ignored(
    source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(source, 100.0, ObjectChanged(ready("b", "3")), ObjectChanged(not_ready("b", "4")))
    listed(source, 105.0, "x", "y")
    monkeypatch.setattr("milo_discoveryd.fleet.source.steady_now", count(step=STEP_S).__next__)
    source.tick(110.0)
    assert source.due_at == 110.0, "the second is due at once"
    source.tick(110.0)
    assert (source.engagements.engaged, source.due_at) == (2, 120.0)


async def test_first_contact_after_a_failure_does_not_start_a_not_ready_grace_period() -> None:
    source = new_source(Ledger())
    source.set_followed(source.collections[0], ViewStatus(ViewState.STALE, 5.0, "Timeout", ""))
    source.set_followed(source.collections[0], streaming(6.0))
    assert source.due_at is None
