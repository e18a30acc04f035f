"""An API server without faults. Its pages are prepared in advance, and each response suspends the caller once."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import msgspec

from milo_kube.api_request import Answer
from tests.simulation.properties.api_server import ApiObject, line
from tests.simulation.seeded.api import EXPIRED, PATH

_contents = count(1)
"""Label values, each used once per process: cached labels would make later changes cheaper."""


class Watch:
    """An open watch, which sends the queued chunks; a queued None closes the watch."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._queued: deque[bytes | None] = deque()
        self._has_queued = asyncio.Event()

    def send(self, *chunks: bytes | None) -> None:
        self._queued.extend(chunks)
        self._has_queued.set()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            while not self._queued:
                self._has_queued.clear()
                await self._has_queued.wait()
            chunk = self._queued.popleft()
            await asyncio.sleep(0)
            if chunk is None:
                return
            yield chunk

    async def read_error(self, limit: int) -> bytes:
        raise AssertionError("no watch is refused")


class Api:
    def __init__(self, clusters: int, page_size: int, *, suffix: str = "") -> None:
        """`suffix` is appended to each name and UID, to make objects larger."""
        self.answers_lists = asyncio.Event()
        self.answers_lists.set()
        self.waits_at = 0
        """The position in a list at and after which pages wait for `answers_lists`."""
        self._page_size = page_size
        self._version = 1
        self._watch: Watch | None = None
        self._names = [f"cluster-{number:06}{suffix}" for number in range(clusters)]
        self._objects = {name: self._new(name) for name in self._names}
        self._pages: dict[str, bytes] = {}
        self.prepare_pages()

    def change(self, first: int, objects: int) -> None:
        """Change consecutive objects, each to a label that was never used before, and send the events in one chunk."""
        lines: list[bytes] = []
        for number in range(first, first + objects):
            name = self._names[number % len(self._names)]
            self._version += 1
            self._objects[name] = obj = replace(self._objects[name], version=self._version, content=next(_contents))
            lines.append(line("MODIFIED", obj.encoded(name)))
        assert self._watch is not None, "the daemon has no open watch"
        self._watch.send(b"".join(lines))

    def replace(self, kept: int = 0, *, renamed: bool = False) -> None:
        """Replace all objects but the first, with others of the same names or of other names, without events."""
        for name in self._names[kept:]:
            del self._objects[name]
            other = f"other-{name}" if renamed else name
            self._objects[other] = replace(self._new(name), uid=f"other-{name}"[:128])

    def expire_watch(self) -> None:
        """Close the watch with the error 410 (Expired), after which the client lists again."""
        assert self._watch is not None, "the daemon has no open watch"
        self._watch.send(EXPIRED, None)

    def prepare_pages(self, size: int | None = None) -> None:
        """Encode the pages of the next list; `size` overrides the page size that the daemon requests."""
        size = size or self._page_size
        items = [obj.encoded(name) for name, obj in self._objects.items()]
        self._pages.clear()
        for start in range(0, len(items), size):
            end = start + size
            metadata = {"resourceVersion": str(self._version), "continue": str(end) if end < len(items) else ""}
            page = {"metadata": metadata, "items": items[start:end]}
            self._pages[str(start) if start else ""] = msgspec.json.encode(page)

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_: object) -> Answer:
        await asyncio.sleep(0)
        if path == "/livez":
            return Answer(200, {}, b"ok")
        assert path == PATH, f"unexpected request for {path}: no object is deleted"
        token = dict(query).get("continue", "")
        if int(token or 0) >= self.waits_at:
            await self.answers_lists.wait()
        return Answer(200, {}, self._pages[token])

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Any]:
        return self._watching()

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        return await self.get(path, timeout_s=timeout_s)

    async def drop(self) -> None:
        raise AssertionError("no connection is lost")

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[Watch]:
        await asyncio.sleep(0)
        self._watch = Watch()
        yield self._watch

    def _new(self, name: str) -> ApiObject:
        self._version += 1
        return ApiObject(
            f"uid-{name}"[:128], self._version, ready=True, inside=True, readable=True, content=next(_contents)
        )
