"""A process that the bench starts, observes and terminates."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_ENDS_WITHIN_S = 15.0


def _cpu_clock(pid: int) -> int:
    """Return the CPU clock of a process, as clock_getcpuclockid does on Linux."""
    scheduled = 2
    return (~pid << 3) | scheduled


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


async def standard_input() -> asyncio.StreamReader:
    """Return a reader of this process's standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


class ProcessError(Exception):
    """A process exited before it was terminated."""


class Process:
    """A process whose output goes to a file, since an unread pipe would block it."""

    def __init__(self, command: Sequence[str], log: Path, *, environ: dict[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environ
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def cpu_s(self) -> float:
        """User and kernel time of the process, by its CPU clock, since /proc counts hundredths of a second."""
        return time.clock_gettime(_cpu_clock(self.pid))

    @property
    def rss_mib(self) -> float:
        return rss_mib(self.pid)

    @property
    def peak_mib(self) -> float:
        return _status_mib(self.pid, "VmHWM")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def check(self) -> None:
        if not self.is_running:
            last_words = "\n".join(self.output.splitlines()[-20:])
            raise ProcessError(f"{self._process.args} exited with status {self._process.returncode}:\n{last_words}")

    async def wait_for_lines(self, count: int, within_s: float = 120.0, *, beginning: str = "") -> list[str]:
        """Wait until `count` lines have the prefix `beginning`; return all lines that have it."""
        async with asyncio.timeout(within_s):
            while True:
                lines = [line for line in self.output.splitlines(keepends=True) if line.startswith(beginning)]
                if len(lines) >= count and lines[count - 1].endswith("\n"):
                    return lines
                self.check()
                await asyncio.sleep(0.002)

    async def end(self) -> None:
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, _ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        assert self._process.stdin is not None
        self._process.stdin.close()


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return _status_mib(pid, "VmRSS")


def anonymous_mib(pid: int) -> float:
    """Return the memory of a process without that of files, such as its code."""
    return _status_mib(pid, "RssAnon")


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ProcessError(f"process {pid} has no {field}")
