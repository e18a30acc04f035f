"""Floods of connections on a machine that is too busy to reach the configured rate."""

import asyncio
import math
import socket

import pytest

from bench import floods


async def test_flood_of_silent_connections_yields_to_other_tasks_if_it_cannot_reach_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(floods, "SILENT_PER_S", math.inf)
    figures = floods.Figures()
    with socket.create_server(("127.0.0.1", 0)) as server:
        flood = asyncio.create_task(floods.silent_connections(f"127.0.0.1:{server.getsockname()[1]}", 3, figures))
        while figures["attempted"] < 10:  # noqa: ASYNC110 - the flood sets no event
            await asyncio.sleep(0.001)
        flood.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flood
