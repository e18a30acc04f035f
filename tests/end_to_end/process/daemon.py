"""A daemon process with its arguments, files, signals and log output."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.eventually import eventually
from tests.support.forked_command import ForkedProcess, fork

STARTED_WITHIN_S = 90.0
ENDED_WITHIN_S = 60.0
_LONGEST_LINE = 1 << 20
_LINES_KEPT = 2000
_LOOK_EVERY_S = 0.01
# Prefixes of environment variables that configure a daemon. Those of the test itself are not passed to the daemon.
_FOREIGN = ("MILO_DISCOVERY", "KUBERNETES_SERVICE_")


T = TypeVar("T")


class DaemonEndedError(Exception):
    """The daemon exited unexpectedly."""


class DaemonProcess:
    """A daemon under test, which may be restarted: the output of all its runs is kept together."""

    def __init__(
        self,
        address: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        descriptors: int | None = None,
        cgroup: Path | None = None,
        is_forked: bool = False,
    ) -> None:
        """Prepare a daemon. `address` is that of its listener in `arguments`, `descriptors` its limit of open files,
        `cgroup` the file with the processes of its cgroup.

        `is_forked`: each process is forked from one that has imported the daemon, which saves most of its start-up
        time.
        """
        self.address = address
        steps = [] if descriptors is None else [f"ulimit -n {descriptors}"]
        steps += [] if cgroup is None else [f"echo $$ > {cgroup}"]
        limited = ("sh", "-c", " && ".join((*steps, 'exec "$@"')), "sh") if steps else ()
        self._command = (*limited, sys.executable, "-m", "milo_discoveryd", "run", *arguments)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self._environ = clean | dict(environ or {})
        self._arguments = ("run", *arguments) if is_forked else None
        self._process: Process | ForkedProcess | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def output(self) -> str:
        """The output of the daemon over all its runs; only the last `_LINES_KEPT` lines are kept."""
        return "\n".join(self._lines)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(list(self._lines)[-lines:])

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the log lines of an event."""
        decoded = [json.loads(line) for line in self._lines if line.startswith("{")]
        return [line for line in decoded if line.get("message") == name]

    async def start(self) -> None:
        """Start the daemon, and return once it accepts connections.

        Raises DaemonEndedError if the daemon exits first.
        """
        await self.spawn()
        async with asyncio.timeout(STARTED_WITHIN_S):
            await self.during(self._listens())

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`.

        Raises DaemonEndedError if the daemon exits first.
        """
        working = asyncio.create_task(work, name="work while the daemon runs")
        ending = asyncio.create_task(self._wait(), name="exit of the daemon")
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            words = "; ".join(line for line in self._lines if not line.startswith("{"))
            raise DaemonEndedError(f"the daemon exited with status {ending.result()}: {words or 'no output'}")
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.wait((working, ending))

    async def spawn(self) -> None:
        """Start the daemon, without waiting until it listens."""
        assert not self.is_running
        if self._arguments is not None:
            self._process = await fork("milo-discoveryd", self._arguments, self._environ, longest_line=_LONGEST_LINE)
        else:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT, env=self._environ,
                limit=_LONGEST_LINE,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout), name="reader of the daemon's output")

    async def ended(self) -> int:
        """Wait for the exit, and for the end of the output; return the exit status."""
        async with asyncio.timeout(ENDED_WITHIN_S):
            return await self._wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return await self.ended()

    async def wait_for_output(self, words: str) -> None:
        """Wait until a line of the output contains `words`."""
        await self.during(eventually(lambda: words in self.output))

    async def _listens(self) -> None:
        while True:
            try:
                _, writer = await self._connect()
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                writer.close()
                return

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.address.startswith("unix://"):
            return await asyncio.open_unix_connection(self.address.removeprefix("unix://"))
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port))

    async def _wait(self) -> int:
        assert self._process is not None
        assert self._reading is not None
        await asyncio.wait((self._reading,))
        return await self._process.wait()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self._lines.append(line.decode(errors="replace").rstrip("\n"))
