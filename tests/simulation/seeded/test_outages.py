"""API server outages of one hour, by kind: no cluster is disengaged, and the request rate stays low."""

import asyncio

import pytest

from tests.simulation.seeded.harness import Harness, run_steps
from tests.simulation.seeded.request_faults import REQUEST_FAULTS, RequestFault

HOUR_S = 3600.0
BUDGET = 250
LASTING = [each for each in REQUEST_FAULTS if set(each.kinds) == {"list", "open", "look"}]
ALSO = [each for each in REQUEST_FAULTS if each.name in ("a watch that ends at once", "expired")]


@pytest.mark.parametrize("fault", [*LASTING, *ALSO], ids=lambda each: f"{each.row}-{each.name.replace(' ', '-')}")
def test_outage_of_an_hour_costs_few_requests_and_no_cluster(fault: RequestFault) -> None:
    async def outage(harness: Harness) -> None:
        harness.api.only = fault
        harness.api.cut()
        harness.api.requests.clear()
        await asyncio.sleep(HOUR_S)
        asked = sum(count for kind, count in harness.api.requests.items() if kind != "livez")
        assert 100 <= asked <= BUDGET, harness.api.requests
        assert harness.received == []
        harness.world.delete("b")
        harness.api.only = None
        harness.api.requests.clear()
        assert await harness.settled() <= 60.0
        assert harness.api.requests["list"] <= 2
        assert harness.received == ["DISENGAGED b"]

    run_steps(outage)
