"""Every public scenario in each of its modes, against sandboxes."""

import pytest

from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.concurrent_runs import PARAMETER, Part, ScenarioRuns
from tests.end_to_end.scenarios.running import chosen
from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError

PARTS = chosen(scenario for file in OWN for scenario in reading.load(file))


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(PARAMETER, PARTS, ids=lambda part: f"{part[0].name}-{part[1]}")
async def test_scenario_passes_on_the_sandbox(scenario_runs: ScenarioRuns, scenario_and_mode: Part) -> None:
    try:
        await scenario_runs.outcome(scenario_and_mode)
    except ScenarioFailedError as failed:
        pytest.fail(f"{failed}\n\nLast output of the daemon:\n{failed.daemon}", pytrace=False)
