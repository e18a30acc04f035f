"""Runs an external command with limits on time and output, and kills its process group afterwards.

asyncio's own pipes are not used: waiting for a process would then wait for every holder of its pipes, including a child
that became a daemon.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

ERRORS_KEPT = 8192
GRACE_S = 1.0  # time for reading the rest of the pipes after the process group has ended

End: TypeAlias = Literal["exited", "timeout", "flood"]


@dataclass(frozen=True, slots=True)
class Outcome:
    end: End
    status: int
    output: bytes
    errors: bytes
    """The last part of stderr."""


async def run(argv: tuple[str, ...], environment: Mapping[str, str], *, timeout_s: float, output_limit: int) -> Outcome:
    """Run the command until it exits or reaches a limit. Raises OSError or ValueError if it cannot be started."""
    flooded = asyncio.Event()
    output, errors = _Head(output_limit, flooded), _Tail(ERRORS_KEPT)
    async with _pipe(output) as output_end, _pipe(errors) as errors_end:
        process = await _spawn(argv, environment, output_end, errors_end)
        for end in (output_end, errors_end):
            end.close()  # this process's copies: the reader sees EOF once the command's copies are closed too
        try:
            ending = await _exited(process, flooded, timeout_s)
        finally:
            _kill_group(process.pid)
            await asyncio.shield(process.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await output.ended.wait()
                await errors.ended.wait()
    assert process.returncode is not None
    return Outcome(ending, process.returncode, bytes(output.kept), bytes(errors.kept))


async def _exited(process: asyncio.subprocess.Process, flooded: asyncio.Event, timeout_s: float) -> End:
    async with asyncio.TaskGroup() as tasks:
        exit_ = tasks.create_task(process.wait(), name="command-exit")
        flood = tasks.create_task(flooded.wait(), name="command-flood")
        done, _ = await asyncio.wait((exit_, flood), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        exit_.cancel()
        flood.cancel()
    if flood in done:
        return "flood"
    return "exited" if exit_ in done else "timeout"


async def _spawn(
    argv: tuple[str, ...], environment: Mapping[str, str], output: "_WriteEnd", errors: "_WriteEnd"
) -> asyncio.subprocess.Process:
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.descriptor,
            stderr=errors.descriptor,
            start_new_session=True,  # a process group that can be killed as a whole, without a terminal to prompt on
        )
    )
    try:
        # Shielded: once the spawn has begun there will be a process, which a canceled caller must still kill.
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process = await spawning
            _kill_group(process.pid)
            await process.wait()
        raise


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # usually, the whole process group has ended
        os.killpg(pid, signal.SIGKILL)


class _WriteEnd:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.descriptor)


@asynccontextmanager
async def _pipe(reader: "_Capture") -> AsyncIterator[_WriteEnd]:
    """Open a pipe that `reader` reads, and yield its write end."""
    read_end, descriptor = os.pipe()
    write_end = _WriteEnd(descriptor)
    try:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: reader, os.fdopen(read_end, "rb", 0))
        try:
            yield write_end
        finally:
            transport.close()
    finally:
        write_end.close()


class _Capture(asyncio.Protocol):
    """A reader that drains a pipe, so that the writer never blocks, and keeps a limited part of the data."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


class _Head(_Capture):
    def __init__(self, limit: int, flooded: asyncio.Event) -> None:
        super().__init__()
        self._limit = limit
        self._flooded = flooded

    def data_received(self, data: bytes) -> None:
        if len(self.kept) + len(data) > self._limit:
            self._flooded.set()
        else:
            self.kept += data


class _Tail(_Capture):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def data_received(self, data: bytes) -> None:
        self.kept += data
        del self.kept[: -self._size]
