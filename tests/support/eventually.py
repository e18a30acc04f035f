"""Waiting for a state: the only place where tests let time pass."""

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], object], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
