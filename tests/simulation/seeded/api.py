"""A simulated API server behind the daemon's transport interface; everything above that is production code.

Objects and watches come from tests/simulation/properties/api_server.py; this module adds time, latency and faults.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import msgspec

from milo_discoveryd.model.resource import Resource
from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError
from tests.simulation.properties.api_server import ApiObject, Server, Watch, bookmark, initial_lines, line
from tests.simulation.seeded.request_faults import BY_KIND, Answered, Kind, Lie, Lost, RequestFault, status

BOOKMARKS_S = 60.0
LAG = 6
"""Maximum number of changes by which a replica lags behind."""
RESOURCE = Resource("", "v1", "projects", label_selector="in=yes")
PATH = RESOURCE.path
ETCD_FREEZES = ("F4", "etcd freezes")
EXPIRED = line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})


class Open:
    """An open watch; pieces queued in `said` are sent before new events of the server."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, api: "Api", watch: Watch | None, timeout_s: float) -> None:
        self._api = api
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + timeout_s
        self._bookmark_at = self._loop.time() + BOOKMARKS_S
        self._bell = asyncio.Event()
        self.watch = watch
        self.said: deque[bytes | TransportError | None] = deque()
        self.mute = False
        self.without_bookmarks = False
        self.drips_s = 0.0
        """The time that each piece takes to arrive."""
        self.is_backwards = False
        """Whether the next events are sent in reverse order."""

    def ring(self) -> None:
        self._bell.set()

    def say(self, *pieces: bytes | TransportError | None) -> None:
        """Queue pieces; an error cuts the watch, None closes it."""
        self.said.extend(pieces)
        self.ring()

    @property
    def sent(self) -> list[bytes]:
        return self.watch.sent if self.watch is not None else []

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            await self._api.random_delay()
            if self.said and not self.mute:
                piece = self.said.popleft()
                await self._drip()
                if piece is None:
                    return
                if isinstance(piece, TransportError):
                    raise piece
                yield piece
            elif not self.mute and self._loop.time() >= self._ends_at:
                return
            elif not (lines := self._news()):
                await self._quiet()
            else:
                for chunk in lines if self.drips_s else self._api.split_randomly(b"".join(lines)):
                    await self._drip()
                    yield chunk

    async def _drip(self) -> None:
        if self.drips_s:
            await asyncio.sleep(self.drips_s)

    async def read_error(self, limit: int) -> bytes:
        raise AssertionError("nothing was refused")

    def _news(self) -> list[bytes]:
        watch, server = self.watch, self._api.server
        if self.mute or watch is None or watch.position is None or self._loop.time() < self._api.frozen_until:
            return []
        if watch.initial:
            self._api.was_listed(is_marked=watch.position is not None)
            return server.read(watch)
        if watch.position < server.compacted:
            self.say(EXPIRED, None)
            return []
        if watch.position < server.version:
            lines = server.read(watch)
            return lines[::-1] if self.is_backwards else lines
        if self._loop.time() >= self._bookmark_at and not self.without_bookmarks:
            self._bookmark_at = self._loop.time() + BOOKMARKS_S
            self._api.has_bookmarked = True
            return [bookmark(server.version)]
        return []

    async def _quiet(self) -> None:
        is_marked = self.watch is not None and self.watch.position is not None and not self.without_bookmarks
        due = min(self._ends_at, self._bookmark_at) if is_marked else self._ends_at
        if self._loop.time() < self._api.frozen_until:
            due = min(self._ends_at, self._api.frozen_until)
        try:
            async with asyncio.timeout_at(None if self.mute else due):
                await self._bell.wait()
        except TimeoutError:
            pass
        self._bell.clear()


class Refused:
    """A response that is not a watch."""

    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._body = answer.body

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    async def read_error(self, limit: int) -> bytes:
        return self._body[:limit]


