"""The public scenarios with two sources, with state files and on shard groups, all with the same results."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from milo_sandbox import Sandbox
from tests.end_to_end.matrix.cell import create_hub, pod, sharding
from tests.end_to_end.matrix.idle_source import beside_idle_source, with_keys
from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.running import chosen
from tests.end_to_end.scenarios.scenario_run import Setup, run_scenario
from tests.end_to_end.scenarios.servers import Sandboxes
from tests.end_to_end.scenarios.steps import Mode, OnDaemon, Scenario

ONE = ("one", "no-state", 1)
"""The cell in which tests/end_to_end/scenarios runs the scenarios."""
CELLS = [cell for cell in product(("one", "two"), ("no-state", "state"), (1, 3)) if cell != ONE]
"""Sources, state and number of daemons."""
SOME = {
    "recreated-is-another-cluster-project-one-state-1",
    "label-selector-limits-project-control-plane-two-state-1",
    "many-changes-across-a-compaction-project-two-no-state-3",
}
"""The test cases of each CI run; all of them run nightly (`--cells all`)."""


def makes_sense(scenario: Scenario, sources: str, daemons: int) -> bool:
    """Return whether a scenario can pass in a cell.

    A scenario with the mode's former name, `internalServiceDiscovery`, needs a single source. A scenario that stops the
    daemon needs a daemon without a group, in which its clusters may be disengaged: a member that returns engages
    nothing for 10 s, and its ownership expires 20 s after the last renewal. Such cases are in the cells of the matrix.
    """
    is_of_one = "internalServiceDiscovery" in scenario.settings
    ends_daemon = any(isinstance(step, OnDaemon) for _, step in scenario.steps)
    return not (is_of_one and sources == "two") and not (ends_daemon and daemons > 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_all = metafunc.config.getoption("--cells") == "all"
    parts = chosen(scenario for file in OWN for scenario in reading.load(file))
    runs = {
        f"{scenario.name}-{mode}-{sources}-{state}-{daemons}": (scenario, mode, sources, state, daemons)
        for (scenario, mode), (sources, state, daemons) in product(parts, CELLS)
        if isinstance(scenario, Scenario) and makes_sense(scenario, sources, daemons)
    }
    wanted = runs if is_all else {name: runs[name] for name in sorted(SOME)}
    metafunc.parametrize(("scenario", "mode", "sources", "state", "daemons"), wanted.values(), ids=wanted.keys())


async def test_scenario_passes_in_each_cell_of_the_matrix(
    scenario: Scenario, mode: Mode, sources: str, state: str, daemons: int, directory: Path
) -> None:
    def adapt(number: int, settings: dict[str, Any]) -> dict[str, Any]:
        if sources == "two":
            settings = beside_idle_source(settings)
        if state == "state":
            (directory / f"state-{number}").mkdir(mode=0o700)
            settings["state_directory"] = str(directory / f"state-{number}")
        if daemons > 1:
            settings["sharding"] = sharding(directory / "hub")
        return settings

    async with Sandbox() as hub:
        create_hub(hub, directory / "hub")
        setups = [Setup(partial(adapt, number), pod(number)) for number in range(daemons)]
        await run_scenario(with_keys(scenario) if sources == "two" else scenario, mode, Sandboxes(), daemons=setups)
