"""Log lines: format, level, and output that cannot be written."""

import asyncio
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from milo_discoveryd.logger import NAME, log
from milo_discoveryd.telemetry.log_writer import QUEUE_LIMIT, LogWriter
from milo_discoveryd.telemetry.logging import Logging, configure
from tests.end_to_end.process.conftest import Workspace, directory, workspace

__all__ = ["directory", "workspace"]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(NAME)
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Output:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.logging: Logging | None = None

    def configure(self, level: str = "info", form: str = "auto") -> Logging:
        with self._path.open("w") as stream:
            self.logging = configure(level, form, stream)
        return self.logging

    def text(self) -> str:
        assert self.logging is not None
        self.logging.flush()
        return self._path.read_text()

    def events(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.text().splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "log")


def test_json_log_line_has_timestamp_level_event_and_fields(output: Output) -> None:
    output.configure()
    log.info("engaged", cluster="alpha\nbeta")
    [line] = output.text().splitlines()
    found = json.loads(line)
    assert (found["message"], found["level"], found["cluster"]) == ("engaged", "info", "alpha\nbeta")
    assert found["timestamp"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "console"])
def test_control_characters_in_values_are_escaped(output: Output, form: str) -> None:
    output.configure(form=form)
    chosen = "a\x1b[2J\u202e\x9b\u2028é"
    log.info("refused", cluster=chosen, caller={"user": chosen})
    logging.getLogger("library").warning(chosen)
    lines = output.text().split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("form", ["json", "console"])
def test_logged_exception_has_its_message_and_no_local_variables(output: Output, form: str) -> None:
    output.configure(form=form)
    canary = "s3cret"
    try:
        _raise(canary)
    except RuntimeError:
        log.exception("call failed")
    text = output.text()
    assert re.search(r"RuntimeError: \w+ is broken", text)
    assert canary not in text


def _raise(token: str) -> None:
    raise RuntimeError(f"something of {len(token)} characters is broken".replace(" ", "_").replace("_is_", " is "))


def test_log_records_of_libraries_are_formatted_as_json(output: Output) -> None:
    output.configure(form="json")
    logging.getLogger("library").warning("%s is odd", "this")
    found = json.loads(output.text())
    assert (found["message"], found["level"]) == ("this is odd", "warning")


def test_log_record_with_mismatched_arguments_is_dropped_and_counted(output: Output) -> None:
    logging_ = output.configure(form="json")
    logging.getLogger("library").warning("%d", "this")
    log.info("next")
    assert output.events() == ["next", "log lines dropped"]
    assert logging_.dropped == 1


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_log_lines_below_the_level_are_omitted(output: Output, level: str, expected: list[str]) -> None:
    output.configure(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert output.events() == expected


def test_log_level_toggles_to_debug_and_back(output: Output) -> None:
    logging_ = output.configure("warning")
    log.debug("before")
    logging_.toggle()
    log.debug("meanwhile")
    logging_.toggle()
    log.debug("after")
    assert output.events() == ["log level changed", "meanwhile", "log level changed"]


def test_log_level_debug_is_unchanged_by_a_toggle(output: Output) -> None:
    logging_ = output.configure("debug")
    logging_.toggle()
    assert logging_.current == "debug"


async def test_sigusr1_toggles_the_log_level_of_a_running_daemon(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(connectivity={"interval": "off"}) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        daemon.signal(signal.SIGUSR1)
        await daemon.wait_for_output('"is_now": "debug"')
        workspace.sandbox.projects.label("alpha", {"env": "prod"})
        await daemon.wait_for_output('"message": "updated"')
        daemon.signal(signal.SIGUSR1)
        await daemon.wait_for_output('"is_now": "info"')
        assert await daemon.terminate() == 0


async def test_sigusr2_without_held_removals_is_logged(workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(connectivity={"interval": "off"}) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"synced"')
        daemon.signal(signal.SIGUSR2)
        await daemon.wait_for_output('"no removals held"')
        assert await daemon.terminate() == 0


# --- output that cannot be written ---


@pytest.fixture
def writer() -> Iterator[tuple[LogWriter, int]]:
    """Return a writer to a pipe, which the test may or may not read."""
    reading, writing = os.pipe()
    made = LogWriter(writing)
    made.setFormatter(logging.Formatter("%(message)s"))
    yield made, reading
    with suppress(OSError):  # the test may have closed it
        os.close(reading)
    made.flush()
    os.close(writing)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, message, None, None)


def test_full_disk_drops_log_lines_and_reports_their_number_afterwards(tmp_path: Path) -> None:
    target = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    descriptor = os.dup(full)
    writer = LogWriter(descriptor)
    writer.setFormatter(logging.Formatter("%(message)s"))
    for number in range(3):
        writer.handle(record(str(number)))
    writer.flush()
    assert writer.dropped == 3
    os.dup2(target, descriptor)  # the disk has space again
    writer.handle(record("next"))
    writer.flush()
    assert (tmp_path / "log").read_text().splitlines() == ["next", "log lines dropped"]
    for fd in (target, full, descriptor):
        os.close(fd)


def test_closed_pipe_drops_log_lines(writer: tuple[LogWriter, int]) -> None:
    made, reading = writer
    os.close(reading)
    made.handle(record("nobody reads this"))
    made.flush()
    assert made.dropped == 1


def test_stalled_log_pipe_blocks_no_caller_and_bounds_the_queue(writer: tuple[LogWriter, int]) -> None:
    made, reading = writer
    line = "x" * 65_535
    logged = threading.Event()

    def flood() -> None:
        for _ in range(3 * QUEUE_LIMIT // len(line)):
            made.handle(record(line))
        logged.set()

    threading.Thread(target=flood, daemon=True).start()
    assert logged.wait(60), "logging blocked on the reader"
    dropped = made.dropped
    assert dropped >= 2 * QUEUE_LIMIT // (len(line) + 1) - 2
    seen = b""
    while not seen.endswith(b"log lines dropped\n"):
        seen += os.read(reading, 1 << 20)
    assert seen.count(line.encode()) == 3 * QUEUE_LIMIT // len(line) - dropped


def test_partially_written_log_line_does_not_corrupt_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(target)
    writer.setFormatter(logging.Formatter("%(message)s"))
    write, space = os.write, [4, 0]

    def short_write(descriptor: int, data: bytes) -> int:
        if not space:
            return write(descriptor, data)
        if (room := space.pop(0)) == 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:room])

    monkeypatch.setattr(os, "write", short_write)
    writer.handle(record("first line"))
    writer.flush()
    writer.handle(record("second line"))
    writer.flush()
    assert (tmp_path / "log").read_text().splitlines() == ["firs", "second line", "log lines dropped"]
    os.close(target)


def test_unexpected_error_of_a_callback_is_logged_with_its_stack_and_ends_nothing(output: Output) -> None:
    def failing_callback() -> None:
        raise ZeroDivisionError

    async def continues() -> str:
        asyncio.get_running_loop().call_soon(failing_callback)
        await asyncio.sleep(0.01)
        return "continued"

    output.configure()
    assert asyncio.run(continues()) == "continued"
    assert "failing_callback" in output.text()
    assert "ZeroDivisionError" in output.text()
