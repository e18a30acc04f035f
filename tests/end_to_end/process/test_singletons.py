"""Singleton work of two operators beside one daemon: one works at a time, also over a restart of the daemon."""

import asyncio
import threading
from contextlib import AsyncExitStack

from milo_discovery import DiscoveryClient, Fleet, SyncDiscoveryClient
from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually


class Work:
    def __init__(self) -> None:
        self.working: set[str] = set()
        self.overlaps: list[set[str]] = []

    def begin(self, name: str) -> None:
        self.working.add(name)
        if len(self.working) > 1:
            self.overlaps.append(set(self.working))

    def end(self, name: str) -> None:
        self.working.discard(name)

    async def run(self, name: str) -> None:
        self.begin(name)
        try:
            await asyncio.Event().wait()
        finally:
            self.end(name)


async def test_singleton_work_is_done_by_one_operator_at_a_time(workspace: Workspace) -> None:
    work = Work()

    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(workspace.daemon())
        await daemon.start()
        fleets: dict[str, AsyncExitStack] = {}
        for name in ("a", "b"):
            fleets[name] = running = await stack.enter_async_context(AsyncExitStack())
            client = await running.enter_async_context(DiscoveryClient(workspace.address))
            fleet = Fleet(client)
            fleet.singleton("cleanup")(lambda name=name: work.run(name))
            await running.enter_async_context(fleet)
        await eventually(lambda: work.working, within_s=60)
        (first,) = work.working
        (second,) = {"a", "b"} - {first}

        await daemon.terminate()
        await daemon.start()
        await fleets[first].aclose()
        await eventually(lambda: work.working == {second}, within_s=60)
    assert work.overlaps == []
    assert work.working == set()


async def test_singleton_work_moves_from_a_fleet_to_a_blocking_client(workspace: Workspace) -> None:
    work = Work()

    def blocking(ended: threading.Event) -> None:
        work.begin("blocking")
        ended.wait()
        work.end("blocking")

    async with workspace.daemon() as daemon:
        await daemon.start()
        async with DiscoveryClient(workspace.address) as client:
            fleet = Fleet(client)
            fleet.singleton("cleanup")(lambda: work.run("fleet"))
            sync_client = SyncDiscoveryClient(workspace.address)
            async with fleet:
                await eventually(lambda: work.working == {"fleet"}, within_s=60)
                running = asyncio.create_task(asyncio.to_thread(sync_client.singleton("cleanup", blocking).run))
            await eventually(lambda: work.working == {"blocking"}, within_s=60)
            await asyncio.to_thread(sync_client.close)
            await running
    assert work.overlaps == []
    assert work.working == set()
