"""Every public scenario on real servers."""

import pytest

from tests.end_to_end.scenarios.concurrent_runs import PARAMETER, Part, ScenarioRuns
from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError
from tests.end_to_end.scenarios.test_scenarios import PARTS


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(PARAMETER, PARTS, ids=lambda part: f"{part[0].name}-{part[1]}")
async def test_scenario_passes_on_real_servers(runs_on_real_servers: ScenarioRuns, scenario_and_mode: Part) -> None:
    try:
        await runs_on_real_servers.outcome(scenario_and_mode)
    except ScenarioFailedError as failed:
        pytest.fail(f"{failed}\n\nThe daemon said last:\n{failed.daemon}", pytrace=False)
