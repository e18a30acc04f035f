"""Output of the daemon and of commands that cannot be written, and signals during their start."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from milo_discovery import EventType
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import ENDED_WITHIN_S, STARTED_WITHIN_S
from tests.support.eventually import LIMIT_S, eventually

SECURITY = Path(__file__).parents[3] / "docs" / "security.md"
CHANGES = 1_500
"""Each change is a log line of over 100 bytes at level debug: together more than twice what a pipe holds."""


@asynccontextmanager
async def running(workspace: Workspace, stderr: int) -> AsyncIterator[asyncio.subprocess.Process]:
    workspace.daemon(log={"level": "debug", "format": "json"})  # write the configuration
    command = (sys.executable, "-m", "milo_discoveryd", "run", "--config", str(workspace.directory / "config.yaml"))
    process = await asyncio.create_subprocess_exec(*command, stdout=stderr, stderr=stderr)
    try:
        async with asyncio.timeout(STARTED_WITHIN_S):
            await eventually(workspace.socket.exists, within_s=STARTED_WITHIN_S)
        yield process
        assert process.returncode is None, "the daemon has exited"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(ENDED_WITHIN_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("output", ["full disk", "closed pipe", "stalled pipe"])
async def test_subscribers_are_served_while_the_log_cannot_be_written(workspace: Workspace, output: str) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    reading, writing = os.pipe()
    if output == "full disk":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    if output == "closed pipe":
        os.close(reading)
    try:
        async with running(workspace, writing), workspace.client() as client, client.watch() as watch:
            await watch.synced()
            for number in range(CHANGES):
                workspace.sandbox.projects.label("alpha", {"number": str(number)})
                if number % 50 == 0:
                    await asyncio.sleep(0)  # the sandbox responds in this event loop
            async with asyncio.timeout(LIMIT_S):
                async for event in watch:
                    assert event.type in (EventType.ENGAGED, EventType.UPDATED)
                    if event.cluster.labels.get("number") == str(CHANGES - 1):
                        break
    finally:
        os.close(writing)
        if output != "closed pipe":
            os.close(reading)


async def test_moved_audit_file_is_written_until_sighup(workspace: Workspace) -> None:
    """Tests what docs/security.md says about moving the audit file."""
    assert "After moving it, send `SIGHUP`: until then" in " ".join(SECURITY.read_text().split())
    path, moved = workspace.directory / "audit", workspace.directory / "audit.1"
    for name in ("alpha", "beta", "gamma"):
        workspace.sandbox.projects.create(name, ready=True)
    issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}

    def issued(file: Path) -> list[str]:
        lines = map(json.loads, file.read_text().splitlines())
        return [line["cluster"] for line in lines if line["event"] == "kubeconfig issued"]

    async with workspace.daemon(audit={"file": str(path)}, kubeconfigs={"issuers": [issuer]}) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        async with workspace.client() as client:
            await client.issue_kubeconfig("alpha")
            path.rename(moved)
            await client.issue_kubeconfig("beta")
            await daemon.during(eventually(lambda: issued(moved) == ["alpha", "beta"]))
            assert not path.exists()
            daemon.signal(signal.SIGHUP)
            await daemon.during(eventually(path.exists))
            await client.issue_kubeconfig("gamma")
            await daemon.during(eventually(lambda: issued(path) == ["gamma"]))
    assert issued(moved) == ["alpha", "beta"]


def catches_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


async def test_sigterm_during_startup_terminates_the_daemon(workspace: Workspace) -> None:
    """As PID 1 of a container, the daemon would ignore a signal without a handler."""
    workspace.daemon()
    command = (sys.executable, "-m", "milo_discoveryd", "run", "--config", str(workspace.directory / "config.yaml"))
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await eventually(lambda: catches_sigterm(process.pid), within_s=STARTED_WITHIN_S)
        assert not workspace.socket.exists(), "the daemon has already started"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(ENDED_WITHIN_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("lines", range(1, 9))
async def test_check_exits_without_a_traceback_when_its_stdout_pipe_closes(workspace: Workspace, lines: int) -> None:
    workspace.daemon()  # writes the configuration
    command = (sys.executable, "-m", "milo_discoveryd", "check", "--config", str(workspace.directory / "config.yaml"))
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(*command, stdout=writing, stderr=asyncio.subprocess.PIPE)
    os.close(writing)
    assert process.stderr is not None
    async with asyncio.timeout(STARTED_WITHIN_S):
        with os.fdopen(reading) as output:
            for _ in range(lines):
                assert await asyncio.to_thread(output.readline)
        assert await process.stderr.read() == b""
        await process.wait()


@pytest.mark.parametrize("command", ["milo-discoveryd check", "milo-discoveryd --help", "milo-discovery --help"])
async def test_full_disk_on_stdout_prints_a_one_line_error(workspace: Workspace, command: str) -> None:
    workspace.daemon()  # writes the configuration
    program, *words = command.split()
    environ = {**os.environ, "MILO_DISCOVERYD_CONFIG": str(workspace.directory / "config.yaml")}
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(program), *words, stdout=full, stderr=asyncio.subprocess.PIPE, env=environ
    )
    os.close(full)
    _, errors = await process.communicate()
    assert errors.decode() == f"{program}: cannot write to stdout: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.parametrize("program", ["milo_discovery_cli", "milo_discoveryd"])
async def test_interrupt_during_the_imports_prints_nothing(program: str, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program, "--help"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(ENDED_WITHIN_S):
        assert await process.communicate() == (b"", b"")
    assert process.returncode == 130
