import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest


@pytest.fixture
async def daemons() -> AsyncIterator[list[Any]]:
    """The daemons that a test starts, each with a task `running`."""
    started: list[Any] = []
    yield started
    for daemon in started:
        daemon.running.cancel()
        await asyncio.wait([daemon.running])
