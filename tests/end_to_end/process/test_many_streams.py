"""Many streams of one daemon, some of them hostile. `--streams` sets their number."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from tests.end_to_end.process import streams, test_churn
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.recorder import Recorder
from tests.end_to_end.process.test_churn import ProjectWriter
from tests.end_to_end.process.validators import breaches
from tests.support.eventually import eventually

ROUNDS = 6
SHARING = 50
"""The number of streams that share a connection."""
HEARTBEATS = 5
WITHIN_S = 120.0


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--streams"))


async def read_nothing(workspace: Workspace) -> None:
    """Open a stream, and stop reading after the first batch."""
    async with workspace.stream() as stream:
        await stream.batch()
        await asyncio.Event().wait()


async def reconnect(workspace: Workspace) -> None:
    """Open streams, and close each after its first batch."""
    while True:
        with suppress(grpc.aio.AioRpcError):  # keepalive closes connections of starved processes
            async with workspace.stream() as stream:
                await stream.batch()


async def forge_revisions(workspace: Workspace) -> None:
    """Resume from revisions that the daemon never issued."""
    for number in range(1_000_000):
        request = pb.WatchClustersRequest(resume_revision=f"{number:016x}.{number}.{'m' * 22}")
        try:
            async with workspace.stream(request) as stream:
                await stream.batch()
        except grpc.aio.AioRpcError as error:
            # Junk of the same user takes up its rate of connections.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


async def send_junk(workspace: Workspace) -> None:
    """Send bytes that are not HTTP/2, repeatedly."""
    while True:
        _, writer = await asyncio.open_unix_connection(workspace.socket)
        with suppress(OSError):
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


HOSTILE: list[Callable[[Workspace], Coroutine[Any, Any, None]]] = [read_nothing, reconnect, forge_revisions, send_junk]


@asynccontextmanager
async def running(work: list[Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_streams_stay_current_despite_hostile_clients(
    workspace: Workspace, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_churn, "BIG", "x")
    writer = ProjectWriter(workspace, Random(1))
    hostile = [HOSTILE[number % len(HOSTILE)](workspace) for number in range(count // 4)]
    recorders = [Recorder(f"good {number}", workspace.address) for number in range(count - count // 4)]
    settings = {"removals": {"hold_not_ready": False}, "annotation_prefixes": ["example.com/"]}

    def are_current() -> bool:
        truth = {name: (state.uid, state.labels) for name, state in writer.upstream.engaged("").items()}
        return all(recorder.view == truth for recorder in recorders)

    async with workspace.daemon(**settings) as daemon:
        await daemon.start()
        async with running([recorder.run() for recorder in recorders]), running(hostile) as attacks:
            for number in range(ROUNDS):
                for _ in range(20):
                    writer.write()
                if number % 4 == 3:
                    workspace.sandbox.drop_watches()
                await daemon.during(eventually(are_current, within_s=WITHIN_S))
            assert not [task for task in attacks if task.done() and task.exception()]
        assert breaches([recorder.history for recorder in recorders], writer.upstream) == []
        assert await daemon.terminate() == 0
        assert "Traceback" not in daemon.output


async def test_every_stream_gets_its_heartbeats(workspace: Workspace, count: int) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    limits = {"streams": 2 * count, "streams_per_caller": 2 * count}
    request = pb.WatchClustersRequest(heartbeat_interval=Duration(seconds=1))

    async def until_synced(call: Any) -> Any:
        while not (batch := await call.read()).synced:
            pass
        return batch

    async def follow(call: Any, batch: Any) -> None:
        for _ in range(HEARTBEATS):
            following = await call.read()
            assert (following.previous_revision, list(following.events)) == (batch.revision, [])
            batch = following

    async with workspace.daemon(limits=limits) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        async with AsyncExitStack() as stack, asyncio.timeout(WITHIN_S):
            synced = {}
            for first in range(0, count, SHARING):
                channel: grpc.aio.Channel = await stack.enter_async_context(streams.channel(workspace.address))
                stub = DiscoveryServiceStub(channel)
                # One connection after the other, since the daemon limits how many streams begin at the same time.
                calls = [stub.WatchClusters(request) for _ in range(min(SHARING, count - first))]
                synced |= zip(calls, await asyncio.gather(*map(until_synced, calls)), strict=True)
            async with asyncio.TaskGroup() as tasks:
                for call, batch in synced.items():
                    tasks.create_task(follow(call, batch))
            for call in synced:
                call.cancel()
        assert await daemon.terminate() == 0
