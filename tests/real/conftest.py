"""Real servers for the tests of this folder: built once, and started once for each file of tests."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.real.builds import say_to_stderr
from tests.real.programs import Programs, programs
from tests.real.servers import InfrastructureApi, MiloApi, RealApi

BUILT_WITHIN_S = 2400


@pytest.fixture(scope="session")
def built() -> Programs:
    if shutil.which("go") is None:
        pytest.skip("no go command on this machine: the real servers are built by it")
    return programs(say_to_stderr)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[MiloApi, InfrastructureApi], ids=lambda kind: kind.mode
)
async def started(
    request: pytest.FixtureRequest, built: Programs, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealApi]:
    server: RealApi = request.param(built, tmp_path_factory.mktemp("server"))
    try:
        await server.start()
        yield server
    finally:
        await server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def server(started: RealApi) -> RealApi:
    """A server that runs and holds no object."""
    await started.start()
    async with started.api() as api:
        await api.call("DELETE", started.collection)
    return started
