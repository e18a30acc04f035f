"""Access to the HTTP port, and which clients see names of clusters.

The responses themselves are tested with the metrics and the status page.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import cast

import aiohttp
import pytest

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.telemetry import shared_scrape
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.board import StatusBoard
from milo_discoveryd.telemetry.http import CONNECTIONS, HttpEndpoint
from milo_discoveryd.telemetry.journal import Journal, RecentChanges
from milo_discoveryd.telemetry.metrics import MeasuredDaemon, Metrics
from milo_discoveryd.telemetry.status import ClusterQuery, DaemonIdentity, DaemonStatus, when
from milo_discoveryd.wiring.source import set_targets
from milo_kube.http.headers import Headers
from milo_kube.http.server import HttpReply, ServerRequest
from tests.support.eventually import LIMIT_S
from tests.support.sources import new_source


@pytest.fixture
async def address() -> AsyncIterator[str]:
    endpoint = HttpEndpoint(Metrics(), cast(StatusBoard, None), ready=lambda: {"synced": None})
    try:
        yield await endpoint.start("127.0.0.1", 0)
    finally:
        await endpoint.stop()


async def test_sharding_readiness_and_hand_over_have_separate_http_endpoints() -> None:
    problem: str | None = "has not taken over"
    handed_over = asyncio.Event()

    async def wait() -> None:
        await handed_over.wait()

    endpoint = HttpEndpoint(
        Metrics(),
        cast(StatusBoard, None),
        ready=lambda: {"synced": None},
        sharding=lambda: {"sharding": problem},
        handed_over=wait,
    )
    async with AsyncExitStack() as closing, asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        closing.push_async_callback(endpoint.stop)
        url = await endpoint.start("127.0.0.1", 0)
        statuses = [(await session.get(url + path)).status for path in ("/readyz", "/readyz/sharding")]
        assert statuses == [200, 503]
        problem = None
        assert (await session.get(url + "/readyz/sharding")).status == 200
        waiting = asyncio.create_task(session.get(url + "/handed-over"))
        assert (await session.get(url + "/livez")).status == 200
        assert not waiting.done()
        handed_over.set()
        assert (await waiting).status == 200


async def test_daemon_without_a_shard_group_is_ready_and_hands_nothing_over(address: str) -> None:
    async with aiohttp.ClientSession() as session:
        for query in ("", "?verbose"):
            assert (await session.get(address + "/readyz/sharding" + query)).status == 200
        assert (await session.get(address + "/handed-over")).status == 404


async def test_idle_connections_do_not_block_new_ones(address: str) -> None:
    host, _, port = address.removeprefix("http://").rpartition(":")
    async with AsyncExitStack() as closing, asyncio.timeout(LIMIT_S):
        crowd = []
        for _ in range(2 * CONNECTIONS):
            reader, writer = await asyncio.open_connection(host, int(port))
            closing.callback(writer.close)
            crowd.append(reader)
        for oldest in crowd[:CONNECTIONS]:
            assert await oldest.read() == b"", "the server did not close an idle connection"
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/readyz", "/metrics"):
                async with session.get(address + path) as answer:
                    assert answer.status == 200
        assert not crowd[-1].at_eof()


async def test_concurrent_scrapes_share_a_build_of_the_metrics() -> None:
    """A flood of scrapes costs the event loop no more than a single one."""
    endpoint = a_port()
    replies = await asyncio.gather(*(endpoint._answer(request("/metrics")) for _ in range(50)))
    assert len({reply.body for reply in replies}) == 1
    assert b"milo_discoveryd_engaged_clusters 1.0" in replies[0].body
    assert endpoint._scrape.builds == 1
    others = [request("/metrics", peer="127.0.0.1"), request("/metrics")] * 10
    named, unnamed, *_ = await asyncio.gather(*(endpoint._answer(scrape) for scrape in others))
    assert (b"shop" in named.body, b"shop" in unnamed.body) == (True, False)
    assert endpoint._scrape.builds == 3
    await endpoint.stop()


async def test_scrapes_that_accept_different_versions_share_a_build_of_the_metrics() -> None:
    endpoint = a_port()
    accepted = [f"application/openmetrics-text; version=9.{number}; escaping=values" for number in range(50)]
    accepted += [f"text/plain; version=2.{number}" for number in range(50)]
    replies = await asyncio.gather(*(endpoint._answer(request("/metrics", accept=accept)) for accept in accepted))
    assert endpoint._scrape.builds == 2
    assert {reply.content_type.partition(" charset")[0] for reply in replies} == {
        "application/openmetrics-text; version=1.0.0;",
        "text/plain; version=0.0.4;",
    }
    await endpoint.stop()


def test_pause_between_metrics_builds_is_nine_times_the_build_time_and_bounded() -> None:
    assert shared_scrape.pause_s(0.02) == pytest.approx(0.18)
    assert shared_scrape.pause_s(1.0) == 2.0


async def test_failed_build_of_metrics_fails_only_the_scrapes_that_wait_for_it() -> None:
    scrape = shared_scrape.SharedScrape(lambda _: ())
    form = shared_scrape.ScrapeForm("text", with_names=False)
    with pytest.raises(ZeroDivisionError):
        await scrape.read(form, lambda _: bytes(1 // 0))
    assert await scrape.read(form, lambda _: b"good") == b"good"
    await scrape.stop()


async def test_scrapes_are_canceled_when_the_port_is_closed() -> None:
    scrape = shared_scrape.SharedScrape(lambda _: ())
    reading = asyncio.create_task(scrape.read(shared_scrape.ScrapeForm("text", with_names=False), lambda _: b"never"))
    await asyncio.sleep(0)
    await scrape.stop()
    with pytest.raises(asyncio.CancelledError):
        await reading


def request(path: str, *, host: str = "127.0.0.1:9464", peer: str = "10.0.0.9", accept: str = "") -> ServerRequest:
    headers = Headers()
    headers.add(b"Host", host.encode())
    headers.add(b"Accept", accept.encode())
    return ServerRequest(path=path, query={"json": ""}, headers=headers, peer=peer)


def a_port(names_for: str = "loopback", hosts: Sequence[str] = ()) -> HttpEndpoint:
    """Return the HTTP endpoint of a daemon with one cluster, `shop`, which an issuer's failure names."""
    fleet = Fleet(ChangeLog(lambda _: b"", Retention()))
    source = new_source(Journal(Metrics().sources, Audit(Metrics().audit)), fleet=fleet)
    set_targets(source, [Target(name="shop", uid="u", place=("https://shop.test",), organization="acme")], 0.0)
    metrics = Metrics()
    metrics.follow(MeasuredDaemon(fleet=fleet, cluster_cap=10))
    health = IssuerHealth(name="exec", type="exec", problem="the plugin failed for shop", expires_at=None, leases=0)
    identity = DaemonIdentity(version="1", mode="single", host="h", epoch="e", started_at=when(0.0))
    board = StatusBoard(
        identity,
        fleet,
        RecentChanges(),
        subscribers=lambda: (),
        credentials=lambda: [health],
        credential_of=lambda _: None,
    )
    return HttpEndpoint(metrics, board, ready=lambda: {"synced": None}, names_for=names_for, hosts=hosts)


