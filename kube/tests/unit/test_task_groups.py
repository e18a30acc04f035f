import asyncio

import pytest

from milo_kube import task_groups
from milo_kube.task_groups import in_own_task


async def test_loop_of_attempts_ends_although_its_attempt_loses_the_cancellation() -> None:
    """Found by a stranger: NATS and its publisher were stopped together, and the publisher went on."""
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise OSError("lost") from None

    async def retrying() -> None:
        while True:
            try:
                await in_own_task(attempt())
            except OSError:
                await asyncio.sleep(0)

    task = asyncio.create_task(retrying())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts == 1


async def test_attempt_that_ignores_a_cancellation_is_canceled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_groups, "_CANCEL_AGAIN_S", 0.01)
    canceled = 0

    async def attempt() -> None:
        nonlocal canceled
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                canceled += 1
                if canceled > 1:
                    raise

    task = asyncio.create_task(in_own_task(attempt()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert canceled == 2


async def test_attempt_passes_on_its_result_and_its_error() -> None:
    async def attempt(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 1

    assert await in_own_task(attempt(None)) == 1
    with pytest.raises(OSError, match=r"^lost$"):
        await in_own_task(attempt(OSError("lost")))
