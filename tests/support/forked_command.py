"""Commands in forks of a process that has imported the commands, which saves most of their start-up time."""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import BufferedWriter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO
from unittest.mock import patch

import pytest
from execnet.gateway_base import ThreadExecModel

COLLECTED = "COLLECTED_TESTS"
_MODULES = {"milo-discovery": "milo_discovery_cli.command_line", "milo-discoveryd": "milo_discoveryd.cli"}

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    ["pytest", "milo_discovery.client", "milo_discovery_cli.queries", "milo_discovery_cli.json_output",
     "milo_discovery_cli.kubeconfig", "milo_discoveryd.app", "milo_discoveryd.check", "milo_sandbox.command", __name__]
)  # fmt: skip


class ForkedProcess:
    """A running command, with the part of `asyncio.subprocess.Process` that tests use."""

    def __init__(self, process: BaseProcess, stdout: asyncio.StreamReader) -> None:
        self.stdout = stdout
        assert process.pid is not None
        self.pid = process.pid
        self._process = process
        # Not in a thread: if two threads read the exit status, one of them gets none, and reports 255.
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._ended.set()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._process.exitcode is not None
        return self._process.exitcode


async def fork(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], *, longest_line: int
) -> ForkedProcess:
    """Start a command, whose stdout and stderr are one stream."""
    reading, writing = _forking.Pipe(duplex=False)
    process = _started(program, arguments, dict(environment), None, writing, writing)
    stdout = asyncio.StreamReader(limit=longest_line)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdout), _file(reading, "rb", buffering=0)
    )
    return ForkedProcess(process, stdout)


async def forked(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path | None = None
) -> tuple[int, str, str]:
    """Run a command; return its exit status, stdout and stderr."""
    with tempfile.TemporaryDirectory(prefix="milo-") as name:
        files = [Path(name) / "out", Path(name) / "err"]
        process = _started(program, arguments, dict(environment), directory, *files)
        try:
            await asyncio.to_thread(process.join)
            assert process.exitcode is not None
            out, err = (file.read_bytes().decode() for file in files)
            return process.exitcode, out, err
        finally:
            process.kill()
            process.join()
            process.close()


class ForkedPopen:
    """A running `python -c PROGRAM`, with the part of `subprocess.Popen` that MiloSandbox and execnet use."""

    def __init__(
        self, command: Sequence[str], *, stdout: BufferedWriter | int, env: Mapping[str, str] = os.environ, **_: int
    ) -> None:
        program, *arguments = command[command.index("-c") + 1 :]
        stdin, ours = _forking.Pipe(duplex=False)
        self.stdin = _file(ours, "wb")
        if isinstance(stdout, int):
            theirs, output = _forking.Pipe(duplex=False)
            self.stdout = _file(theirs, "rb")
            outputs: tuple[Path | Connection, Path | None] = (output, None)
        else:
            outputs = (Path(stdout.name), Path(stdout.name))
        self._process = _started(program, arguments, dict(env), None, *outputs, stdin)
        self.kill, self.terminate = self._process.kill, self._process.terminate

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)


def _file(end: Connection, mode: str, *, buffering: int = -1) -> IO[bytes]:
    with end:
        return os.fdopen(os.dup(end.fileno()), mode, buffering)


def pytest_configure(config: pytest.Config) -> None:
    """Fork the processes of `MiloSandbox`, which start at each of its tests, and the workers of pytest-xdist.

    Programs that tests start, and tests that tests run, start processes as users' do.
    """
    from milo_discovery.testing import milo_sandbox  # noqa: PLC0415 - pytest rewrites its plugin's package first

    forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedPopen})
    milo_sandbox.subprocess = forking  # type: ignore[assignment]
    if config.getoption("numprocesses"):
        ThreadExecModel.subprocess = forking
        os.environ[COLLECTED] = json.dumps(config.invocation_params.args)
        _forking.set_forkserver_preload(["tests.support.collection"])


def _started(*arguments: object) -> BaseProcess:
    process = _forking.Process(target=_run, args=arguments)
    with patch.dict(os.environ, GRPC_VERBOSITY="NONE"):  # read by gRPC, which is imported before the command runs
        process.start()
    for each in arguments:
        if isinstance(each, Connection):
            each.close()  # the process has it
    return process


def _run(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None,
    out: Path | Connection,
    err: Path | Connection | None,
    stdin: Connection | None = None,
) -> None:
    if directory is not None:
        os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, to in ((0, stdin), (1, out), (2, err)):
        if to is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(to, flags, 0o600) if isinstance(to, Path) else to.fileno(), descriptor)
    if stdin is not None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (stdin, out, err):
        if isinstance(stream, Connection) and not stream.closed:
            stream.close()
    sys.argv = [str(Path(sys.executable).with_name(program)), *arguments]
    try:
        if program in _MODULES:
            import_module(_MODULES[program]).main()
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        logging.shutdown()  # a normal process does so at exit, which writes the last log lines
