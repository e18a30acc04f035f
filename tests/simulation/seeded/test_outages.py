"""An hour without the API server, in each way that there is: nobody is disengaged, and it is not asked too often."""

import asyncio

import pytest

from tests.simulation.seeded.stage import Stage, play
from tests.simulation.seeded.troubles import TROUBLES, Trouble

HOUR_S = 3600.0
BUDGET = 250
LASTING = [each for each in TROUBLES if set(each.kinds) == {"list", "open", "look"}]
ALSO = [each for each in TROUBLES if each.name in ("a watch that ends at once", "expired")]


@pytest.mark.parametrize("trouble", [*LASTING, *ALSO], ids=lambda each: f"{each.row}-{each.name.replace(' ', '-')}")
def test_outage_of_an_hour_costs_few_requests_and_no_cluster(trouble: Trouble) -> None:
    async def outage(stage: Stage) -> None:
        stage.api.only = trouble
        stage.api.cut()
        stage.api.requests.clear()
        await asyncio.sleep(HOUR_S)
        asked = sum(count for kind, count in stage.api.requests.items() if kind != "livez")
        assert 100 <= asked <= BUDGET, stage.api.requests
        assert stage.told == []
        stage.world.delete("b")
        stage.api.only = None
        stage.api.requests.clear()
        assert await stage.settled() <= 60.0
        assert stage.api.requests["list"] <= 2
        assert stage.told == ["DISENGAGED b"]

    play(outage)
