"""Access to the HTTP pages of an operator, by client address and Host header."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from milo_controllers import Controllers
from milo_controllers.app import Pages
from milo_controllers.health import FailingObject
from milo_discovery import Fleet
from milo_discovery.testing import FakeDiscovery
from milo_kube.http.headers import Headers
from milo_kube.http.server import ServerRequest


@pytest.mark.parametrize(
    ("path", "peer", "host", "status"),
    [
        ("/debug/objects", "127.0.0.1", "localhost:8080", 200),
        ("/debug/health", "::1", "[::1]:8080", 200),
        ("/debug/objects", "10.0.0.9", "10.0.0.1:8080", 403),
        ("/debug/health", "127.0.0.6", "10.0.0.1:8080", 403),
        ("/debug/objects", "127.0.0.1", "attacker.example", 421),
        ("/debug/health", "10.0.0.9", "operator.example.com", 403),
        ("/metrics", "10.0.0.9", "10.0.0.1:8080", 200),
        ("/metrics", "10.0.0.9", "operator.example.com:8080", 200),
        ("/metrics", "127.0.0.1", "attacker.example:8080", 421),
        ("/livez", "10.0.0.9", "attacker.example", 200),
        ("/readyz", "10.0.0.9", "attacker.example", 503),
    ],
)
async def test_debug_pages_require_a_loopback_peer_and_a_known_host_header(
    path: str, peer: str, host: str, status: int
) -> None:
    pages = Pages(Controllers(Fleet(FakeDiscovery()), registry=CollectorRegistry()))
    headers = Headers()
    headers.add(b"Host", host.encode())
    reply = await pages.answer(ServerRequest(path, {}, headers, peer))
    assert reply.status == status


async def test_failing_objects_of_which_there_are_many_are_read_in_a_thread() -> None:
    class Failing(Controllers):
        def failing(self) -> Iterator[FailingObject]:
            threads.add(threading.get_ident())
            now = datetime.now(UTC)
            for cluster in ("alpha", "beta"):
                about: dict[str, Any] = {
                    "namespace": "",
                    "name": "a",
                    "error": "no",
                    "attempts": 1,
                    "since": now,
                    "next_try": None,
                }
                yield FailingObject(controller="widgets", cluster=cluster, **about)

    threads: set[int] = set()
    pages = Pages(Failing(Fleet(FakeDiscovery()), registry=CollectorRegistry()))
    headers = Headers()
    headers.add(b"Host", b"localhost")
    reply = await pages.answer(ServerRequest("/debug/objects", {"cluster": "beta"}, headers, "127.0.0.1"))
    [found] = msgspec.json.decode(reply.body)
    assert (found["cluster"], found["error"], found["next_try"]) == ("beta", "no", None)
    assert threading.get_ident() not in threads


async def test_metrics_are_shown_while_reconcilers_occupy_the_threads_of_asyncio() -> None:
    may_end, threads = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    waiting = asyncio.create_task(asyncio.to_thread(may_end.wait, 60))
    await asyncio.sleep(0)
    pages = Pages(Controllers(Fleet(FakeDiscovery()), registry=CollectorRegistry()))
    headers = Headers()
    headers.add(b"Host", b"localhost")
    try:
        async with asyncio.timeout(10):
            assert (await pages.answer(ServerRequest("/metrics", {}, headers, "127.0.0.1"))).status == 200
        assert not waiting.done()
    finally:
        may_end.set()
        await waiting


@pytest.mark.parametrize("error", [SystemExit("a library"), asyncio.CancelledError(), GeneratorExit()], ids=repr)
async def test_collector_of_the_author_that_raises_no_exception_fails_its_request_alone(error: BaseException) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise error

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())
    pages = Pages(Controllers(Fleet(FakeDiscovery()), registry=registry))
    headers = Headers()
    headers.add(b"Host", b"localhost")
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await pages.answer(ServerRequest("/metrics", {}, headers, "127.0.0.1"))
