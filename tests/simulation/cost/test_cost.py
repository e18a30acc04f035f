"""The cost of the daemon's most frequent operations, in counted calls and elements: see docs/testing.md, "Cost"."""

from typing import NamedTuple

import pytest

from milo_discoveryd.objects import collection, comparison
from tests.simulation.cost.meter import Meter
from tests.simulation.cost.paths import BURST, PATHS, REPLACED, measure, time_ratio, tracked_objects

LARGE = 20_000
MANY = 16
"""At most half of the readers that share large batches: some paths have as many late ones."""
MOST_TIME_RATIO = 1.4
"""The measured ratio is between 0.95 and 1.05, also on a busy machine, if nothing depends on the size of the fleet."""
HINT = "if this is intended, change the budget, and give the reason in the commit"


class Budget(NamedTuple):
    """The most that a path may cost with one subscriber, and more for each further one: some 10 % more than it does."""

    calls: int
    further_calls: int
    elements: int = 0
    further_elements: int = 0
    units: int = 1
    """The number of clusters or changes. The calls of expensive functions are rounded for each of them."""
    functions: str = ""
    further_functions: str = ""


_EACH = "decode encode serialize sort sum"
BUDGETS = {
    "burst": Budget(32_000, 385, 7_400, units=BURST, functions=f"{_EACH} encode"),
    "change": Budget(
        240, 70, 64, functions=f"{_EACH} encode serialize sort digest join", further_functions="digest serialize"
    ),
    "change_beside_sources": Budget(
        480, 122, 64, functions=f"{_EACH} encode serialize sort sort digest join", further_functions="digest serialize"
    ),
    "first_list": Budget(72_000, 197, units=1000, functions=_EACH),
    "first_list_end": Budget(106_000, 265, 2_200, units=1000, functions=f"{_EACH} serialize"),
    "idle": Budget(690, 356, 1_100, units=4, functions="digest serialize", further_functions="digest serialize"),
    "kind_declarative": Budget(18_400, 0, 1_200, units=100, functions="decode encode encode sort sort sum"),
    "kind_project": Budget(5_700, 0, 1_200, units=100, functions="decode encode encode sort sum"),
    "kind_project_control_plane": Budget(8_000, 0, 1_200, units=100, functions="decode encode encode sort sort sum"),
    "kind_service_consumer": Budget(9_800, 0, 1_200, units=100, functions="decode encode encode sort sort sum"),
    "late_snapshot": Budget(9_200, 430, 1_100, units=1000, functions="serialize"),
    "listing": Budget(14_600, 14_600, 1_050, 1_050, units=500),
    "probe": Budget(2_900, 68, 610, units=1000),
    "relist": Budget(31_500, 172, units=1000, functions="decode sort"),
    "relist_end": Budget(31_500, 112, 1, units=1000, functions="decode sort"),
    "renewal": Budget(
        11_600,
        4_800,
        250,
        120,
        units=10,
        functions="decode digest sum " * 10 + "encode " * 5 + "serialize serialize sort",
        further_functions="digest " * 4 + "encode serialize " * 2,
    ),
    "resume": Budget(3_550, 252, 2_200, units=BURST),
    "snapshot": Budget(9_000, 246, 1_100, units=1000, functions="serialize"),
}


@pytest.mark.parametrize("name", PATHS)
def test_cost_of_code_path_is_within_its_budget(name: str) -> None:
    path, clusters = PATHS[name]
    one, many, budget = measure(path, clusters, 1), measure(path, clusters, MANY), BUDGETS[name]

    def further(first: int, all_: int) -> float:
        return (all_ - first) / (MANY - 1)

    assert one.calls <= budget.calls, HINT
    assert further(one.calls, many.calls) <= budget.further_calls, HINT
    assert one.elements <= budget.elements, f"{HINT}\n{_reader(one)}"
    assert further(one.elements, many.elements) <= budget.further_elements, HINT
    each = {function: round(count / budget.units) for function, count in one.functions.items()}
    functions = one.functions.keys() | many.functions.keys()
    more = {name: round(further(one.functions[name], many.functions[name]) / budget.units) for name in functions}
    assert _words(each) == sorted(budget.functions.split()), HINT
    assert _words(more) == sorted(budget.further_functions.split()), HINT


@pytest.mark.parametrize("name", ["burst", "change", "resume"])
def test_cost_of_code_path_does_not_depend_on_fleet_size(name: str) -> None:
    path, clusters = PATHS[name]
    small, large = (measure(path, size, 1) for size in (clusters, LARGE))
    assert (large.calls, large.functions) == (small.calls, small.functions)


@pytest.mark.parametrize(("clusters", "subscribers"), [(1000, MANY), (LARGE, 1)])
def test_applying_a_change_reads_few_elements_of_containers(clusters: int, subscribers: int) -> None:
    """A change may search the fleet, but not iterate over it."""
    path, _ = PATHS["change"]
    meter = measure(path, clusters, subscribers)
    assert meter.elements <= BUDGETS["change"].elements, _reader(meter)


@pytest.mark.parametrize("how", REPLACED)
def test_no_step_of_a_list_that_replaces_the_fleet_grows_with_the_fleet(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for module in (comparison, collection):
        monkeypatch.setattr(module, "OBJECTS_PER_STEP", 100)
    small, large = (measure(REPLACED[how], clusters, 1) for clusters in (2000, 4000))
    assert large.longest <= 1.1 * small.longest


def test_garbage_collector_tracks_no_objects_per_cluster() -> None:
    """Otherwise a collection blocks the event loop for longer in a large fleet."""
    few, many = tracked_objects(1000), tracked_objects(2000)
    assert [kind for kind in many if many[kind] - few[kind] >= 500] == []


def test_cpu_time_of_a_change_does_not_grow_with_the_fleet() -> None:
    assert time_ratio(1000, LARGE, changes=120) <= MOST_TIME_RATIO


def _words(counts: dict[str, int]) -> list[str]:
    return sorted(word for word, count in counts.items() for _ in range(count))


def _reader(meter: Meter) -> str:
    return f"the callback that read most was in\n{meter.stack}"
