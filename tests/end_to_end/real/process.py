"""A server process that outlives the command that started it.

It is identified by its id and start time, so that a reused id is never signaled: signals go through a pidfd, and
the start time is compared while the pidfd holds the process.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

_STARTED_WITHIN_S = 120
_LOOK_EVERY_S = 0.05
LONGEST_END_S = 90  # by default, an API server serves open watches for 60 s after SIGTERM


class ProcessError(Exception):
    """A server process failed, or a command for it."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A server process, running or exited."""

    name: str
    pid: int
    born: int  # clock ticks since boot
    log: str

    def running(self) -> bool:
        return birth_of(self.pid) == self.born

    async def end(self, how: signal.Signals, *, within_s: float = LONGEST_END_S) -> None:
        """Send a signal and wait until the process has exited; return at once if it had exited before."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.running():
                return
            signal.pidfd_send_signal(handle, how)
            async with asyncio.timeout(within_s):
                await _readable(handle)
        except TimeoutError as error:
            raise ProcessError(f"{self.name} (pid {self.pid}) still runs {within_s:g} s after {how.name}") from error
        finally:
            os.close(handle)
            _reap(self.pid)

    async def until(self, failing: str, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a state of the starting process; `failing` is the message if it does not come."""
        try:
            async with asyncio.timeout(_STARTED_WITHIN_S):
                while not await holds():
                    if not self.running():
                        raise ProcessError(f"{self.name} exited during its start:\n{self.last_words()}")
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError as error:
            raise ProcessError(f"{self.name} {failing} after {_STARTED_WITHIN_S} s:\n{self.last_words()}") from error

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def last_words(self, lines: int = 15) -> str:
        return "\n".join(Path(self.log).read_text(errors="replace").splitlines()[-lines:])


def start(name: str, argv: list[str], *, log: Path, tied: bool) -> Process:
    """Start a server in its own session; a tied one is killed when the thread that started it ends."""
    if tied and (setpriv := shutil.which("setpriv")):
        argv = [setpriv, "--pdeathsig", "KILL", "--", *argv]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    born = birth_of(pid)
    if born is None:
        raise ProcessError(f"{name} exited at once: {log.read_text(errors='replace').strip()}")
    return Process(name=name, pid=pid, born=born, log=str(log))


def birth_of(pid: int) -> int | None:
    """Return the start time of a process, or None without one (a zombie counts as exited)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may contain spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by another command, so its parent reaps it


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
