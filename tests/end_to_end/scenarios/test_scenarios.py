"""The behaviour that users rely on, from outside: every scenario of the tree, in each of its modes."""

import pytest

from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.ahead import PLAY, Part, Plays
from tests.end_to_end.scenarios.play import PlayFailedError
from tests.end_to_end.scenarios.running import chosen

PARTS = chosen(scenario for file in OWN for scenario in reading.load(file))


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(PLAY, PARTS, ids=lambda part: f"{part[0].name}-{part[1]}")
async def test_scenario(plays: Plays, scenario_and_mode: Part) -> None:
    try:
        await plays.outcome(scenario_and_mode)
    except PlayFailedError as failed:
        pytest.fail(f"{failed}\n\nThe daemon said last:\n{failed.daemon}", pytrace=False)
