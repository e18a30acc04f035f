"""Large batches of many streams."""

import asyncio

import pytest

from milo_discoveryd.server.calls.grpc_errors import StalledError
from milo_discoveryd.server.calls.large_batches import LARGE_BYTES, LargeBatches
from tests.support.eventually import eventually


async def send(batches: LargeBatches, until: asyncio.Event, size: int = LARGE_BYTES) -> None:
    async with batches.room(size):
        await until.wait()


async def test_large_batches_beyond_the_limit_wait_until_others_are_sent() -> None:
    batches, sent = LargeBatches(2 * LARGE_BYTES), [asyncio.Event() for _ in range(5)]
    sending = [asyncio.create_task(send(batches, until)) for until in sent]
    await eventually(lambda: len(batches) == 2)
    for until in sent:
        await asyncio.sleep(0)
        assert len(batches) <= 2
        until.set()
    await asyncio.gather(*sending)
    assert not len(batches)


async def test_small_batches_do_not_wait() -> None:
    batches, never = LargeBatches(LARGE_BYTES), asyncio.Event()
    sending = [asyncio.create_task(send(batches, never)) for _ in range(2)]
    await eventually(lambda: len(batches) == 1)
    async with batches.room(LARGE_BYTES - 1):
        pass
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)
    assert not len(batches)


async def test_stream_that_does_not_read_is_ended_if_another_waits() -> None:
    batches, never = LargeBatches(LARGE_BYTES, patience_s=0.01), asyncio.Event()
    stalled = asyncio.create_task(send(batches, never))
    await eventually(lambda: len(batches) == 1)
    async with batches.room(2 * LARGE_BYTES):
        with pytest.raises(StalledError):
            await stalled


async def test_timeout_of_the_stream_itself_is_raised_unchanged() -> None:
    batches = LargeBatches()
    with pytest.raises(TimeoutError):
        async with batches.room(LARGE_BYTES), asyncio.timeout(0):
            await asyncio.Event().wait()
