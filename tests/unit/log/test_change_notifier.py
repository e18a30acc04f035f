"""Debouncing of the notifications that wake waiting streams."""

import asyncio

from milo_discoveryd.log.change_notifier import ChangeNotifier, Waiter

_LONG_S = 60.0


async def asleep(waiter: Waiter) -> "asyncio.Task[None]":
    waiting = asyncio.create_task(waiter.wait_for_change(_LONG_S))
    await asyncio.sleep(0)
    return waiting


async def test_notifier_wakes_waiter_at_once_after_a_quiet_period() -> None:
    notifier = ChangeNotifier()
    with notifier.waiter() as waiter:
        waiting = await asleep(waiter)
        notifier.notify()
        await waiting


async def test_notifier_delays_notification_of_a_change_soon_after_another() -> None:
    notifier = ChangeNotifier()
    with notifier.waiter() as waiter:
        notifier.notify()
        await waiter.wait_for_change(_LONG_S)
        waiting = await asleep(waiter)
        notifier.notify()
        notifier.notify()
        assert not waiting.done()
        await waiting


async def test_notifier_delays_non_urgent_changes() -> None:
    notifier = ChangeNotifier()
    with notifier.waiter() as waiter:
        waiting = await asleep(waiter)
        notifier.notify(after_s=0.01)
        await asyncio.sleep(0)
        assert not waiting.done()
        await waiting


async def test_notifier_sends_non_urgent_changes_along_with_urgent_ones() -> None:
    notifier = ChangeNotifier()
    with notifier.waiter() as waiter:
        waiting = await asleep(waiter)
        notifier.notify(after_s=_LONG_S)
        notifier.notify()
        await waiting
        waiting = await asleep(waiter)
        notifier.notify()
        notifier.notify(after_s=_LONG_S)
        await waiting


async def test_notification_without_waiters_does_not_wake_a_later_waiter() -> None:
    notifier = ChangeNotifier()
    notifier.notify(after_s=0.0)
    with notifier.waiter() as waiter:
        waiting = await asleep(waiter)
        await asyncio.sleep(0)
        assert not waiting.done()
        notifier.notify_now()
        await waiting
