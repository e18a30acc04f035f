"""The plays of the tests of this folder, against sandboxes."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.end_to_end.scenarios.ahead import Plays, selected
from tests.end_to_end.scenarios.servers import Sandboxes

AT_ONCE = 4


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def plays(request: pytest.FixtureRequest) -> AsyncIterator[Plays]:
    made = selected(request, Sandboxes(), at_once=AT_ONCE)
    yield made
    await made.close()
