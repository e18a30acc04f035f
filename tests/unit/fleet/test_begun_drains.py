"""The grace periods of many clusters end together: their drains begin in steps, between which other tasks run."""

import pytest

from milo_discoveryd.engagement.not_ready import SETTLE_S, NotReadyClusters
from milo_discoveryd.engagement.pending_releases import COMPARED_PER_STEP
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.fleet.changes import STEP_S, steady_now
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.collection import EVENTS_PER_STEP
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged
from tests.support.sources import new_source
from tests.unit.fleet.fleets import not_ready, outside, readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger
from tests.unit.fleet.test_fleet_not_ready import take

NAMES = [f"c{number:03}" for number in range(100)]
FEW = NAMES[:15]
"""Clusters that are no longer ready: more than are disengaged at once, and too few to be held."""


class SlowFilter(Filter, frozen=True):
    """Takes a step of the event loop for each cluster."""

    @staticmethod
    def matches(cluster: Cluster) -> bool:
        until = steady_now() + STEP_S
        while steady_now() < until:
            pass
        return True


def with_overdue_clusters() -> tuple[Fleet, ClusterSource]:
    """Return a fleet with clusters whose time is over, and a subscriber with a slow filter."""
    fleet, limits = Fleet(readable_log()), RemovalLimits()
    source = new_source(
        Ledger(), fleet=fleet, not_ready=NotReadyClusters(0.0, limits), removals=limits, drain_timeout_s=100.0
    )
    take(source, 0.0, ListStarted(), *(Listed(ready(name, "1")) for name in NAMES), ListEnded())
    fleet.changes.subscribe(Subscription(SubscriberKey("caller", "slow"), "caller", SlowFilter(confirms_releases=True)))
    take(source, 10.0, *(ObjectChanged(not_ready(name)) for name in FEW))
    assert [*fleet.releases] == FEW[:10], "the first few drain at once"
    return fleet, source


async def test_other_tasks_run_while_drains_of_many_clusters_that_are_not_ready_begin() -> None:
    fleet, source = with_overdue_clusters()
    for ended in range(11, 16):
        assert source.due_at == 10.0 + SETTLE_S
        source.tick(10.0 + SETTLE_S)
        assert [*fleet.releases] == FEW[:ended]
    assert source.due_at is None


async def test_cluster_that_is_ready_again_before_its_turn_does_not_drain() -> None:
    fleet, source = with_overdue_clusters()
    source.tick(10.0 + SETTLE_S)
    take(source, 11.0, ObjectChanged(ready(FEW[13], "3")))
    while (due := source.due_at) is not None:
        source.tick(due)
    assert FEW[13] not in fleet.releases
    assert len(fleet.releases) == 14


@pytest.mark.parametrize("is_listed", [False, True])
async def test_other_tasks_run_while_drains_for_many_subscribers_begin(is_listed: bool) -> None:
    fleet = Fleet(readable_log())
    source = new_source(Ledger(), fleet=fleet, drain_timeout_s=100.0)
    take(source, 0.0, ListStarted(), *(Listed(ready(name, "1")) for name in NAMES), ListEnded())
    for number in range(200):
        key, view = SubscriberKey("caller", str(number)), Filter(confirms_releases=True)
        fleet.changes.subscribe(Subscription(key, "caller", view))
    unselected = [outside(name, "2") for name in NAMES]
    events = [ListStarted(), *map(Listed, unselected), ListEnded()] if is_listed else map(ObjectChanged, unselected)
    before = 0
    for _ in source.apply(source.collections[0], events, 10.0):
        assert (len(fleet.releases) - before) * 2 * 200 <= COMPARED_PER_STEP
        before = len(fleet.releases)
    assert [*fleet.releases] == NAMES


async def test_subscribers_that_confirm_releases_do_not_slow_down_changes_of_clusters_that_do_not_drain() -> None:
    """A pause after each cluster would delay all later changes: others take long while hundreds of streams send."""
    fleet = Fleet(readable_log())
    source = new_source(Ledger(), fleet=fleet, drain_timeout_s=100.0)
    for number in range(1000):
        key, view = SubscriberKey("caller", str(number)), Filter(confirms_releases=True)
        fleet.changes.subscribe(Subscription(key, "caller", view))
    assert fleet.releases.clusters_per_step == 1
    take(source, 0.0, ListStarted(), *(Listed(ready(name, "1")) for name in NAMES), ListEnded())
    changed = [ObjectChanged(ready(name, version, labels={"env": version})) for version in ("2", "3") for name in NAMES]
    assert sum(1 for _ in source.apply(source.collections[0], changed, 10.0)) == len(changed) // EVENTS_PER_STEP
