"""A program whose lines of output a test waits for."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

LINE_WITHIN_S = 60.0


class Program:
    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = command
        self._environ = {**os.environ, **environ}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=self._environ
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    async def line(self) -> str:
        """Return the next line, with its columns one space apart."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(LINE_WITHIN_S):
            line = await self._process.stdout.readline()
        assert line, f"{self._command[0]} exited with status {await self._process.wait()}"
        return " ".join(line.decode().split())

    async def lines(self, count: int) -> list[str]:
        return [await self.line() for _ in range(count)]

    async def until(self, words: str) -> list[str]:
        """Return the lines up to and including the first one with these words."""
        lines = [await self.line()]
        async with asyncio.timeout(LINE_WITHIN_S):
            while words not in lines[-1]:
                lines.append(await self.line())
        return lines
