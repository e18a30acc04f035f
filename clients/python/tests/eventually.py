"""Waiting for a state that nothing announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], bool]) -> None:
    """Let everybody else go on until it holds; the test's own timeout is the limit."""
    while not holds():  # noqa: ASYNC110  (there is no event to wait for, that is the point)
        await asyncio.sleep(0)