@pytest.mark.parametrize(
    ("names_for", "peer", "shown"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "::1", True),
        ("loopback", "::ffff:127.0.0.1", True),
        ("loopback", "10.0.0.9", False),
        ("loopback", "127.0.0.6", False),
        ("everyone", "10.0.0.9", True),
        ("nobody", "127.0.0.1", False),
    ],
)
@pytest.mark.parametrize("path", ["/", "/metrics"])
async def test_http_names_setting_decides_which_peers_see_cluster_names(
    path: str, names_for: str, peer: str, shown: bool
) -> None:
    response = await a_port(names_for)._answer(request(path, peer=peer))
    assert isinstance(response, HttpReply)
    assert response.status == 200
    assert (b"shop" in response.body) == shown
    assert b"engaged" in response.body


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:9464", True),
        ("10.1.2.3", True),
        ("[fd00::1]:9464", True),
        ("localhost:9464", True),
        ("milo-discoveryd:9464", True),
        ("milo-discoveryd.operators.svc:9464", True),
        ("Metrics.Example.com:9464", True),
        ("", True),
        ("attacker.test:9464", False),
        ("metrics.example.com.attacker.test", False),
        ("svc.attacker.test", False),
        ("[::1].attacker.test", False),
        ("127.0.0.1.attacker.test", False),
        ("attacker.test.", False),
    ],
)
async def test_host_header_of_another_site_is_refused(host: str, is_ours: bool) -> None:
    port = a_port(hosts=["metrics.example.com"])
    for path in ("/", "/metrics"):
        assert (await port._answer(request(path, host=host))).status == (200 if is_ours else 421)
    for path in ("/livez", "/readyz"):  # a kubelet may send any Host header, and these paths show no names
        assert (await port._answer(request(path, host=host))).status == 200


async def test_status_requests_are_answered_one_at_a_time_in_a_tenth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = a_port("everyone")
    status, running, most = endpoint._board.status, 0, 0

    async def slow(question: ClusterQuery, *, with_names: bool) -> DaemonStatus:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return await status(question, with_names=with_names)

    monkeypatch.setattr(endpoint._board, "status", slow)
    began = time.monotonic()
    answers = await asyncio.gather(*(endpoint._answer(request("/")) for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    assert most == 1
    assert time.monotonic() - began >= 3 * (0.02 + 9 * 0.02)


@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
async def test_metrics_are_served_for_an_accept_header_with_an_invalid_version(address: str, kind: str) -> None:
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"{address}/metrics", headers={"Accept": f"{kind}; version=new; escaping=none"})
        assert (answer.status, answer.content_type) == (200, "text/plain")
