"""How events of gRPC wake the event loop."""

import asyncio
import socket
from pathlib import Path

import pytest

from milo_discoveryd.server.calls import handlers
from milo_discoveryd.server.calls.handlers import MOST_WAKEUPS, frequent_wakeups
from tests.integration.grpc_server.conftest import a_harness


async def left_after_an_iteration(written: int) -> int:
    """Return how many bytes are left after one iteration, in a socket that wakes the loop as gRPC's does."""
    loop, (waking, writing) = asyncio.get_running_loop(), socket.socketpair()
    handled = asyncio.Event()

    def handle(_: object) -> None:
        waking.recv(1)
        loop.remove_reader(waking)
        handled.set()

    with waking, writing:
        with frequent_wakeups():
            loop.add_reader(waking, handle, loop)
        writing.send(b"1" * written)
        writing.close()
        await handled.wait()
        return len(waking.recv(written, socket.MSG_PEEK))


@pytest.mark.parametrize("written", [1, 2, MOST_WAKEUPS])
async def test_events_that_wait_wake_the_loop_once(written: int) -> None:
    assert await left_after_an_iteration(written) == 0


async def test_an_iteration_handles_a_limited_number_of_events() -> None:
    assert await left_after_an_iteration(MOST_WAKEUPS + 3) == 3


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What gRPC makes the loop call for its events."""
    made: list[object] = []
    loop_class = asyncio.SelectorEventLoop
    add_reader = loop_class.add_reader

    def added(loop: asyncio.SelectorEventLoop, file: object, callback: object, *args: object) -> None:
        made.append(callback)
        add_reader(loop, file, callback, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_class, "add_reader", added)
    return made


async def test_grpc_wakes_the_loop_of_a_server_so(readers: list[object], tmp_path: Path) -> None:
    async with a_harness(tmp_path):
        assert handlers._wake in [getattr(reader, "func", None) for reader in readers]
    assert "add_reader" not in vars(asyncio.get_running_loop())
