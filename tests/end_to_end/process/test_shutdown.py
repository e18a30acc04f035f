"""Shutdown of the daemon: by SIGTERM, by SIGKILL, and when its socket is removed."""

import asyncio
import signal
from pathlib import Path

import grpc
import pytest

from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import eventually


async def test_sigterm_closes_streams_as_unavailable_and_disengages_nothing(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon() as daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            await stream.until_synced()
            ended = asyncio.create_task(daemon.terminate())

            assert [event for batch in await stream.rest() for event in batch.events] == []
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            assert await stream.retry_after_ms() == 1000
            assert await ended == 0
            assert not workspace.socket.exists()


async def test_sigterm_flushes_pending_events_before_streams_end(workspace: Workspace) -> None:
    for number in range(2000):
        workspace.sandbox.projects.create(f"p-{number}", ready=True)
    async with workspace.daemon() as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        async with workspace.stream() as stream:
            batches = [await stream.batch()]
            assert not batches[0].synced
            ended = asyncio.create_task(daemon.terminate())

            batches += await stream.rest()

            assert sum(len(batch.events) for batch in batches) == 2000
            assert batches[-1].synced
            assert await ended == 0


async def test_shutdown_is_logged_with_reason_and_durations(workspace: Workspace) -> None:
    async with workspace.daemon() as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        assert await daemon.terminate() == 0
        [stopped] = daemon.events("stopped")
    assert (stopped["level"], stopped["reason"]) == ("info", "SIGTERM")
    assert 0 <= float(str(stopped["shutdown_seconds"])) <= float(str(stopped["ran_seconds"]))


async def test_sigterm_is_not_delayed_by_stalled_subscriber(workspace: Workspace) -> None:
    for number in range(300):
        workspace.sandbox.projects.create(f"p-{number}", ready=True, annotations={"example.com/big": "x" * 30_000})
    async with workspace.daemon(annotation_prefixes=["example.com/"]) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        async with workspace.stream() as stream:
            await stream.batch()
            async with asyncio.timeout(15):
                assert await daemon.terminate() == 0


async def test_daemon_waiting_for_first_list_can_be_terminated(workspace: Workspace) -> None:
    await workspace.sandbox.stop()
    async with workspace.daemon() as daemon:
        await daemon.start()
        assert await daemon.terminate() == 0


async def test_daemon_starts_on_leftover_socket_after_sigkill(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon() as daemon, workspace.client() as client:
        await daemon.start()
        assert await daemon.kill() == -signal.SIGKILL
        assert workspace.socket.exists()
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        await eventually(lambda: daemon.output.count('"synced"') == 1)
        assert [cluster.name for cluster in await client.list()] == ["alpha"]


@pytest.mark.parametrize(("harm", "words"), [("remove", "was removed"), ("replace", "was replaced by another file")])
async def test_daemon_exits_if_its_socket_is_removed_or_replaced(workspace: Workspace, harm: str, words: str) -> None:
    async with workspace.daemon() as daemon:
        await daemon.start()
        await daemon.wait_for_output('"started"')  # before that, the daemon checks whether the socket it created exists
        workspace.socket.unlink()
        if harm == "replace":
            workspace.socket.write_text("")

        assert await daemon.ended() == 1
        message = f"milo-discoveryd: {workspace.socket} {words}: clients may fail to reach this daemon"
        assert message in daemon.tail(2).splitlines()
        assert workspace.socket.exists() == (harm == "replace")
        assert "Traceback" not in daemon.output


async def test_sighup_and_user_signals_do_not_terminate_a_starting_daemon(workspace: Workspace) -> None:
    async with workspace.daemon() as daemon:
        await daemon.spawn()
        await daemon.during(eventually(lambda: signal.SIGTERM in caught(daemon.pid)))

        async def flood() -> None:
            while True:
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    daemon.signal(number)
                await asyncio.sleep(0.001)

        flooding = asyncio.create_task(flood(), name="signals")
        try:
            await daemon.wait_for_output('"synced"')
        finally:
            flooding.cancel()
        assert await daemon.terminate() == 0


def caught(pid: int) -> set[int]:
    """Return the signals that a process has handlers for."""
    [mask] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    bits = int(mask.split()[1], 16)
    return {number for number in signal.Signals if bits >> (number - 1) & 1}
