"""An API server that does not answer reads of some objects: deletions of others are confirmed without delay."""

import asyncio
from functools import partial
from time import monotonic

import pytest

from milo_discovery import EventType
from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually

WITHIN_S = 8.0
"""The limit for both deletions, which take two seconds on an idle machine."""


@pytest.mark.parametrize("count", [60, 300])
async def test_deletion_is_confirmed_while_other_confirmation_reads_hang(workspace: Workspace, count: int) -> None:
    projects, faults = workspace.sandbox.projects, workspace.sandbox.faults
    hanging = [f"hangs-{number}" for number in range(count)]
    for name in (*hanging, "stays", "quick-0", "quick-1"):
        projects.create(name, ready=True)
    async with workspace.daemon(removals={"count": 1000}) as daemon, workspace.client() as client:
        await daemon.start()
        disengaged: list[str] = []
        async with client.watch() as watch:

            async def follow() -> None:
                async for event in watch:
                    disengaged.extend([event.cluster.name] if event.type is EventType.DISENGAGED else [])

            following = asyncio.create_task(follow())
            await eventually(lambda: len(watch.clusters) == count + 3)
            faults.hanging(*hanging)
            for name in hanging:
                projects.delete(name)
            for quick in ("quick-0", "quick-1"):
                began = monotonic()
                projects.delete(quick)
                await daemon.during(eventually(partial(disengaged.__contains__, quick)))
                assert monotonic() - began < WITHIN_S
            assert disengaged == ["quick-0", "quick-1"]
            faults.clear()
            await daemon.during(eventually(lambda: len(disengaged) == count + 2))
            following.cancel()
