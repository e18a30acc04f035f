from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from milo_discovery import BackoffPolicy, DiscoveryClient

from .scripted_daemon import ScriptedDaemon

AT_ONCE = BackoffPolicy(initial=timedelta(milliseconds=1), maximum=timedelta(milliseconds=5))


@pytest.fixture
async def daemon() -> AsyncIterator[ScriptedDaemon]:
    # Not tmp_path, whose path can exceed the limit for socket paths.
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        scripted = ScriptedDaemon(Path(directory) / "d.sock")
        await scripted.start()
        yield scripted
        await scripted.stop()


@pytest.fixture
async def client(daemon: ScriptedDaemon) -> AsyncIterator[DiscoveryClient]:
    async with DiscoveryClient(daemon.address, backoff=AT_ONCE) as discovery:
        yield discovery
