"""Publishing to, and reading from, a NATS server whose answers are nonsense."""

import asyncio
import json
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from milo_objects import nats_source, publisher
from milo_objects.jetstream import NatsOptions, open_session
from milo_objects.nats_source import NatsSource
from milo_objects.publisher import ObjectPublisher
from milo_objects.store import Store
from tests.support.eventually import eventually

from .nats_world import NAMESPACES, Fleet

INFO = json.dumps({"server_id": "x", "version": "2.11.0", "proto": 1, "max_payload": 1 << 20, "headers": True}).encode()
CONFIG = (
    b'{"subjects":["milo.clusters.>","milo.objects.>","milo.publisher"],"max_msgs_per_subject":1,"retention":"limits",'
    b'"discard":"new","max_msgs":-1,"allow_msg_ttl":true}'
)


class NonsenseServer:
    """A NATS server that begins with `info`, and answers each request with `answer`."""

    def __init__(self, info: bytes, answer: bytes) -> None:
        self._info = info
        self._answer = answer
        self.connections = 0
        self.url = ""
        self._open: set[StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["NonsenseServer"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await eventually(lambda: not self._open)

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        writer.write(b"INFO " + self._info + b"\r\n")
        subscribed = b""
        with suppress(ConnectionError, IncompleteReadError):
            while words := (await reader.readline()).split():
                if words[0] == b"PING":
                    writer.write(b"PONG\r\n")
                elif words[0] == b"SUB":
                    subscribed = words[-1]
                elif words[0] in (b"PUB", b"HPUB"):
                    await reader.readexactly(int(words[-1]) + 2)
                    writer.write(b"MSG %s %s %d\r\n%s\r\n" % (words[2], subscribed, len(self._answer), self._answer))
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        self._open.remove(writer)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = nats_source.Backoff(first_s=0.01, cap_s=0.02)
    monkeypatch.setattr(nats_source, "RECONNECT", backoff)
    monkeypatch.setattr(publisher, "RECONNECT", backoff)


@pytest.mark.parametrize(
    ("info", "answer"),
    [
        (b"[]", b"{}"),
        (INFO, b"no JSON"),
        (INFO, b"[]"),
        (INFO, b'{"error":"refused"}'),
        (INFO, b'{"config":null}'),
        (INFO, b"[" * 100_000),
        (INFO, b'{"config":' + CONFIG + b',"state":[]}'),
    ],
    ids=["list", "no JSON", "list as answer", "error", "config", "nested", "state"],
)
async def test_nonsense_of_nats_ends_neither_publisher_nor_reader(info: bytes, answer: bytes) -> None:
    async with NonsenseServer(info, answer).listening() as server:
        options, fleet = NatsOptions(servers=(server.url,)), Fleet()
        await _is_retried(server, ObjectPublisher(fleet, fleet, [NAMESPACES], options).run())
        store = Store(["v1/namespaces"], {}, datetime.now(UTC))
        await _is_retried(server, NatsSource(options).run([NAMESPACES], store))


async def _is_retried(server: NonsenseServer, run: Coroutine[Any, Any, None]) -> None:
    before, running = server.connections, asyncio.create_task(run)
    await eventually(lambda: running.done() or server.connections > before + 1)
    assert not running.done(), running.exception()
    running.cancel()
    await asyncio.wait([running])


async def test_cancellation_at_any_moment_leaves_no_connection_to_nats() -> None:
    async with NonsenseServer(b"[]", b"{}").listening() as server:

        async def connect() -> None:
            async with open_session(NatsOptions(servers=(server.url,)), "test"):
                pass

        for steps in range(60):
            connecting = asyncio.create_task(connect())
            for _ in range(steps):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
