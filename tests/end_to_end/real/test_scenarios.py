"""Every scenario, played on real servers."""

import pytest

from tests.end_to_end.scenarios.ahead import PLAY, Part, Plays
from tests.end_to_end.scenarios.play import PlayFailedError
from tests.end_to_end.scenarios.test_scenarios import PARTS


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(PLAY, PARTS, ids=lambda part: f"{part[0].name}-{part[1]}")
async def test_scenario_on_real_servers(plays_on_real_servers: Plays, scenario_and_mode: Part) -> None:
    try:
        await plays_on_real_servers.outcome(scenario_and_mode)
    except PlayFailedError as failed:
        pytest.fail(f"{failed}\n\nThe daemon said last:\n{failed.daemon}", pytrace=False)
