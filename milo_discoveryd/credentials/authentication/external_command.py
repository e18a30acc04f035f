"""Runs somebody else's short command, bounded in time and output, and leaves nothing of it behind.

asyncio's own pipes are not used: with them, waiting for a process waits for all who hold its pipes, and so for a child
that made itself a daemon, however dead the process itself is.
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
GRACE_S = 1.0  # for what is still in the pipes when the process and its group are gone

End: TypeAlias = Literal["exited", "timeout", "flood"]


@dataclass(frozen=True)
class Outcome:
    end: End
    status: int
    output: bytes
    errors: bytes
    """The end of it."""


async def run(argv: tuple[str, ...], environment: Mapping[str, str], *, timeout_s: float, output_limit: int) -> Outcome:
    """Raises OSError when the command cannot be started."""
    flooded = asyncio.Event()
    output, errors = _Head(output_limit, flooded), _Tail(ERRORS_KEPT)
    async with _pipe(output) as output_end, _pipe(errors) as errors_end:
        process = await _spawn(argv, environment, output_end, errors_end)
        for end in (output_end, errors_end):
            end.close()  # ours: the reader sees the end when the last of theirs is closed
        try:
            end_of_it = await _exited(process, flooded, timeout_s)
        finally:
            _kill_group(process.pid)
            await asyncio.shield(process.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await output.ended.wait()
                await errors.ended.wait()
    assert process.returncode is not None
    return Outcome(end_of_it, process.returncode, bytes(output.kept), bytes(errors.kept))


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
            start_new_session=True,  # a group of its own, to be killed whole, and no terminal to prompt on
        )
    )
    try:
        # It takes moments, and once begun there is a process to be ended: a cancelled caller still sees to that.
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process = await spawning
            _kill_group(process.pid)
            await process.wait()
        raise


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it has ended, which is the usual case
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
    """A pipe whose other end `reader` reads."""
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
    """Reads all there is, or the writer would block, and keeps some of it."""

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
