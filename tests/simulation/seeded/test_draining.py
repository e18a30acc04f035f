"""Draining under faults: no cluster is disengaged while a worker that confirms releases uses it, until the deadline."""

import pytest

from tests.simulation.seeded.simulation_run import simulate

SEEDS = 150
CHUNK = 50
DRAIN_S = 30.0


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_cluster_is_not_disengaged_before_its_release_or_deadline(first: int) -> None:
    outcomes = [simulate(seed, drain_s=DRAIN_S) for seed in range(first, first + CHUNK)]
    assert {outcome.seed: outcome.breaches for outcome in outcomes if outcome.breaches} == {}
    assert sum(outcome.drained for outcome in outcomes) > CHUNK // 3, "too few clusters were released"
