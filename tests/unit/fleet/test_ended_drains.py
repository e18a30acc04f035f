"""Many drains end together: other tasks run in between, and one that cannot be ended delays no other."""

from collections.abc import Collection
from itertools import count

import pytest

from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.fleet.changes import RETRY_S, STEP_S, steady_now
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.events import Event
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.rights.scope import NO_CLUSTERS, scoped
from milo_kube.moment import Moment
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import cluster, finish, readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger

NAMES = ("a", "b", "c", "d")
KEY = SubscriberKey("caller", "slow")


class SlowLedger(Ledger):
    """A journal that takes a step of the event loop for each drain."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    def drained(self, cluster: Cluster, unreleased: Collection[SubscriberKey]) -> None:
        self.ended.append(cluster.target.name)
        until = steady_now() + STEP_S
        while steady_now() < until:
            pass


def draining(ledger: Ledger) -> tuple[Fleet, ClusterSource]:
    """Return a fleet whose four clusters drain, and wait for one subscriber."""
    fleet = Fleet(readable_log())
    source = new_source(ledger, fleet=fleet)
    listed = [Listed(ready(name, uid=name)) for name in NAMES]
    for _ in source.apply(source.collections[0], [ListStarted(), *listed, ListEnded()], 0.0):
        pass
    fleet.changes.subscribe(Subscription(KEY, "caller", Filter(confirms_releases=True)))
    for _ in source.clusters.assign(lambda _: "moved", 100.0):
        pass
    assert len(fleet.releases) == len(NAMES)
    return fleet, source


async def test_other_tasks_run_while_many_drains_end() -> None:
    ledger = SlowLedger()
    fleet, _ = draining(ledger)
    fleet.changes.end_subscription(KEY)
    assert ledger.ended == ["a"]
    await eventually(lambda: not len(fleet.releases))
    assert ledger.ended == [*NAMES]


async def test_drain_that_cannot_be_ended_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, calls = SlowLedger(), count()
    fleet, source = draining(ledger)
    end_drain = source.engagements.end_drain

    def broken(name: str, now: Moment) -> list[Event]:
        if name == "a":
            next(calls)
            raise ZeroDivisionError
        return end_drain(name, now)

    monkeypatch.setattr(source.engagements, "end_drain", broken)
    began = steady_now()
    with capture_logs() as logs:
        fleet.changes.end_subscription(KEY)
        await eventually(lambda: ledger.ended == ["b", "c", "d"])
    assert [entry["cluster"] for entry in logs if entry["event"] == "drain not ended"] == ["a"]
    assert next(calls) == 1
    due_at = fleet.releases.due_at
    assert due_at is not None
    assert due_at >= began + RETRY_S


def test_log_names_ten_of_the_subscribers_that_did_not_release_a_cluster() -> None:
    # A caller may have hundreds, with names of 253 characters, in the log line of each cluster.
    with capture_logs() as logs:
        Ledger().drained(cluster("a"), [SubscriberKey("caller", f"{number:02}") for number in range(12)])
    (entry,) = logs
    assert (entry["unreleased"], entry["others"]) == ([f"{number:02}" for number in range(10)], 2)


async def test_drains_are_compared_later_with_subscribers_whose_rights_changed() -> None:
    fleet, source = draining(Ledger())
    names = ("a subscriber", "another")
    keys = [SubscriberKey("caller", name) for name in names]
    for key in keys:
        subscription = Subscription(key, "caller", Filter(confirms_releases=True))
        finish(fleet.changes.subscribe(subscription))
        fleet.changes.change_view(subscription, scoped(Filter(confirms_releases=True), NO_CLUSTERS))
    assert fleet.releases.unreleased("a") == {KEY, *keys}
    await eventually(lambda: all(fleet.releases.unreleased(name) == {KEY} for name in NAMES))
    fleet.changes.end_subscription(KEY)
    assert source.engagements.engaged == 0


async def test_unexpected_error_of_a_comparison_concerns_only_its_subscriber() -> None:
    fleet, _ = draining(Ledger())
    failing, other = (SubscriberKey("caller", name) for name in ("failing", "other"))
    for key in (failing, other):
        subscription = Subscription(key, "caller", Filter(confirms_releases=True))
        finish(fleet.changes.subscribe(subscription))
        fleet.changes.change_view(subscription, scoped(Filter(confirms_releases=True), NO_CLUSTERS))
        if key is failing:
            subscription.view = None  # type: ignore[assignment]
    with capture_logs() as logs:
        await eventually(lambda: all(fleet.releases.unreleased(name) == {KEY, failing} for name in NAMES))
    assert [entry["event"] for entry in logs] == ["drains not compared with a subscriber"]
