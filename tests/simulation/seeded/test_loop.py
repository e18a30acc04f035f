"""Tests of the event loop on virtual time: clocks, deadlines and the seeded task order."""

import asyncio
import time
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from tests.simulation.seeded.loop import WALL_AT_ZERO, NothingLeftError, VirtualLoop, clocks_of


def run(main: Coroutine[Any, Any, Any], seed: int = 0) -> Any:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(Random(seed))) as runner:
        return runner.run(main)


async def order_of_five() -> list[int]:
    ran: list[int] = []

    async def one(number: int) -> None:
        ran.append(number)

    await asyncio.gather(*map(one, range(5)))
    return ran


def test_hour_of_sleep_in_the_virtual_loop_takes_no_real_time() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run(main()) == 3600.0


def test_virtual_loop_runs_timers_in_order_of_their_deadlines() -> None:
    async def main() -> list[str]:
        came: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(2, came.append, "second")
        loop.call_later(1, came.append, "first")
        loop.call_later(3, came.append, "never").cancel()
        await asyncio.sleep(4)
        return came

    assert run(main()) == ["first", "second"]


def test_order_of_ready_tasks_depends_only_on_the_seed() -> None:
    assert run(order_of_five(), 1) == run(order_of_five(), 1)
    assert len({tuple(run(order_of_five(), seed)) for seed in range(20)}) > 10


def test_deadlocked_virtual_loop_is_an_error() -> None:
    loop = VirtualLoop(Random(0))
    with pytest.raises(NothingLeftError):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_clocks_follow_the_running_virtual_loop() -> None:
    loop = VirtualLoop(Random(0))
    with clocks_of(loop):
        loop.run_until_complete(asyncio.sleep(5))
        assert (time.time(), time.monotonic()) == (WALL_AT_ZERO + 5, 5)
    assert time.time() < WALL_AT_ZERO or time.monotonic() != 5
    loop.close()
