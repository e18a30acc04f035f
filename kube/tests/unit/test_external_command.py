"""External commands: limits, and cleanup after cancellation at any point."""

import asyncio
import os
from pathlib import Path

import pytest

from milo_kube.external_command import Outcome, run

LIMITS = {"timeout_s": 20, "output_limit": 1000}


async def sh(script: str, **differing: float) -> Outcome:
    return await run(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}, **(LIMITS | differing))  # type: ignore[arg-type]


async def test_external_command_returns_stdout_stderr_and_exit_status() -> None:
    assert await sh("echo out; echo err >&2; exit 7") == Outcome("exited", 7, b"out\n", b"err\n")


async def test_killed_external_command_reports_its_signal() -> None:
    assert (await sh("kill -TERM $$")).status == -15


async def test_external_command_is_killed_when_it_exceeds_the_output_limit() -> None:
    assert (await sh("while :; do echo flood; done")).end == "flood"
    assert await sh("printf %01000d 0") == Outcome("exited", 0, b"0" * 1000, b"")


async def test_external_command_is_killed_when_it_exceeds_the_time_limit() -> None:
    assert (await sh("echo begun; sleep 1000", timeout_s=0.2)).end == "timeout"


async def test_missing_external_command_raises_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        await run(("/no/such/command",), {}, timeout_s=20, output_limit=1000)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("steps", range(12))
async def test_external_command_canceled_at_any_await_leaves_no_process_or_open_file(
    tmp_path: Path, steps: int
) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    descriptors = open_files()
    running = asyncio.create_task(sh(f"exec 3>{held}; sleep 1000 & sleep 1000"))
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    os.set_blocking(reader, True)
    # EOF comes when the last process with the open file ends.
    assert await asyncio.to_thread(os.read, reader, 1) == b""
    assert open_files() <= descriptors + 2  # the reader thread and asyncio's child watcher
    os.close(reader)
