"""Seeded simulations of objects: nothing is wrong, lost or doubled after the last fault, and mutants are detected."""

from collections.abc import Callable
from typing import Any

import pytest

from milo_kube.collection_follower import CollectionFollower
from milo_kube.reflect.messages import ListEnded
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_objects import follow
from milo_objects.change_backlog import ChangeBacklog
from milo_objects.follow import FollowedFleet, ScopeFollower
from milo_objects.followed_scope import FollowedScope
from milo_objects.projection import ProjectedObject
from milo_objects.scope import FleetChanged, Gone

from .simulation_run import FAULTS, simulate

pytestmark = pytest.mark.untraced

SEEDS = 200
SEEDS_TO_DETECT = 60


def test_store_and_readers_have_what_exists_after_the_last_fault() -> None:
    outcomes = [simulate(seed) for seed in range(SEEDS)]

    assert [(outcome.seed, outcome.breaches) for outcome in outcomes if outcome.breaches] == []
    assert {fault for outcome in outcomes for fault in outcome.injected} == set(FAULTS)
    for reason in (Gone.OBJECT_DELETED, Gone.OUT_OF_SELECTOR, Gone.MISSING):
        assert sum(outcome.gone[reason.name] for outcome in outcomes) > 10


def test_simulation_is_reproducible_by_seed() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7) != simulate(8)


def _keep_ghosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScopeFollower, "exceed", CollectionFollower.exceed)


def _keep_what_lists_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = FollowedScope.apply

    def without_end(self: FollowedScope, event: Any) -> Any:
        if isinstance(event, ListEnded):
            self._listed = None
        return apply(self, event)

    monkeypatch.setattr(FollowedScope, "apply", without_end)


def _call_all_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FollowedScope._gone
    monkeypatch.setattr(FollowedScope, "_gone", lambda self, held, _: gone(self, held, Gone.OBJECT_DELETED))


def _double_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProjectedObject, "equals", lambda *_: False)


def _merge_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(self: ChangeBacklog, change: Any) -> None:
        self._put(change.scope, (change.scope, change.object.place, change.object.uid), change)

    monkeypatch.setattr(ChangeBacklog, "_object_gone", put)


def _forget_ends_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(*_: object) -> None: ...

    monkeypatch.setattr(follow._FollowedClusters, "ended", ended)


def _report_the_fleet_early(monkeypatch: pytest.MonkeyPatch) -> None:
    async def report(_: object, fleet: Any, __: object, store: Any) -> None:
        while True:
            seen = fleet.discovery
            store.apply(FleetChanged(follow.fleet_state(seen)))
            await fleet.discovery_changed(since=seen)

    monkeypatch.setattr(FollowedFleet, "_report_fleet", report)


def _believe_in_silent_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_REFLECTION", ReflectorPolicy(silence_s=1e9))


@pytest.mark.parametrize(
    "mutate",
    [
        _keep_ghosts,
        _keep_what_lists_lack,
        _call_all_deleted,
        _double_changes,
        _merge_no_end,
        _forget_ends_of_clusters,
        _report_the_fleet_early,
        _believe_in_silent_watches,
    ],
)
def test_simulation_detects_a_mutant(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutate(monkeypatch)
    assert any(simulate(seed).breaches for seed in range(SEEDS_TO_DETECT))
