"""Event loops in background threads."""

import asyncio
import threading
from typing import Any

import pytest

from milo_kube.background_loop import BackgroundLoop


async def loop_of_thread() -> str:
    return threading.current_thread().name


def test_event_loop_that_cannot_be_made_is_an_error_and_is_made_by_the_next_call(monkeypatch: Any) -> None:
    def fail() -> None:
        raise OSError("no file descriptor is left")

    background, errors = BackgroundLoop(), []

    def start() -> None:
        with pytest.raises(OSError, match="no file descriptor") as raised:
            background.start()
        errors.append(raised.value)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.events, "new_event_loop", fail)
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        starting.join(10)
    assert errors
    assert background.run(loop_of_thread()) == "milo-discovery"
    background.stop()
