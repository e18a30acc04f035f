"""Every public scenario on real servers."""

import pytest

from tests.end_to_end.real.whole_milo import WholeMilo, WholeMiloServers
from tests.end_to_end.scenarios.concurrent_runs import PARAMETER, Part, ScenarioRuns
from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError, run_scenario
from tests.end_to_end.scenarios.steps import MODES, Scenario
from tests.end_to_end.scenarios.test_scenarios import PARTS
from tests.integration.sandbox_conformance.lives import DELETED_WITHIN_S

_NAMES = list(dict.fromkeys(scenario.name for scenario, _ in PARTS))
ALTERNATING = [
    pytest.param(
        (scenario, mode),
        marks=[pytest.mark.nightly] if (_NAMES.index(scenario.name) + MODES.index(mode)) % 2 else [],
        id=f"{scenario.name}-{mode}",
    )
    for scenario, mode in PARTS
]
"""Before each merge a scenario runs in one mode, each night in both."""


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(PARAMETER, ALTERNATING)
async def test_scenario_passes_on_real_servers(runs_on_real_servers: ScenarioRuns, scenario_and_mode: Part) -> None:
    try:
        await runs_on_real_servers.outcome(scenario_and_mode)
    except ScenarioFailedError as failed:
        pytest.fail(f"{failed}\n\nLast output of the daemon:\n{failed.daemon}", pytrace=False)


@pytest.mark.nightly
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "scenario",
    [
        scenario
        for scenario, mode in PARTS
        if isinstance(scenario, Scenario) and mode == "project" and not scenario.writes_conditions
    ],
    ids=lambda scenario: scenario.name,
)
async def test_scenario_passes_with_the_controllers_of_milo(whole_milo: WholeMilo, scenario: Scenario) -> None:
    try:
        await run_scenario(scenario, "project", WholeMiloServers(whole_milo), patience_s=DELETED_WITHIN_S)
    except ScenarioFailedError as failed:
        pytest.fail(f"{failed}\n\nLast output of the daemon:\n{failed.daemon}", pytrace=False)
