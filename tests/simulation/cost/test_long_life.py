"""The longest callback in a long life of a large fleet, with the production settings.

Work that is done once in thousands of changes is invisible in a single change, but blocks the event loop.
"""

import pytest

from tests.simulation.cost.meter import Meter
from tests.simulation.cost.paths import long_life

CLUSTERS, CHANGES = 20_000, 6
"""The objects would exceed `watch.objects_limit` if the budget counted each change again."""
MOST_CALLS = 10_000
MOST_ELEMENTS = 8192


@pytest.fixture(scope="module")
def life() -> Meter:
    return long_life(CLUSTERS, CHANGES, stack_above=MOST_ELEMENTS)


def test_longest_callback_of_long_lived_daemon_makes_few_calls(life: Meter) -> None:
    assert life.longest <= MOST_CALLS


def test_callback_of_long_lived_daemon_reads_few_elements(life: Meter) -> None:
    assert life.most_elements <= MOST_ELEMENTS, f"{life.most_elements} elements were read in\n{life.stack}"
