"""Handling of signals that may come in floods."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from milo_discoveryd.wiring import signals
from milo_discoveryd.wiring.signals import handled
from tests.support.eventually import eventually

USR2 = signal.SIGUSR2


@pytest.fixture(autouse=True)
def restored_handler() -> Iterator[None]:
    before = signal.getsignal(USR2)
    yield
    signal.signal(USR2, before)


def send() -> None:
    os.kill(os.getpid(), USR2)


async def test_signals_in_quick_succession_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INTERVAL_S", 3600.0)
    calls: list[None] = []
    with handled({USR2: lambda: calls.append(None)}):
        for _ in range(1000):
            send()
            await asyncio.sleep(0)
        await eventually(lambda: calls)
    assert len(calls) == 1


async def test_signal_that_follows_a_handled_signal_is_handled() -> None:
    calls: list[None] = []
    with handled({USR2: lambda: calls.append(None)}):
        send()
        await eventually(lambda: len(calls) == 1)
        send()
        await eventually(lambda: len(calls) == 2)


async def test_signal_is_ignored_until_an_earlier_signal_has_been_handled() -> None:
    with handled({USR2: lambda: None}):
        send()
        assert signal.getsignal(USR2) is signal.SIG_IGN


async def test_signal_handler_is_called_again_after_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INTERVAL_S", 0.0)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail() -> None:
        raise LookupError("missing")

    with handled({USR2: fail}):
        send()
        await eventually(lambda: len(reported) == 1)
        send()
        await eventually(lambda: len(reported) == 2)


async def test_signal_is_ignored_once_its_handler_is_removed() -> None:
    with handled({USR2: lambda: None}):
        pass
    assert signal.getsignal(USR2) is signal.SIG_IGN
