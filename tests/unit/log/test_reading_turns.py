"""Turns of many streams, and of several callers."""

import asyncio

import pytest

from milo_discoveryd.log.change_notifier import AT_ONCE_S, WOKEN, ReadingTurns

STREAMS = 100


class Readers:
    """Streams that read at the same time, as after a change; time passes only while they read."""

    def __init__(self, read_s: float) -> None:
        self.now = 0.0
        self.read: list[int] = []
        self.turns = ReadingTurns(lambda: self.now)
        self._read_s = read_s

    async def reads(self, stream: int, caller: str = "") -> None:
        if not self.turns.is_free:
            await self.turns.wait(caller)
        self.now += self._read_s
        self.read.append(stream)

    async def most_at_once(self, reading: list["asyncio.Task[None]"]) -> int:
        """Return how many streams read in one iteration of the event loop, at most."""
        most = 0
        while not all(task.done() for task in reading):
            before = len(self.read)
            await asyncio.sleep(0)
            most = max(most, len(self.read) - before)
        return most


async def test_streams_whose_reads_take_long_read_in_turns() -> None:
    readers = Readers(AT_ONCE_S / 2)
    for _ in range(2):
        readers.read.clear()
        reading = [asyncio.create_task(readers.reads(stream)) for stream in range(STREAMS)]
        assert await readers.most_at_once(reading) <= WOKEN
        assert readers.read == [*range(STREAMS)]


@pytest.mark.parametrize("read_s", [AT_ONCE_S / 3 + 0.001, 2 * AT_ONCE_S])
async def test_streams_of_one_iteration_read_for_a_limited_time(read_s: float) -> None:
    readers = Readers(read_s)
    reading = [asyncio.create_task(readers.reads(stream)) for stream in range(STREAMS)]
    while not all(task.done() for task in reading):
        began = readers.now
        await asyncio.sleep(0)
        assert readers.now - began < AT_ONCE_S + read_s
    assert readers.read == [*range(STREAMS)]


async def test_callers_take_turns() -> None:
    readers = Readers(AT_ONCE_S)
    reading = [asyncio.create_task(readers.reads(stream, "many")) for stream in range(STREAMS)]
    await asyncio.sleep(0)
    reading += [asyncio.create_task(readers.reads(STREAMS + stream, "few")) for stream in range(3)]
    await asyncio.gather(*reading)
    first = readers.read.index(STREAMS)
    assert first <= 4, "only those that were woken already are ahead"
    assert readers.read[first : first + 5 : 2] == [STREAMS, STREAMS + 1, STREAMS + 2]


async def test_step_that_always_waits_for_its_turn_gets_one_if_nothing_else_reads() -> None:
    turns = ReadingTurns()
    for _ in range(3):
        await turns.wait("list")
    assert turns.is_free or await turns.wait("stream") is None


async def test_streams_whose_reads_take_little_do_not_wait() -> None:
    readers = Readers(AT_ONCE_S / STREAMS / 2)
    reading = [asyncio.create_task(readers.reads(stream)) for stream in range(STREAMS)]
    assert await readers.most_at_once(reading) == STREAMS


async def test_ended_stream_takes_no_turn() -> None:
    readers = Readers(AT_ONCE_S)
    reading = [asyncio.create_task(readers.reads(stream)) for stream in range(STREAMS)]
    await asyncio.sleep(0)
    for task in reading[1 : 2 * WOKEN]:
        task.cancel()
    assert await readers.most_at_once(reading) <= WOKEN
    assert readers.read == [0, *range(2 * WOKEN, STREAMS)]
