"""The longest callback in a long life of a large fleet, with the production settings.

Work that is done once in thousands of changes is invisible in a single change, but blocks the event loop.
"""

import pytest

from tests.simulation.cost import baseline
from tests.simulation.cost.meter import Meter
from tests.simulation.cost.paths import long_life

MOST_CALLS = 20_000
MOST_ELEMENTS = 8192


@pytest.fixture(scope="module")
def life() -> Meter:
    return long_life(baseline.CLUSTERS, baseline.CHANGES, stack_above=MOST_ELEMENTS)


@pytest.mark.skipif(not baseline.IS_COMPARABLE, reason="the baseline is of Python 3.11")
def test_cost_of_long_lived_daemon_equals_baseline(life: Meter) -> None:
    before = {key: figure for key, figure in baseline.read().items() if key.startswith("long_life.")}
    changed = [*baseline.differences(before, baseline.long_life_figures(life))]
    assert not changed, "\n".join([*changed, baseline.HINT])


def test_longest_callback_of_long_lived_daemon_makes_few_calls(life: Meter) -> None:
    assert life.longest <= MOST_CALLS


def test_callback_of_long_lived_daemon_reads_few_elements(life: Meter) -> None:
    assert life.most_elements <= MOST_ELEMENTS, f"{life.most_elements} elements were read in\n{life.stack}"
