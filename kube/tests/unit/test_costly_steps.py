"""Large pages and lines of several servers, which are decoded in turn."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from kube.tests.unit.reflect.lines import DECODER, Found, line, thing
from milo_kube.api_request import Answer
from milo_kube.costly_steps import COSTLY_S, SMALL_PAGE, CostlySteps
from milo_kube.list_watch import EVENTS_AT_ONCE, ListWatch
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.wire import INITIAL_EVENTS_END, ListPage, WatchEvent
from milo_kube.tenants import working_for

PAGES = ReflectorPolicy(streaming_lists=False)
LARGE = 64 << 10
"""Bytes of lines that can take some 20 ms to decode."""


class LargePages:
    """A server with large pages, whose decoder takes a while and says when it was at its end."""

    path = "/api/v1/things"
    query: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, decoded_at: list[float]) -> None:
        self._decoded_at = decoded_at

    async def get(self, *_: Any, **__: Any) -> Answer:
        return Answer(200, {}, bytes(1 << 20))

    def page(self, _: bytes) -> tuple[ListPage, Iterable[Found]]:
        take_long(self._decoded_at)
        return ListPage("1", "and so on"), []


class LargeItems(LargePages):
    """A server whose objects take a while to decode, and not its pages."""

    def page(self, _: bytes) -> tuple[ListPage, Iterator[Found]]:
        return ListPage("1", ""), (take_long(self._decoded_at) for _ in range(100))


class Lines(LargePages):
    """A server that sends these lines again and again, whose decoder takes a while for large ones."""

    status = 200

    def __init__(self, decoded_at: list[float], *lines: bytes) -> None:
        super().__init__(decoded_at)
        self._chunk = b"".join(line + b"\n" for line in lines)
        self.decoded: list[list[int]] = []
        """The sizes of the lines that were decoded in each step."""

    async def get(self, *_: Any, **__: Any) -> Answer:
        return Answer(200, {}, b"")

    def page(self, _: bytes) -> tuple[ListPage, Iterable[Found]]:
        return ListPage("1", ""), ()

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> "AsyncGenerator[Lines, None]":
        yield self

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            await asyncio.sleep(0)
            for start in range(0, len(self._chunk), 256 << 10):
                yield self._chunk[start : start + (256 << 10)]

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Found]]:
        sizes = [*map(len, lines)]
        self.decoded.append(sizes)
        if sum(sizes) >= LARGE:
            take_long(self._decoded_at)
        return []


class ManyItems(LargePages):
    """A server whose objects are not costly, and take so long that few of them are decoded at once."""

    def page(self, _: bytes) -> tuple[ListPage, Iterator[Found]]:
        return ListPage("1", ""), (take_long(self._decoded_at, COSTLY_S / 4) for _ in range(1000))


class Filling(Lines):
    """A server with a streaming list, which sends its lines one after the other."""

    def __init__(self, *lines: bytes) -> None:
        super().__init__([])
        self._sent = lines
        self.pages = 0

    async def get(self, *_: Any, **__: Any) -> Answer:
        self.pages += 1
        return Answer(200, {}, b"{}")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for sent in self._sent:
            await asyncio.sleep(0.005)
            yield sent + b"\n"
        await asyncio.Event().wait()

    page = staticmethod(DECODER.page)  # type: ignore[assignment]
    lines = staticmethod(DECODER.lines)


def take_long(decoded_at: list[float], for_s: float = COSTLY_S) -> Found:
    until = time.thread_time() + for_s
    while time.thread_time() < until:
        pass
    decoded_at.append(asyncio.get_running_loop().time())
    return Found("a", "b", "1", "")


async def read(server: Any, until: Callable[[], bool], policy: ReflectorPolicy = PAGES) -> None:
    now = asyncio.get_running_loop().time()
    reflector: Reflector[Found] = Reflector(policy, lambda: 0.0, now)
    pages = ListWatch(server, server, decoder=server, reflector=reflector, connect_timeout_s=1.0, request_timeout_s=1.0)
    async with aclosing(pages.batches()) as batches:
        async for _ in batches:
            if until():
                return


@pytest.mark.parametrize(
    "server",
    [LargePages, LargeItems, lambda decoded_at: Lines(decoded_at, bytes(LARGE))],
    ids=["page", "items", "line"],
)
async def test_decoding_large_pages_leaves_half_of_the_event_loop(
    server: Callable[[list[float]], LargePages],
) -> None:
    decoded_at: list[float] = []
    await asyncio.gather(*(read(server(decoded_at), lambda: len(decoded_at) >= 12) for _ in range(4)))
    # The first objects of a page show that the others are costly, too.
    assert all(later - earlier > 1.9 * COSTLY_S for earlier, later in pairwise(decoded_at[:12]))


async def test_objects_of_many_pages_are_decoded_in_turn() -> None:
    """Found by a reader: those of each of 400 clusters were decoded in each iteration of the event loop."""
    decoded_at: list[float] = []
    reads = [asyncio.create_task(read(ManyItems(decoded_at), lambda: False)) for _ in range(20)]
    at_once = []
    while len(decoded_at) < 400:
        before = len(decoded_at)
        await asyncio.sleep(0)
        at_once.append(len(decoded_at) - before)
    for one in reads:
        one.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    assert max(at_once) <= 8


async def test_server_is_not_silent_while_its_lines_wait_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a reader: the list was requested again, although there was more of it."""
    result = CostlySteps.result

    async def waiting(steps: CostlySteps, step: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.2)
        return await result(steps, step)

    monkeypatch.setattr(CostlySteps, "result", waiting)
    objects = [line("ADDED", thing(f"a-{number}", f"{number}", unused="x" * SMALL_PAGE)) for number in range(1, 4)]
    end = {"metadata": {"resourceVersion": "9", "annotations": {INITIAL_EVENTS_END: "true"}}}
    server, batches = Filling(*objects, line("BOOKMARK", end)), itertools.count(1)
    await read(server, lambda: next(batches) == 5, ReflectorPolicy(fill_silence_s=0.1))
    assert server.pages == 0


