"""Every scenario, played on real servers."""

import pytest

from tests.real.programs import Programs
from tests.scenarios import reading
from tests.scenarios.__main__ import OWN
from tests.scenarios.play import play
from tests.scenarios.running import chosen
from tests.scenarios.servers import RealServers
from tests.scenarios.steps import Malformed, Mode, Scenario

pytestmark = pytest.mark.asyncio(loop_scope="session")

PLAYS = chosen([scenario for file in OWN for scenario in reading.load(file)])


@pytest.mark.parametrize(("scenario", "asked"), [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in PLAYS])
async def test_a_scenario_passes(
    built: Programs, servers: RealServers, scenario: Scenario | Malformed, asked: Mode
) -> None:
    assert isinstance(scenario, Scenario), scenario.problem
    await play(scenario, asked, servers)
