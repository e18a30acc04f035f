"""An API server without faults of its own, for any collections: lists in pages, watches, reads. A list restarts, or a
watch expires, where a simulation says so."""

import asyncio
import base64
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec

from milo_kube.api_request import Answer
from tests.simulation.seeded.api import EXPIRED
from tests.unit.credentials.tokens import jwt

LATENCY_S = 0.005
CHUNK_BYTES = 1 << 16
HISTORY = 30_000
_EXPIRED_LIST = Answer(410, {}, b'{"kind":"Status","code":410,"reason":"Expired"}')


class Watch:
    """An open watch."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self.wakes = asyncio.Event()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            if not self.lines:
                self.wakes.clear()
                await self.wakes.wait()
            chunk = bytearray()
            while self.lines and len(chunk) < CHUNK_BYTES:
                chunk += self.lines.popleft()
            await asyncio.sleep(0)
            yield bytes(chunk)
            if chunk.endswith(EXPIRED):
                return

    async def read_error(self, limit: int) -> bytes:
        raise AssertionError("no watch is refused")


class Stored:
    """A collection of an API server."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.history: deque[tuple[int, bytes]] = deque(maxlen=HISTORY)
        self.watches: set[Watch] = set()
        self.lists: dict[str, tuple[int, list[bytes]]] = {}
        """What the pages of the last list have not sent, by their tokens."""

    def tell(self, version: int, line: bytes) -> None:
        self.history.append((version, line))
        for watch in self.watches:
            watch.lines.append(line)
            watch.wakes.set()


class Upstream:
    def __init__(self) -> None:
        self.version = 1
        self.restarts = 0
        """How many of the next continuations of lists are refused, so that the list restarts."""
        self._collections: dict[str, Stored] = {}
        self._created: Counter[tuple[str, str]] = Counter()

    def collection(self, path: str) -> Stored:
        return self._collections.setdefault(path, Stored())

    def put(self, path: str, name: str, fields: Mapping[str, Any], namespace: str = "", **metadata: Any) -> None:
        """Create or change an object."""
        self.version += 1
        key = f"{namespace}/{name}" if namespace else name
        if key not in self.collection(path).objects:
            self._created[path, key] += 1
        again = self._created[path, key] - 1
        uid = f"uid-{key}".replace("/", "-") + (f"-{again}" if again else "")
        metadata = {"name": name, "namespace": namespace, "uid": uid, **metadata}
        obj = msgspec.json.encode({"metadata": {**metadata, "resourceVersion": str(self.version)}, **fields})
        self.put_raw(path, key, obj)

    def put_raw(self, path: str, key: str, obj: bytes) -> None:
        stored = self.collection(path)
        kind = b"MODIFIED" if key in stored.objects else b"ADDED"
        stored.objects[key] = obj
        stored.tell(self.version, b'{"type":"%s","object":%s}\n' % (kind, obj))

    def remove(self, path: str, key: str) -> None:
        stored = self.collection(path)
        if (obj := stored.objects.pop(key, None)) is not None:
            self.version += 1
            stored.tell(self.version, b'{"type":"DELETED","object":%s}\n' % obj)

    def expire(self) -> None:
        """End all watches with 410, after which collections are listed again."""
        for stored in self._collections.values():
            stored.history.clear()
            for watch in stored.watches:
                watch.lines.append(EXPIRED)
                watch.wakes.set()
            stored.watches.clear()

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_options: object) -> Answer:
        await asyncio.sleep(LATENCY_S)
        if path == "/livez":
            return Answer(200, {}, b"ok")
        if path in self._collections:
            asked: dict[str, str] = dict(query)
            return self._page(self._collections[path], int(asked.get("limit", "0")), asked.get("continue", ""))
        base, _, name = path.rpartition("/")
        parent, _, rest = base.partition("/namespaces/")
        namespace, _, plural = rest.partition("/")
        base, key = (f"{parent}/{plural}", f"{namespace}/{name}") if rest else (base, name)
        obj = self.collection(base).objects.get(key)
        if obj is not None:
            return Answer(200, {}, obj)
        missing = {"kind": "Status", "code": 404, "reason": "NotFound", "details": {"name": name}}
        return Answer(404, {}, msgspec.json.encode(missing))

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        raise AssertionError("nothing is created")

    async def delete(
        self, path: str, body: bytes, *, timeout_s: float, sending: Callable[[], None] | None = None
    ) -> Answer:
        raise AssertionError("nothing is deleted")

    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        return await self.get(path, timeout_s=timeout_s)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Watch]:
        return self._watching(self.collection(path), int(dict(query)["resourceVersion"]))

    async def drop(self) -> None:
        raise AssertionError("no connection is lost")

    def _page(self, stored: Stored, size: int, token: str) -> Answer:
        if token and self.restarts:
            self.restarts -= 1
            return _EXPIRED_LIST
        if not token:
            stored.lists.clear()
        version, rest = stored.lists[token] if token else (self.version, [*stored.objects.values()])
        size = size or len(rest)  # without a limit once the pages of a list have expired
        items, rest, following = rest[:size], rest[size:], ""
        if rest:
            following = f"{version}-{len(rest)}"
            stored.lists[following] = version, rest
        metadata = msgspec.json.encode({"resourceVersion": str(version), "continue": following})
        return Answer(200, {}, b'{"metadata":%s,"items":[%s]}' % (metadata, b",".join(items)))

    @asynccontextmanager
    async def _watching(self, stored: Stored, after: int) -> AsyncIterator[Watch]:
        await asyncio.sleep(LATENCY_S)
        watch = Watch()
        stored.watches.add(watch)
        watch.lines.extend(line for version, line in stored.history if version > after)
        watch.wakes.set()
        try:
            yield watch
        finally:
            stored.watches.discard(watch)


def kubeconfig(server: str, expires_at: float) -> str:
    """Return the kubeconfig of a server, as in the data of a Secret, with a token that expires then."""
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": jwt(exp=expires_at)}}],
        "current-context": "c",
    }
    return base64.b64encode(msgspec.json.encode(text)).decode()
