"""Waiting for a state: the only place where tests let time pass."""

import asyncio
from collections.abc import Callable

LIMIT_S = 60.0
"""How long a wait for a state may take: far more than any needs on a busy machine, so that only a hang ends it."""


async def eventually(holds: Callable[[], object], *, within_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
