"""The HTTP endpoint, and who keeps it busy. What it answers is in the tests of the metrics and of the status page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import cast

import aiohttp
import pytest

from milo_discoveryd.telemetry.board import Board
from milo_discoveryd.telemetry.http import CONNECTIONS, Endpoint
from milo_discoveryd.telemetry.metrics import Metrics


@pytest.fixture
async def address() -> AsyncIterator[str]:
    endpoint = Endpoint(Metrics(), cast(Board, None), ready=dict)
    try:
        yield await endpoint.start("127.0.0.1", 0)
    finally:
        await endpoint.stop()


async def test_a_crowd_that_says_nothing_keeps_nobody_out(address: str) -> None:
    host, _, port = address.removeprefix("http://").rpartition(":")
    async with AsyncExitStack() as closing, asyncio.timeout(30):
        crowd = []
        for _ in range(2 * CONNECTIONS):
            reader, writer = await asyncio.open_connection(host, int(port))
            closing.callback(writer.close)
            crowd.append(reader)
        for oldest in crowd[:CONNECTIONS]:
            assert await oldest.read() == b"", "ended by us"
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/readyz", "/metrics"):
                async with session.get(address + path) as answer:
                    assert answer.status == 200
        assert not crowd[-1].at_eof()
