"""Fails a test that closes an event loop before its connections, as a pytest plugin for all tests.

Python warns about such a connection when it is collected, which can be during any later test.
"""

from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from typing import Any

import pytest

_open_transports: list[str] = []
_close = BaseSelectorEventLoop.close


def _close_and_record(loop: Any) -> None:
    transports: list[Any] = [] if loop.is_closed() else [*loop._transports.values()]
    _close(loop)
    _open_transports.extend(_described(transport) for transport in transports if transport._sock is not None)


def _described(transport: Any) -> str:
    peer = transport.get_extra_info("peername") or "a peer"
    state = "is closing" if transport.is_closing() else "is open"
    return f"the connection of {transport.get_extra_info('sockname')} to {peer} {state} ({transport.get_protocol()})"


def pytest_configure() -> None:
    BaseSelectorEventLoop.close = _close_and_record  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    result = yield
    if found := [*_open_transports]:
        _open_transports.clear()
        pytest.fail("an event loop was closed before its connections:\n" + "\n".join(found))
    return result
