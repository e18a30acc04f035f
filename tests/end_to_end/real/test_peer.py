"""Tests of the peer program, which prints the engagements of Milo's own provider."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.end_to_end.real.builds import UnobtainableError, say_to_stderr
from tests.end_to_end.real.programs import PEER_BINARY, Programs, peer
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create, set_ready
from tests.support.eventually import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="session")
def binary(built: Programs) -> Path:
    try:
        return peer(say_to_stderr)
    except UnobtainableError as error:
        pytest.skip(f"the peer is built with Milo's module, or {PEER_BINARY} names a binary of it: {error}")


@asynccontextmanager
async def telling(binary: Path, server: RealApi, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    process = await asyncio.create_subprocess_exec(
        str(binary),
        f"--kubeconfig={server.kubeconfig}",
        f"--mode={server.mode}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def next_event(lines: asyncio.StreamReader) -> tuple[str, str]:
    async with asyncio.timeout(LIMIT_S):
        line = await lines.readline()
    _, what, name, *_ = line.decode().split()
    return what, name


async def test_peer_reports_engaged_and_disengaged_clusters(binary: Path, server: RealApi) -> None:
    await create(server, "alpha")
    async with telling(binary, server) as lines:
        await set_ready(server, "alpha", True)
        assert await next_event(lines) == ("ENGAGED", "alpha")

        await set_ready(server, "alpha", False)
        assert await next_event(lines) == ("DISENGAGED", "alpha")


async def test_peer_applies_selector(binary: Path, server: RealApi) -> None:
    for name, environment in (("alpha", "dev"), ("beta", "prod")):
        await create(server, name, labels={"env": environment})
        await set_ready(server, name, True)
    async with telling(binary, server, "--label-selector=env=prod") as lines:
        assert await next_event(lines) == ("ENGAGED", "beta")