class Api:
    """The API server, with faults.

    `fault_rate` is the share of requests with a fault; `lies` returns whether lists may be wrong now.
    """

    def __init__(self, server: Server, random: Random, note: Callable[..., None], lies: Callable[[], bool]) -> None:
        self.server = server
        self.fault_rate = 0.0
        self.only: RequestFault | None = None
        """The only fault to inject, in every request of its kinds."""
        self.down_until = 0.0
        self.busy_until = 0.0
        self.frozen_until = 0.0
        """Until this time, etcd does not respond: health checks fail, requests hang, and open watches send nothing."""
        self.list_drips_s = 0.0
        """The time that each object of a streaming list takes to arrive."""
        self.open: dict[Open, None] = {}
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.has_bookmarked = False
        """Whether this run of the daemon received a bookmark, so that it expects the server to send bookmarks."""
        self.lists = 0
        """The number of pages and of streaming lists that were sent."""
        self.needs_relist = False
        """Whether only another list can correct what was sent."""
        self._random = random
        self._note = note
        self._lies = lies
        self._loop = asyncio.get_running_loop()

    # --- requests ---

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_: object) -> Answer:
        asked = dict(query)
        kind: Kind = "list" if path == PATH else "look"
        self.requests["livez" if path == "/livez" else kind] += 1
        await self.random_delay()
        if path == "/livez" and self._loop.time() < self.frozen_until:
            return Answer(500, {}, b"[-]etcd failed: reason withheld")
        await self._etcd_answers(timeout_s)
        fault = await self._drawn_fault(kind, timeout_s)
        lie: Lie | None = None
        match fault:
            case Answered(make):
                return make(self._random)
            case Lie():
                lie = fault
        if path == "/livez":
            return Answer(200, {}, b"ok")
        if kind == "look":
            return self._look(path.removeprefix(f"{PATH}/"), lie)
        return self._page(int(asked.get("limit", 0)), asked.get("continue", ""), lie)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Any]:
        return self._watching(dict(query), connect_timeout_s)

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        return await self.get(path, timeout_s=timeout_s)

    async def drop(self) -> None:
        self.cut()

    # --- faults ---

    def cut(self, cause: str = "cut") -> None:
        """Cut every open watch."""
        for opened in self.open:
            opened.mute = False
            opened.said.clear()
            opened.say(TransportError("closed", cause))

    def expire(self) -> None:
        """End every open watch so that its client lists again."""
        for opened in self.open:
            opened.said.clear()
            opened.say(EXPIRED, None)

    def freeze_etcd(self, seconds: float) -> None:
        self.inject(*ETCD_FREEZES)
        self.frozen_until = self._loop.time() + seconds

    async def _etcd_answers(self, timeout_s: float) -> None:
        """Wait for etcd, as requests that need it do."""
        gives_up_at = self._loop.time() + timeout_s
        while self._loop.time() < self.frozen_until:
            if self._loop.time() >= gives_up_at:
                raise TransportError("timeout", "etcd does not answer")
            await asyncio.sleep(0.5)

    def ring(self) -> None:
        """Wake the open watches after a change."""
        for opened in self.open:
            opened.ring()

    @property
    def has_sent_all(self) -> bool:
        return any(
            opened.watch and opened.watch.position == self.server.version and not opened.said for opened in self.open
        )

    def was_listed(self, *, is_marked: bool = False) -> None:
        self.lists += 1
        self.has_bookmarked = self.has_bookmarked or is_marked

    def inject(self, row: str, name: str) -> None:
        self.injected[f"{row} {name}"] += 1
        self._note(row, name)

    async def random_delay(self) -> None:
        if self._random.random() < 0.3:
            await asyncio.sleep(0.05 * self._random.random())

    def split_randomly(self, data: bytes) -> list[bytes]:
        """Split data at a random place, as TCP may."""
        if self._random.random() < 0.8:
            return [data]
        place = self._random.randrange(len(data))
        return [part for part in (data[:place], data[place:]) if part]

    async def _drawn_fault(self, kind: Kind, timeout_s: float) -> Answered | Lie | None:
        now = self._loop.time()
        if now < self.down_until:
            raise TransportError("connect", "the server is down")
        if now < self.busy_until and kind != "look":
            return Answered(status(429, "TooManyRequests", **{"Retry-After": "1"}))
        fault = self._drawn(kind)
        if fault is None:
            return None
        self.inject(fault.row, fault.name)
        if isinstance(fault.comes, Lost):
            if fault.comes.late:
                await asyncio.sleep(timeout_s)
            raise TransportError(fault.comes.cause, fault.name)
        return fault.comes

    def _drawn(self, kind: Kind) -> RequestFault | None:
        if self.only is not None:
            return self.only if kind in self.only.kinds else None
        if not self.fault_rate or self._random.random() >= self.fault_rate:
            return None
        drawn = self._random.choice(BY_KIND[kind])
        is_lie = isinstance(drawn.comes, Lie) and drawn.comes.what in ("empty", "partial", "lagging")
        return None if is_lie and not self._lies() else drawn

    # --- responses ---

    def _lagging(self) -> tuple[int, dict[str, ApiObject]]:
        """Return the state of a replica that lags behind by up to `LAG` changes."""
        past = self.server.past[-LAG:]
        return self._random.choice(past) if past else (self.server.version, self.server.objects)

    def _look(self, name: str, lie: Lie | None) -> Answer:
        body = self.server.read_object(name)
        if lie is not None and (old := self._lagging()[1].get(name)) is not None:
            body = msgspec.json.encode(old.encoded(name))
        if body is not None:
            return Answer(200, {}, body)
        status_body = {
            "kind": "Status",
            "code": 404,
            "reason": "NotFound",
            "message": "gone",
            "details": {"name": name},
        }
        return Answer(404, {}, msgspec.json.encode(status_body))

    def _page(self, limit: int, token: str, lie: Lie | None) -> Answer:
        body = self.server.page(limit, token)
        if body is None:
            self.inject("F14", "expired on a later page")
            return status(410, "Expired")(self._random)
        self.was_listed()
        if lie is None:
            return Answer(200, {}, body)
        if lie.what == "lagging":
            version, objects = self._lagging()
            items = [obj.encoded(name) for name, obj in sorted(objects.items()) if obj.inside]
            return Answer(200, {}, msgspec.json.encode({"metadata": {"resourceVersion": str(version)}, "items": items}))
        self.needs_relist = True
        page = msgspec.json.decode(body)
        match lie.what:
            case "empty":
                page["items"] = []
                page["metadata"].pop("continue", None)
            case "third":
                page["items"] = page["items"][: len(page["items"]) // 3]
                page["metadata"].pop("continue", None)
            case "partial" if page["items"]:
                page["items"].pop(self._random.randrange(len(page["items"])))
            case "unversioned":
                del page["metadata"]["resourceVersion"]
        return Answer(200, {}, msgspec.json.encode(page))

    @asynccontextmanager
    async def _watching(self, asked: Mapping[str, str], timeout_s: float) -> AsyncIterator[Open | Refused]:
        self.requests["watch"] += 1
        await self.random_delay()
        version = asked.get("resourceVersion", "")
        fault = await self._drawn_fault("open", timeout_s)
        if isinstance(fault, Answered):
            yield Refused(fault.make(self._random))
            return
        watch = self.server.watch(version)
        opened = Open(self, watch, float(asked["timeoutSeconds"]))
        if watch is None:
            opened.say(EXPIRED, None)
        elif watch.initial:
            opened.drips_s = self.list_drips_s
        if watch is not None and fault is not None:
            self._spoil(opened, watch, fault)
        self.open[opened] = None
        try:
            yield opened
        finally:
            del self.open[opened]

    def _spoil(self, opened: Open, watch: Watch, lie: Lie) -> None:
        match lie.what:
            case "ends at once":
                opened.say(None)
            case "mute":
                opened.mute = True
            case "lagging" if watch.initial:
                watch.position, objects = self._lagging()
                watch.initial = initial_lines(watch.position, objects)
            case "no end mark" if watch.initial:
                watch.initial = watch.initial[:-1]
                watch.position = None
            case "empty" if watch.initial:
                self.needs_relist = True
                watch.initial = watch.initial[-1:]
            case "third" if watch.initial:
                self.needs_relist = True
                watch.initial = [*watch.initial[: len(watch.initial) // 3], watch.initial[-1]]
            case "partial" if len(watch.initial) > 1:
                self.needs_relist = True
                watch.initial.pop(self._random.randrange(len(watch.initial) - 1))
