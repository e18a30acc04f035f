"""Large pages of several servers, which are decoded in turn."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import aclosing
from itertools import pairwise
from typing import Any

from kube.tests.unit.reflect.lines import Found
from milo_kube.api_request import Answer
from milo_kube.costly_steps import COSTLY_S
from milo_kube.list_watch import ListWatch
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.wire import ListPage


class LargePages:
    """A server with large pages, whose decoder takes a while and says when it was at its end."""

    path = "/api/v1/things"
    query: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, decoded_at: list[float]) -> None:
        self._decoded_at = decoded_at

    async def get(self, *_: Any, **__: Any) -> Answer:
        return Answer(200, {}, bytes(1 << 20))

    def page(self, _: bytes) -> tuple[ListPage, Iterable[Found]]:
        until = time.thread_time() + COSTLY_S
        while time.thread_time() < until:
            pass
        self._decoded_at.append(asyncio.get_running_loop().time())
        return ListPage("1", "and so on"), []


async def test_decoding_large_pages_leaves_half_of_the_event_loop() -> None:
    decoded_at: list[float] = []

    async def read() -> None:
        server: Any = LargePages(decoded_at)
        now = asyncio.get_running_loop().time()
        reflector: Reflector[Found] = Reflector(ReflectorPolicy(streaming_lists=False), lambda: 0.0, now)
        pages = ListWatch(
            server, server, decoder=server, reflector=reflector, connect_timeout_s=1.0, request_timeout_s=1.0
        )
        async with aclosing(pages.batches()) as batches:
            async for _ in batches:
                if len(decoded_at) >= 8:
                    return

    await asyncio.gather(*(read() for _ in range(4)))
    assert all(later - earlier > 1.9 * COSTLY_S for earlier, later in pairwise(decoded_at))
