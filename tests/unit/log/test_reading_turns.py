"""Turns of many streams."""

import asyncio

from milo_discoveryd.log.change_notifier import AT_ONCE_S, LONG_S, WOKEN, ReadingTurns

STREAMS = 100


class Readers:
    """Streams that read at the same time, as after a change; time passes only while they read."""

    def __init__(self, read_s: float) -> None:
        self.now = 0.0
        self.read: list[int] = []
        self.turns = ReadingTurns(lambda: self.now)
        self._read_s = read_s

    async def reads(self, stream: int) -> None:
        if not self.turns.is_free:
            await self.turns.wait()
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


async def test_fewer_streams_read_in_one_iteration_while_iterations_take_long() -> None:
    readers = Readers(LONG_S / 2 + 0.001)
    reading = [asyncio.create_task(readers.reads(stream)) for stream in range(STREAMS)]
    await asyncio.sleep(0)
    began, iterations = readers.now, 0
    while not all(task.done() for task in reading):
        await asyncio.sleep(0)
        iterations += 1
    assert readers.read == [*range(STREAMS)]
    assert (readers.now - began) / iterations < 2 * LONG_S


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
