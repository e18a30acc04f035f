"""Large batches of many streams."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from random import Random
from types import SimpleNamespace

import pytest

from milo_discoveryd.server.calls.grpc_errors import StalledError
from milo_discoveryd.server.calls.large_batches import LARGE_BYTES, LargeBatches
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.support.eventually import eventually


async def send(batches: LargeBatches, until: asyncio.Event, size: int = LARGE_BYTES, caller: str = "a caller") -> None:
    async with batches.room(size, caller):
        await until.wait()


async def test_large_batches_beyond_the_limit_wait_until_others_are_sent() -> None:
    batches, sent = LargeBatches(4 * LARGE_BYTES), [asyncio.Event() for _ in range(5)]
    sending = [asyncio.create_task(send(batches, until)) for until in sent]
    await eventually(lambda: len(batches) == 2)
    for until in sent:
        await asyncio.sleep(0)
        assert len(batches) <= 2
        until.set()
    await asyncio.gather(*sending)
    assert not len(batches)


async def test_large_batches_share_their_memory_with_the_requests_of_open_streams() -> None:
    streams, never = SimpleNamespace(held_bytes=0), asyncio.Event()
    batches = LargeBatches(32 * LARGE_BYTES, streams=streams)
    for held_bytes, count in ((0, 16), (48 * LARGE_BYTES, 8), (60 * LARGE_BYTES, 6), (1000 * LARGE_BYTES, 5)):
        streams.held_bytes = held_bytes
        sending = [asyncio.create_task(send(batches, never)) for _ in range(20)]
        await eventually(lambda count=count: len(batches) == count)  # type: ignore[misc]
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)


async def test_small_batches_do_not_wait() -> None:
    batches, never = LargeBatches(LARGE_BYTES), asyncio.Event()
    sending = [asyncio.create_task(send(batches, never)) for _ in range(2)]
    await eventually(lambda: len(batches) == 1)
    async with batches.room(LARGE_BYTES - 1, "a caller"):
        pass
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)
    assert not len(batches)


async def test_caller_with_many_streams_leaves_room_to_others() -> None:
    batches, never = LargeBatches(8 * LARGE_BYTES), asyncio.Event()
    sending = [asyncio.create_task(send(batches, never, caller="crowd")) for _ in range(20)]
    await eventually(lambda: len(batches) == 4)
    for caller in ("one", "other"):
        async with asyncio.timeout(0), batches.room(2 * LARGE_BYTES, caller):
            assert len(batches) == 5
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)
    assert not len(batches)


async def test_caller_that_sends_the_least_is_next() -> None:
    batches, order, ends, never = LargeBatches(4 * LARGE_BYTES), list[str](), asyncio.Event(), asyncio.Event()

    async def note(caller: str, until: asyncio.Event) -> None:
        async with batches.room(2 * LARGE_BYTES, caller):
            order.append(caller)
            await until.wait()

    streams = (("one", ends), ("other", never), ("other", never), ("last", never))
    sending = [asyncio.create_task(note(*stream)) for stream in streams]
    await eventually(lambda: order == ["one", "other"])
    ends.set()
    await eventually(lambda: len(order) == 3)
    assert order == ["one", "other", "last"]
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)


async def test_slow_stream_is_not_ended_for_a_caller_that_sends_more() -> None:
    batches, never = LargeBatches(8 * LARGE_BYTES, patience_s=0.01), asyncio.Event()
    slow = asyncio.create_task(send(batches, never, caller="slow"))
    await eventually(lambda: len(batches) == 1)
    crowd = [asyncio.create_task(send(batches, never, caller="crowd")) for _ in range(9)]
    await eventually(lambda: sum(task.done() for task in crowd) > 4)
    assert not slow.done()
    for task in (slow, *crowd):
        task.cancel()
    await asyncio.wait((slow, *crowd))


async def test_stream_that_does_not_read_is_ended_if_another_waits() -> None:
    batches, never = LargeBatches(LARGE_BYTES, patience_s=0.01), asyncio.Event()
    stalled = asyncio.create_task(send(batches, never))
    await eventually(lambda: len(batches) == 1)
    async with batches.room(2 * LARGE_BYTES, "another"):
        with pytest.raises(StalledError):
            await stalled


async def test_timeout_of_the_stream_itself_is_raised_unchanged() -> None:
    batches = LargeBatches()
    with pytest.raises(TimeoutError):
        async with batches.room(LARGE_BYTES, "a caller"), asyncio.timeout(0):
            await asyncio.Event().wait()


@pytest.mark.parametrize(("streams", "callers"), [(40, 1), (80, 20)])
def test_slow_streams_that_are_more_than_there_is_room_for_are_all_sent(streams: int, callers: int) -> None:
    """A handler may need longer for a batch than the patience: all streams have to make progress."""
    read_s, count = 10.0, 20

    async def follow(batches: LargeBatches, caller: str) -> None:
        sent = 0
        while sent < count:
            try:
                async with batches.room(512 << 10, caller):
                    await asyncio.sleep(read_s)
                sent += 1
            except StalledError:
                sent = 0
                await asyncio.sleep(1.0)

    async def main() -> None:
        batches = LargeBatches()
        names = islice(cycle([f"caller-{number}" for number in range(callers)]), streams)
        async with asyncio.timeout(4 * count * read_s), asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(follow(batches, name))

    run_on(VirtualLoop(Random(1)), main())


def test_callers_that_do_not_read_delay_slow_and_fast_ones_little() -> None:
    read_s, count = 15.0, 3

    async def never_read(batches: LargeBatches, caller: str) -> None:
        while True:
            with suppress(StalledError):
                async with batches.room(512 << 10, caller):
                    await asyncio.Event().wait()
            await asyncio.sleep(0.1)

    async def read_slowly(batches: LargeBatches, caller: str) -> None:
        sent = 0
        while sent < count:
            try:
                async with batches.room(512 << 10, caller):
                    await asyncio.sleep(read_s)
                sent += 1
            except StalledError:
                sent = 0
                await asyncio.sleep(1.0)

    async def main() -> None:
        batches, clock, waits = LargeBatches(), asyncio.get_running_loop().time, list[float]()
        stalled = [asyncio.create_task(never_read(batches, f"stalled-{number}")) for number in range(200)]
        slow = [asyncio.create_task(read_slowly(batches, f"slow-{number}")) for number in range(10)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10 * count * read_s):
            while not all(task.done() for task in slow):
                began = clock()
                async with batches.room(512 << 10, "fast"):
                    waits.append(clock() - began)
                await asyncio.sleep(5.0)
        assert waits[0] < 20.0
        assert max(waits[1:]) < 10.0
        for task in stalled:
            task.cancel()
        await asyncio.wait(stalled)

    run_on(VirtualLoop(Random(1)), main())


def test_stream_that_does_not_read_is_ended_even_if_others_are_admitted() -> None:
    async def main() -> None:
        batches, stalled = LargeBatches(6 * LARGE_BYTES), 0.0
        clock = asyncio.get_running_loop().time
        callers: Iterator[str] = cycle(("one", "other"))

        async def read() -> None:
            while not stalled:
                async with batches.room(2 * LARGE_BYTES, next(callers)):
                    await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(read())
            with pytest.raises(StalledError):
                async with batches.room(2 * LARGE_BYTES, "stalled"):
                    await asyncio.Event().wait()
            stalled = clock()
        assert 25.0 < stalled < 35.0

    run_on(VirtualLoop(Random(1)), main())