async def test_small_lines_do_not_wait_for_large_ones_of_other_servers() -> None:
    decoded_at: list[float] = []
    large, *others = [Lines(decoded_at, bytes(LARGE)) for _ in range(10)]
    small = Lines(decoded_at, bytes(10 << 10))
    async with asyncio.TaskGroup() as tasks:
        reads = [tasks.create_task(read(server, lambda: False)) for server in others]
        await read(large, lambda: bool(decoded_at))
        before = len(decoded_at)
        await read(small, lambda: len(small.decoded) >= 20)
        for other in reads:
            other.cancel()
    assert len(decoded_at) - before < 100


async def test_many_lines_of_one_read_are_decoded_in_several_steps() -> None:
    small, large = bytes(11 << 10), bytes(LARGE)
    server = Lines([], *[small] * 7, large, small, large, *[b"1"] * 150)
    await read(server, lambda: sum(map(len, server.decoded)) >= 160)
    sizes = [*map(len, (*[small] * 7, large, small, large)), *[1] * 150]
    assert [size for step in server.decoded for size in step][:160] == sizes
    assert all(len(step) == 1 or sum(step) <= LARGE // 2 for step in server.decoded)
    assert max(map(len, server.decoded)) == EVENTS_AT_ONCE


async def test_costly_steps_of_one_tenant_in_any_number_delay_those_of_no_other() -> None:
    steps, done = CostlySteps(), list[str]()

    async def work(tenant: str) -> None:
        working_for.set((tenant,))
        await steps.result(lambda: done.append(tenant))

    steps.add(lambda: time.sleep(COSTLY_S))
    async with asyncio.TaskGroup() as tasks:
        for tenant in [*["evil"] * 100, "acme", "acme"]:
            tasks.create_task(work(tenant))
    assert done[:5] == ["evil", "acme", "evil", "acme", "evil"]
    assert len(done) == 102
