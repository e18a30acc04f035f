"""Tests of server processes: signals reach only the process that was started."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.end_to_end.real import process
from tests.end_to_end.real.process import Process, ProcessError

SLEEP = ["/bin/sleep", "600"]


def started(tmp_path: Path, argv: list[str] = SLEEP) -> Process:
    return process.start("sleeper", argv, log=tmp_path / "log", tied=True)


async def test_process_runs_until_it_is_stopped(tmp_path: Path) -> None:
    sleeper = started(tmp_path)
    assert sleeper.running()

    await sleeper.end(signal.SIGTERM)

    assert not sleeper.running()


async def test_process_can_be_ended_twice(tmp_path: Path) -> None:
    sleeper = started(tmp_path)
    await sleeper.end(signal.SIGKILL)
    await sleeper.end(signal.SIGKILL)


async def test_reused_process_id_is_not_signalled(tmp_path: Path) -> None:
    sleeper = started(tmp_path)
    mistaken = msgspec.structs.replace(sleeper, born=sleeper.born - 1)

    await mistaken.end(signal.SIGKILL)

    assert not mistaken.running()
    assert sleeper.running()
    await sleeper.end(signal.SIGKILL)


async def test_process_that_ignores_sigterm_is_named(tmp_path: Path) -> None:
    deaf = started(tmp_path, ["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do read -r _ </dev/zero; done"])
    while "deaf" not in deaf.last_words():
        os.sched_yield()

    with pytest.raises(ProcessError, match=r"sleeper .* did not end 0\.1 s after SIGTERM"):
        await deaf.end(signal.SIGTERM, within_s=0.1)

    await deaf.end(signal.SIGKILL)


async def test_process_output_is_kept_for_its_error(tmp_path: Path) -> None:
    talker = started(tmp_path, ["/bin/sh", "-c", "echo one; echo two >&2; exec sleep 600"])
    while "two" not in talker.last_words():
        os.sched_yield()

    assert talker.last_words(lines=1) == "two"

    await talker.end(signal.SIGKILL)


def test_process_with_missing_command_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        process.start("nothing", [str(tmp_path / "nothing")], log=tmp_path / "log", tied=False)
