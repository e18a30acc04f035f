"""An API server, or a proxy in front of it, that answers every request with broken HTTP or JSON for a while.

The driver continues, disengages nothing, and recovers.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.model.resource import WatchedCollection
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import PROJECTS, ProjectObjects
from milo_discoveryd.sources.reading import KubeObject
from milo_discoveryd.watchers.driver import Driver
from milo_discoveryd.watchers.transport import Transport
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from milo_kube.reflect.wire import Decoder
from tests.integration.watchers.test_driver import PATH, QUICK, Ledger, bookmark, line, project
from tests.integration.watchers.test_transport_faults import nobody
from tests.support.eventually import eventually
from tests.support.sources import new_source

OK = b"HTTP/1.1 200 OK\r\n"
ENDS = OK + b"Connection: close\r\n\r\n"
BROKEN_FOR = 4
"""Number of requests with broken responses: lists, watches and retries."""


def sized(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body


BROKEN: dict[str, bytes] = {
    "no answer": b"",
    "empty lines": b"\r\n" * 100,
    "HTTP 0.9": b"<html>hello</html>",
    "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "random bytes": bytes(number * 31 % 256 for number in range(4000)),
    "status of five digits": b"HTTP/1.1 99999 OK\r\n\r\n",
    "status in words": b"HTTP/1.1 fine OK\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "length below zero": OK + b"Content-Length: -1\r\n\r\n",
    "length of forty digits": OK + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "body that is too short": OK + b"Content-Length: 100\r\n\r\n{",
    "chunk size in words": chunked(b"zz\r\n{}\r\n"),
    "chunk size of twenty digits": chunked(b"F" * 20 + b"\r\n{}"),
    "chunk without an end": chunked(b"2\r\n{}0\r\n"),
    "chunks that are cut off": chunked(b"5\r\n{"),
    "endless headers": OK + b"X: y\r\n" * 100_000,
    "one long header": OK + b"X: " + b"x" * 1_000_000,
    "header with NUL": OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "folded header": OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "header without a colon": OK + b"nonsense\r\n\r\n",
    "endless 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    "switched protocols": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "redirect elsewhere": b"HTTP/1.1 301 Moved\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n",
    "redirect to itself": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "proxy authentication": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
    "error page of a mebibyte": sized(b"<html>" * 180_000, b"HTTP/1.1 502 Bad Gateway\r\n"),
    "unknown encoding": sized(b"{}", OK + b"Content-Encoding: br\r\n"),
    "invalid gzip": sized(b"{}", OK + b"Content-Encoding: gzip\r\n"),
    "gzip that is cut off": sized(gzip.compress(b"{}", mtime=0)[:12], OK + b"Content-Encoding: gzip\r\n"),
    "empty body": sized(b""),
    "null": sized(b"null"),
    "an array": sized(b"[]"),
    "a page of HTML": sized(b"<html>log in</html>", OK + b"Content-Type: text/html\r\n"),
    "nested JSON": sized(b"[" * 100_000),
    "invalid UTF-8": sized(b'{"metadata":{"resourceVersion":"7\xff"},"items":[]}'),
    "items that are a number": sized(b'{"metadata":{"resourceVersion":"7"},"items":7}'),
    "items that are null and a number": sized(b'{"metadata":{"resourceVersion":"7"},"items":[null,7]}'),
    "half a list": ENDS + b'{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"na',
    "junk after a list": sized(b'{"metadata":{"resourceVersion":"7"},"items":[]}junk'),
}


class ApiServer:
    """An API server with scripted bytes: two projects, a third one later, and broken responses in between."""

    def __init__(self, broken: bytes) -> None:
        self._broken = broken
        self._is_broken = asyncio.Event()
        self.broken_answers = 0
        self.names = ["alpha", "beta"]

    def break_down(self) -> None:
        """Answer with broken bytes from now on, and end the open watch."""
        self._is_broken.set()

    def recover(self) -> None:
        self._is_broken.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            if self._is_broken.is_set():
                self.broken_answers += 1
                writer.write(self._broken)
                await writer.drain()
            elif "watch=" in target:
                await self._watch(writer)
            else:
                writer.write(sized(self._answer(target)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, target: str) -> bytes:
        path = target.partition("?")[0]
        if path == PATH:
            items = [project(name, 1) for name in self.names]
            return json.dumps({"metadata": {"resourceVersion": "10"}, "items": items}).encode()
        return b"ok" if path == "/livez" else json.dumps(project(path.rpartition("/")[2], 1)).encode()

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        lines = (line("ADDED", project(name, 1 if name != "gamma" else 10)) for name in self.names)
        writer.write(ENDS + b"".join(lines) + bookmark(10))
        await writer.drain()
        await self._is_broken.wait()


@asynccontextmanager
async def followed(api: ApiServer) -> AsyncIterator[tuple[ClusterSource, Ledger]]:
    """Run the API server, and a driver that follows it."""
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(api.serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ledger, pending = Ledger(), PendingDeletions(lambda: 0.0, backoff=QUICK)
    source = new_source(ledger, pending_deletions=pending)
    mode = ProjectObjects(SourceOptions(project_server="https://milo.test"))
    transport = Transport(nobody(url))
    driver = Driver(
        transport,
        WatchedCollection(PROJECTS),
        decoder=Decoder(KubeObject, mode.observe, Malformed),
        reflector=Reflector(
            ReflectorPolicy(backoff=QUICK, streaming_lists=False), lambda: 0.0, asyncio.get_running_loop().time()
        ),
        source=source,
        collection=source.collections[0],
        connect_timeout_s=10.0,
        request_timeout_s=10.0,
    )
    running = asyncio.create_task(driver.run())
    try:
        yield source, ledger
        assert not running.done(), "the driver ended"
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await transport.aclose()
        server.close()
        for task in [*serving]:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def _encoded(_: Any) -> bytes:
    return b""


@pytest.mark.parametrize("kind", BROKEN)
async def test_source_recovers_from_broken_responses_and_disengages_nothing(kind: str) -> None:
    api = ApiServer(BROKEN[kind])
    async with followed(api) as (source, ledger):
        await eventually(lambda: source.status.state is ViewState.STREAMING)
        assert sorted(ledger.events) == ["ENGAGED alpha", "ENGAGED beta"]
        api.break_down()
        await eventually(lambda: api.broken_answers >= BROKEN_FOR)
        await eventually(lambda: source.status.state is ViewState.STALE)
        api.names.append("gamma")
        api.recover()
        await eventually(lambda: source.status.state is ViewState.STREAMING and "ENGAGED gamma" in ledger.events)
        assert not [event for event in ledger.events if "DISENGAGED" in event]
