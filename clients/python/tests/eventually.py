"""Polling for conditions in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(predicate: Callable[[], bool]) -> None:
    """Yield to the event loop until the predicate is true. The test's timeout is the limit."""
    while not predicate():  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(0)
