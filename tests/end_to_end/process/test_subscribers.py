"""Subscribers that stall, are killed or connect in large numbers: the daemon serves others, and leaks nothing."""

import asyncio
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.eventually import LIMIT_S, eventually

# More than the buffers between a server and a client that does not read, which hold some six megabytes.
MANY, BIG = 400, "x" * 30_000

IDLE_READERS = """
import sys, time
import grpc
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
streams = []
for _ in range(int(sys.argv[2])):
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)])
    streams.append(DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest()))
    next(streams[-1])
print("read no more", flush=True)
time.sleep(600)
"""


def populate(workspace: Workspace) -> None:
    for number in range(MANY):
        workspace.sandbox.projects.create(f"p-{number}", ready=True, annotations={"example.com/big": BIG})


async def started(daemon: DaemonProcess) -> None:
    await daemon.start()
    await daemon.wait_for_output('"synced"')


async def until_subscribers(workspace: Workspace, count: int) -> None:
    while await workspace.subscribers() != count:  # noqa: ASYNC110 - polled, since it has no event
        await asyncio.sleep(0.02)


async def test_stream_of_stalled_subscriber_is_aborted_and_can_resume(workspace: Workspace) -> None:
    populate(workspace)
    async with workspace.daemon(annotation_prefixes=["example.com/"], stalled_timeout="1s") as daemon:
        await started(daemon)
        async with workspace.stream() as stalled, workspace.stream() as other:
            first = await stalled.batch()
            await other.until_synced()
            await until_subscribers(workspace, 1)

            workspace.sandbox.projects.create("late", ready=True)
            [event] = (await other.batch()).events
            assert event.cluster.name == "late"

            batches = [first, *await stalled.rest()]
            assert await stalled.code() is grpc.StatusCode.ABORTED
        async with workspace.stream(pb.WatchClustersRequest(resume_revision=batches[-1].revision)) as again:
            names: set[str] = set()
            while len(names) < MANY + 1:
                names |= {event.cluster.name for event in (await again.batch()).events}
            assert "late" in names


async def test_daemon_logs_no_error_for_an_aborted_stream_of_a_stalled_subscriber(workspace: Workspace) -> None:
    populate(workspace)
    settings: dict[str, Any] = {"annotation_prefixes": ["example.com/"], "stalled_timeout": "1s"}
    async with workspace.daemon(http_listen="127.0.0.1:0", **settings) as daemon:
        await started(daemon)
        metrics = f"{daemon.events('started')[-1]['http']}/metrics"
        async with workspace.stream() as stalled:
            await stalled.batch()
            await until_metric(
                metrics,
                'grpc_server_handled_total{grpc_code="Aborted",grpc_method="WatchClusters",'
                'grpc_service="milo.discovery.v1.DiscoveryService",grpc_type="server_stream"} 1.0',
            )
            workspace.sandbox.projects.create("late", ready=True)
            async with workspace.stream() as other:
                await other.until_synced()
        assert "call failed" not in daemon.output


async def until_metric(url: str, line: str) -> None:
    def read() -> str:
        with urllib.request.urlopen(url) as answer:
            return str(answer.read().decode())

    async with asyncio.timeout(LIMIT_S):
        while line not in await asyncio.to_thread(read):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.1)


async def test_daemon_logs_no_error_for_a_killed_subscriber(workspace: Workspace) -> None:
    populate(workspace)
    async with workspace.daemon(annotation_prefixes=["example.com/"]) as daemon:
        await started(daemon)
        async with workspace.stream() as other:
            await other.until_synced()
            async with idle_readers(workspace, 1):
                # The other subscriber reads enough that the buffers of these streams fill up.
                for number in range(50):
                    workspace.sandbox.projects.create(f"late-{number}", ready=True)
                    assert [event.cluster.name for event in (await other.batch()).events] == [f"late-{number}"]
            await until_subscribers(workspace, 1)
        assert await daemon.terminate() == 0
        assert "call failed" not in daemon.output
        assert "Traceback" not in daemon.output


@asynccontextmanager
async def idle_readers(workspace: Workspace, count: int) -> AsyncIterator[None]:
    """Start a process with `count` streams that reads each once; kill it at the end."""
    command = (sys.executable, "-c", IDLE_READERS, f"unix:{workspace.socket}", str(count))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"read no more\n"
        yield
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def readers(workspace: Workspace, count: int) -> AsyncIterator[None]:
    """Open `count` streams with a complete view; close them at the end."""
    streams = [workspace.stream() for _ in range(count)]
    try:
        await asyncio.gather(*(stream.until_synced() for stream in streams))
        yield
    finally:
        await asyncio.gather(*(stream.close() for stream in streams))


@pytest.mark.parametrize("crowd", [readers, idle_readers], ids=["closed", "killed"])
async def test_flood_of_connecting_and_disconnecting_clients_leaks_no_files_or_memory(
    workspace: Workspace, crowd: Callable[[Workspace, int], AbstractAsyncContextManager[None]]
) -> None:
    for number in range(50):
        workspace.sandbox.projects.create(f"p-{number}", ready=True)
    async with workspace.daemon() as daemon:
        await started(daemon)
        for count in (20, 100):
            # Caches are filled by the first round.
            files, memory = open_files(daemon.pid), resident_kib(daemon.pid)
            for _ in range(2):
                async with crowd(workspace, count):
                    assert await workspace.subscribers() == count
                await until_subscribers(workspace, 0)
        await eventually(lambda: open_files(daemon.pid) <= files)
        assert resident_kib(daemon.pid) - memory < 16 * 1024
        assert await daemon.terminate() == 0
        assert "Traceback" not in daemon.output


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
