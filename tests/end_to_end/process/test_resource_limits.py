"""A daemon with too few file descriptors or too little CPU time."""

import asyncio
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.streams import Stream
from tests.support.ports import free_port

DESCRIPTORS = (64, 32)
CROWD = 200
WITHIN_S = 8.0
FLOOD = """import itertools, os, sys
for number in itertools.count():
    os.kill(int(sys.argv[1]), int(sys.argv[2]))
    if number == 10_000:
        print("flooding", flush=True)
"""
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""The connection preface: a client that has sent it may stay idle."""


async def read_for_ever(stream: Stream) -> None:
    while True:
        await stream.batch()


async def next_event(stream: Stream) -> str:
    while not (batch := await stream.batch()).events:
        pass
    return " ".join(event.cluster.name for event in batch.events)


@pytest.mark.parametrize("descriptors", DESCRIPTORS)
async def test_f38_connection_flood_leaves_descriptors_for_the_api_server(
    workspace: Workspace, descriptors: int
) -> None:
    """O9: open connections are served, further ones are refused with a status, until connections are free again."""
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(descriptors=descriptors) as daemon:
        await daemon.start()
        async with workspace.stream() as first:
            await first.until_synced()
            with crowd(workspace):
                async with workspace.stream() as late:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await read_for_ever(late)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                for name in ("beta", "gamma", "delta"):
                    workspace.sandbox.drop_watches()
                    workspace.sandbox.projects.create(name, ready=True)
                    assert await daemon.during(next_event(first)) == name
        assert len(await daemon.during(clusters_once_accepted(workspace))) == 4
        assert await daemon.terminate() == 0
    [received] = daemon.events("connection limit lowered: raise the limit of open files (RLIMIT_NOFILE)")
    assert received["level"] == "info", "want level info, since the limit is not configured"
    assert (received["connections"], received["set"], received["limit"]) == (descriptors // 8, 1000, descriptors)


@pytest.mark.parametrize("descriptors", DESCRIPTORS)
async def test_connection_flood_at_the_http_port_leaves_descriptors_for_callers_and_the_api_server(
    workspace: Workspace, descriptors: int
) -> None:
    """Found by an attacker: at 64 descriptors, its 64 connections kept the daemon from every other one."""
    port = free_port()
    async with workspace.daemon(descriptors=descriptors, http_listen=f"127.0.0.1:{port}") as daemon:
        await daemon.start()
        with ExitStack() as closing:
            for _ in range(CROWD):
                with suppress(ConnectionError):  # already closed for a newer one
                    closing.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S))
            workspace.sandbox.drop_watches()
            workspace.sandbox.projects.create("alpha", ready=True)
            async with workspace.stream() as late:
                await daemon.during(late.until_synced())
                workspace.sandbox.projects.create("beta", ready=True)
                while await daemon.during(next_event(late)) != "beta":
                    pass
        assert await daemon.terminate() == 0


async def clusters_once_accepted(workspace: Workspace) -> list[str]:
    while True:
        async with workspace.stream() as stream:
            try:
                batches = await stream.until_synced()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                continue  # some connections are still being closed
        return [event.cluster.name for batch in batches for event in batch.events]


@contextmanager
def crowd(workspace: Workspace) -> Iterator[None]:
    """Open more connections than fit; those that were accepted stay open."""
    with ExitStack() as closing:
        for _ in range(CROWD):
            each = closing.enter_context(socket.socket(socket.AF_UNIX))
            each.connect(str(workspace.socket))
            with suppress(ConnectionError):  # already refused
                each.sendall(HELLO)
        yield


async def test_f43_daemon_paused_by_sigstop_sends_missed_changes_after_sigcont(workspace: Workspace) -> None:
    """F41 as well: from outside, a busy daemon looks the same as a stopped one."""
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon() as daemon:
        await daemon.start()
        async with workspace.stream(pb.WatchClustersRequest(heartbeat_interval={"seconds": 1})) as stream:
            last = (await stream.until_synced())[-1]
            daemon.signal(signal.SIGSTOP)
            workspace.sandbox.drop_watches()
            workspace.sandbox.projects.create("beta", ready=True)
            workspace.sandbox.projects.delete("alpha")
            await asyncio.sleep(2.5)  # the fault: the process is stopped
            daemon.signal(signal.SIGCONT)
            received: list[str] = []

            async def follow() -> None:
                nonlocal last
                while len(received) < 2:
                    batch = await stream.batch()
                    assert batch.previous_revision == last.revision, "changes are missing or out of order"
                    last = batch
                    received.extend(pb.ClusterEvent.Type.Name(event.type) for event in batch.events)

            await daemon.during(follow())
            assert sorted(received) == ["TYPE_DISENGAGED", "TYPE_ENGAGED"]
        assert await daemon.terminate() == 0


@pytest.mark.parametrize(
    ("number", "logged"),
    [
        (signal.SIGHUP, "audit file not reopened"),
        (signal.SIGUSR1, "log level changed"),
        (signal.SIGUSR2, "no removals held"),
    ],
)
async def test_daemon_serves_subscribers_during_a_flood_of_signals(
    workspace: Workspace, number: signal.Signals, logged: str
) -> None:
    """Signals of one kind count as one within 0.2 seconds, and are not ignored."""
    audit = workspace.directory / "audit"
    async with workspace.daemon(audit={"file": str(audit)}) as daemon:
        await daemon.start()
        if number is signal.SIGHUP:
            audit.unlink()
            audit.mkdir()
        async with workspace.stream() as stream:
            await stream.until_synced()
            begun_at = time.monotonic()
            flood = await create_subprocess_exec(
                sys.executable, "-c", FLOOD, str(daemon.pid), str(int(number)), stdout=PIPE
            )
            assert flood.stdout is not None
            await flood.stdout.readline()
            for name in ("alpha", "beta", "gamma"):
                workspace.sandbox.projects.create(name, ready=True)
                async with asyncio.timeout(WITHIN_S):
                    assert await daemon.during(next_event(stream)) == name
            flood.kill()
            await flood.wait()
        assert await daemon.terminate() == 0
    assert 1 <= len(daemon.events(logged)) <= (time.monotonic() - begun_at) / 0.2 + 1
