"""Seeded simulations of a shard group with random faults: one owner at a time, and every cluster owned afterwards."""

import pytest

from tests.simulation.sharding.faults import KINDS, STOPPED_SUCCESSOR
from tests.simulation.sharding.host import Host
from tests.simulation.sharding.pod import Traits
from tests.simulation.sharding.simulation_run import simulate

SEEDS = 60
SEEDS_TO_DETECT = 60


class NoAcknowledgement(Traits):
    """Engages without waiting for the former owner."""

    engages_unacknowledged = True


class EarlyAcknowledgement(Traits):
    """Acknowledges a view before the clusters that it takes away are released."""

    acknowledges_early = True


class WallClock(Traits):
    clock = staticmethod(Host.wall)


class MonotonicClock(Traits):
    clock = staticmethod(Host.monotonic)


class EarlyRelease(Traits):
    """Confirms a release while the handler still runs."""

    releases_early = True


class NoPrecondition(Traits):
    """Writes the view without a precondition."""

    has_preconditions = False


def test_simulation_has_one_owner_at_a_time_and_recovers_from_every_fault() -> None:
    outcomes = [simulate(seed) for seed in range(SEEDS)]
    assert [outcome.breaches for outcome in outcomes if outcome.breaches] == []
    assert {fault.split()[1] for outcome in outcomes for fault in outcome.faults} == {*KINDS, STOPPED_SUCCESSOR}
    assert sum(outcome.engagements for outcome in outcomes) > 10 * SEEDS
    assert sum(outcome.views for outcome in outcomes) > 2 * SEEDS


@pytest.mark.parametrize("seed", [3_400_425, 5_004_949])
def test_seed_that_found_two_owners_passes(seed: int) -> None:
    assert simulate(seed).breaches == []


def test_simulation_is_reproducible_by_seed() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7) != simulate(8)


@pytest.mark.parametrize(
    "mutant", [NoAcknowledgement, EarlyAcknowledgement, WallClock, MonotonicClock, EarlyRelease, NoPrecondition]
)
def test_simulation_detects_a_mutant(mutant: type[Traits]) -> None:
    assert any(simulate(seed, mutant()).breaches for seed in range(SEEDS_TO_DETECT))
