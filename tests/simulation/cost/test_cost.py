"""The cost of the daemon's most frequent operations, in counted calls and elements: see docs/testing.md, "Cost"."""

import pytest

from tests.simulation.cost import baseline
from tests.simulation.cost.meter import Meter
from tests.simulation.cost.paths import PATHS, measure, time_ratio, tracked_objects

LARGE = 20_000
MOST_ELEMENTS_OF_CHANGE = 64
"""A change may search the fleet, but not iterate over it."""
MOST_TIME_RATIO = 1.4
"""The measured ratio is between 0.95 and 1.05, also on a busy machine, if nothing depends on the size of the fleet."""


@pytest.mark.skipif(not baseline.IS_COMPARABLE, reason="the baseline is of Python 3.11")
@pytest.mark.parametrize("name", PATHS)
def test_cost_of_code_path_equals_baseline(name: str) -> None:
    before = {key: figure for key, figure in baseline.read().items() if key.startswith(f"{name}.")}
    changed = [*baseline.differences(before, baseline.path_figures(name))]
    assert not changed, "\n".join([*changed, baseline.HINT])


@pytest.mark.parametrize("name", ["burst", "change", "resume"])
def test_cost_of_code_path_does_not_depend_on_fleet_size(name: str) -> None:
    path, clusters = PATHS[name]
    small, large = (measure(path, size, 1) for size in (clusters, LARGE))
    assert (large.calls, large.functions) == (small.calls, small.functions)


@pytest.mark.parametrize(("clusters", "subscribers"), [(1000, baseline.MANY), (LARGE, 1)])
def test_applying_a_change_reads_few_elements_of_containers(clusters: int, subscribers: int) -> None:
    path, _ = PATHS["change"]
    meter = measure(path, clusters, subscribers)
    assert meter.elements <= MOST_ELEMENTS_OF_CHANGE, _reader(meter)


def test_garbage_collector_tracks_no_objects_per_cluster() -> None:
    """Otherwise a collection blocks the event loop for longer in a large fleet."""
    few, many = tracked_objects(1000), tracked_objects(2000)
    assert [kind for kind in many if many[kind] - few[kind] >= 500] == []


def test_cpu_time_of_a_change_does_not_grow_with_the_fleet() -> None:
    assert time_ratio(1000, LARGE, changes=120) <= MOST_TIME_RATIO


def _reader(meter: Meter) -> str:
    return f"the callback that read most was in\n{meter.stack}"
