"""Coalescing of signals."""

import asyncio

import pytest

from milo_discoveryd.wiring import signals
from milo_discoveryd.wiring.signals import coalesced
from tests.support.eventually import eventually


async def test_signals_in_quick_succession_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INTERVAL_S", 3600.0)
    handled: list[None] = []
    signaled = coalesced(lambda: handled.append(None))
    for _ in range(1000):
        signaled()
        await asyncio.sleep(0)
    assert len(handled) == 1


async def test_signal_after_a_handled_one_is_handled_later() -> None:
    handled: list[None] = []
    signaled = coalesced(lambda: handled.append(None))
    signaled()
    await eventually(lambda: len(handled) == 1)
    signaled()
    await eventually(lambda: len(handled) == 2)


async def test_signal_handler_that_fails_handles_later_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INTERVAL_S", 0.0)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    signaled = coalesced(lambda: {}["missing"])
    for count in (1, 2):
        signaled()
        await eventually(lambda count=count: len(reported) == count)
