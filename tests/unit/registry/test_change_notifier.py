"""When who waits for changes is woken."""

import asyncio

from milo_discoveryd.registry.change_notifier import ChangeNotifier, Waiter

_LONG_S = 60.0


async def asleep(bell: Waiter) -> "asyncio.Task[None]":
    waiting = asyncio.create_task(bell.wait(_LONG_S))
    await asyncio.sleep(0)
    return waiting


async def test_a_change_after_a_while_without_any_is_told_at_once() -> None:
    signal = ChangeNotifier()
    with signal.waiter() as bell:
        waiting = await asleep(bell)
        signal.ring()
        await waiting


async def test_changes_close_together_are_told_together() -> None:
    signal = ChangeNotifier()
    with signal.waiter() as bell:
        signal.ring()
        await bell.wait(_LONG_S)
        waiting = await asleep(bell)
        signal.ring()
        signal.ring()
        assert not waiting.done()
        await waiting


async def test_what_nobody_is_in_a_hurry_for_waits() -> None:
    signal = ChangeNotifier()
    with signal.waiter() as bell:
        waiting = await asleep(bell)
        signal.ring(after_s=0.01)
        await asyncio.sleep(0)
        assert not waiting.done()
        await waiting


async def test_what_nobody_is_in_a_hurry_for_goes_along_with_what_somebody_is() -> None:
    signal = ChangeNotifier()
    with signal.waiter() as bell:
        waiting = await asleep(bell)
        signal.ring(after_s=_LONG_S)
        signal.ring()
        await waiting
        waiting = await asleep(bell)
        signal.ring()
        signal.ring(after_s=_LONG_S)
        await waiting


async def test_where_nobody_waits_nobody_is_rung_later() -> None:
    signal = ChangeNotifier()
    signal.ring(after_s=0.0)
    with signal.waiter() as bell:
        waiting = await asleep(bell)
        await asyncio.sleep(0)
        assert not waiting.done()
        signal.ring_now()
        await waiting
