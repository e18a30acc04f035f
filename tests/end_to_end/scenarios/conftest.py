"""Fixture: scenario runs against sandboxes."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.end_to_end.scenarios.concurrent_runs import ScenarioRuns, selected
from tests.end_to_end.scenarios.servers import Sandboxes

AT_ONCE = 4


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scenario_runs(request: pytest.FixtureRequest) -> AsyncIterator[ScenarioRuns]:
    made = selected(request, Sandboxes(), at_once=AT_ONCE)
    yield made
    await made.close()
