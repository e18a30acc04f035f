"""Seeded simulations of shard groups with real fleets: one owner of each cluster, and no end of what is held."""

from collections.abc import Callable
from typing import Any

import pytest

from milo_discoveryd.engagement.pending_releases import PendingReleases
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.sharding.assignment import FleetAssignment
from milo_discoveryd.sharding.group import ShardGroup
from tests.simulation.sharding.fleet_run import FLEET_FAULTS, simulate_fleets

SEEDS = 15
SEEDS_TO_DETECT = 60
"""Several of these detect each mutant."""


def test_simulation_of_fleets_has_one_owner_of_each_cluster_and_ends_nothing_that_is_held() -> None:
    outcomes = [simulate_fleets(seed) for seed in range(49, 49 + SEEDS)]
    assert [(outcome.seed, outcome.breaches) for outcome in outcomes if outcome.breaches] == []
    assert {fault.split()[1] for outcome in outcomes for fault in outcome.faults} == set(FLEET_FAULTS)
    assert sum(outcome.engagements for outcome in outcomes) > 15 * SEEDS
    assert sum(outcome.views for outcome in outcomes) > 2 * SEEDS
    assert sum(outcome.lost_in_steps for outcome in outcomes) > SEEDS
    assert sum(outcome.regained_meanwhile for outcome in outcomes) > 0
    assert sum(outcome.refused for outcome in outcomes) > SEEDS


def test_seed_of_fleets_that_found_two_owners_passes() -> None:
    assert simulate_fleets(32_101).breaches == []


def test_simulation_of_fleets_is_reproducible_by_seed() -> None:
    assert simulate_fleets(7).history == simulate_fleets(7).history
    assert simulate_fleets(7).history != simulate_fleets(8).history


async def begin_loss(group: ShardGroup) -> None:
    group._begin_loss()


@pytest.mark.parametrize(
    ("owner", "attribute", "mutant", "found", "first"),
    [
        (ClusterSource, "_is_held", lambda *_: False, "its next owner cannot engage it", 34),
        (ClusterSource, "_is_unknown", lambda *_: False, "ignores the lists of its source", 37),
        (FleetAssignment, "_is_followed", FleetAssignment.is_synced, "has no list", 109),
        (FleetAssignment, "lost", lambda _: set(), "before", 35),
        (FleetAssignment, "unowned", lambda _: 0, "is ready, and lacks", 88),
        (PendingReleases, "release", lambda *_: False, "is still engaged after", 35),
        (PendingReleases, "may_renew", lambda *_, **__: True, "work in", 42),
        (PendingReleases, "unreached", lambda *_: (), "work in", 88),
        (ShardGroup, "_lose", begin_loss, "has lost its ownership, and", 34),
    ],
    ids=[
        "moves-held",
        "moves-ignored",
        "enters-unlisted",
        "acknowledges-early",
        "ready-early",
        "loses-releases",
        "renews-untold",
        "engages-untold",
        "engages-while-it-loses",
    ],
)
def test_simulation_of_fleets_detects_a_mutant(
    owner: type, attribute: str, mutant: Callable[..., Any], found: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, attribute, mutant)
    seeds = range(first, first + SEEDS_TO_DETECT)
    assert any(found in breach for seed in seeds for breach in simulate_fleets(seed).breaches)
