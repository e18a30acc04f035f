"""A progress bar on a terminal, for what takes longer than a second."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

_BEGIN_S = 1.0
_INTERVAL_S = 0.1
_WIDTH = 30
_CLEAR = "\r\x1b[K"


def bar(done: int, failed: int, total: int, width: int) -> str:
    """Return the bar in at most `width` characters."""
    filled = _WIDTH * done // total if total else _WIDTH
    noun = "cluster" if total == 1 else "clusters"
    missing = f", {failed} did not answer" if failed else ""
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done} of {total} {noun}{missing}"[:width]


class Progress:
    """Draws how many clusters have answered on stderr, if that is a terminal that can erase, until it is closed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.done = 0
        self.failed = 0
        self._drawing: asyncio.Task[None] | None = None
        self._is_drawn = False

    async def __aenter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._drawing = asyncio.create_task(self._draw(), name="progress bar")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing, and erase the bar: other output follows."""
        if self._drawing is not None:
            self._drawing.cancel()
            self._drawing = None
        if self._is_drawn:
            self._is_drawn = False
            self._write(_CLEAR)

    async def _draw(self) -> None:
        await asyncio.sleep(_BEGIN_S)
        while True:
            width = shutil.get_terminal_size().columns - 1
            self._is_drawn = True
            self._write(_CLEAR + bar(self.done, self.failed, self._total, width))
            await asyncio.sleep(_INTERVAL_S)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone: the command ends by another error
            sys.stderr.write(text)
            sys.stderr.flush()
