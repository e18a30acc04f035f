"""Polling for a state."""

import asyncio
from collections.abc import Callable

LIMIT_S = 60.0
"""Timeout of a wait for a state: far longer than any wait takes on a busy machine, so that only a hang exceeds it."""


async def eventually(holds: Callable[[], object], *, within_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - no event reports the state
            await asyncio.sleep(0.005)
