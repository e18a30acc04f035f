"""Access to the HTTP pages of an operator, by client address and Host header."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers
from milo_controllers.app import Pages
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
        ("/metrics", "10.0.0.9", "10.0.0.1:8080", 200),
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
