"""Singleton work of the Node example: one replica works at a time, and the next one takes over."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.end_to_end.examples.building import node_subscriber
from tests.end_to_end.examples.program import Program
from tests.end_to_end.process.daemon import DaemonProcess

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def replica(socket: Path) -> Callable[[], Program]:
    command = node_subscriber()
    return lambda: Program(command, {"MILO_DISCOVERY_ADDRESS": f"unix://{socket}", "SINGLETON": "cleanup"})


async def test_nodejs_replica_takes_over_singleton_work(daemon: DaemonProcess, replica: Callable[[], Program]) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        first = await running.enter_async_context(replica())
        assert await first.line() == "WORKING cleanup"
        second = await stack.enter_async_context(replica())
        await running.aclose()
        assert await second.line() == "WORKING cleanup"


async def test_nodejs_replica_stops_singleton_work_when_the_daemon_does_not_answer(
    daemon: DaemonProcess, replica: Callable[[], Program]
) -> None:
    async with replica() as printed:
        assert await printed.line() == "WORKING cleanup"
        await daemon.kill()
        await printed.until("ENDED cleanup")
