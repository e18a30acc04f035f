"""A reusable timeout for consecutive waits, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from milo_kube.reusable_timeout import Deadline
from tests.simulation.seeded.loop import VirtualLoop


def timed_out_at(waits: Callable[[Deadline], Awaitable[None]]) -> float | None:
    """Return when the wait timed out; None if it did not."""

    async def run() -> float | None:
        try:
            async with Deadline() as kept:
                await waits(kept)
        except TimeoutError:
            return now()
        return None

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(Random(0))) as runner:
        return runner.run(run())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_timeout_fires_at_deadline() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(5.0)
        await asyncio.sleep(60.0)

    assert timed_out_at(waits) == 5.0


def test_timeout_of_next_wait_is_independent_of_earlier_waits() -> None:
    async def waits(kept: Deadline) -> None:
        for _ in range(10):
            kept.set(now() + 5.0)
            await asyncio.sleep(4.0)
            kept.lift()
        kept.set(now() + 5.0)
        await asyncio.sleep(60.0)

    assert timed_out_at(waits) == 45.0


def test_timeout_of_next_wait_may_be_earlier_than_the_previous_timeout() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(100.0)
        await asyncio.sleep(1.0)
        kept.lift()
        kept.set(5.0)
        await asyncio.sleep(60.0)

    assert timed_out_at(waits) == 5.0


def test_timeout_is_inactive_between_waits() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(5.0)
        await asyncio.sleep(1.0)
        kept.lift()
        await asyncio.sleep(60.0)

    assert timed_out_at(waits) is None


def test_timeout_can_be_expired_before_its_deadline() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(60.0)
        asyncio.get_running_loop().call_later(1.0, kept.give_up)
        await asyncio.sleep(30.0)

    assert timed_out_at(waits) == 1.0


def test_expiring_a_timeout_that_has_fired_has_no_effect() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(5.0)
        try:
            await asyncio.sleep(60.0)
        finally:
            kept.give_up()

    assert timed_out_at(waits) == 5.0


def test_result_in_the_same_loop_iteration_takes_precedence_over_timeout() -> None:
    async def waits(kept: Deadline) -> None:
        kept.set(60.0)
        kept.give_up()
        kept.lift()
        kept.set(60.0)
        await asyncio.sleep(30.0)

    assert timed_out_at(waits) is None


def test_cancellation_is_not_reported_as_timeout() -> None:
    async def cancelled(kept: Deadline) -> None:
        kept.set(5.0)
        asyncio.get_running_loop().call_later(1.0, asyncio.current_task().cancel)  # type: ignore[union-attr]
        await asyncio.sleep(60.0)

    with pytest.raises(asyncio.CancelledError):
        timed_out_at(cancelled)
