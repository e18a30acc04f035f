"""Half-open connections: each end detects that the network drops everything.

Timeouts are divided by twenty, which leaves a busy machine enough time to answer pings.
"""

import asyncio
from pathlib import Path

import grpc
import pytest

from milo_discovery import DiscoveryClient
from milo_discovery import _channel as client_library
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.server import server
from milo_discoveryd.server.connections.listener import Listener, UnixSocket
from tests.integration.grpc_server.conftest import a_harness, ready
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

BIG = 200_000
NARROW = (("grpc.http2.bdp_probe", 0),)
MOST_BETWEEN = 500_000
"""Bytes that are buffered between the server and a client that reads nothing."""
OLD_PATIENCE_S = 60.0
"""gRPC's default ping timeout, which applies without options of the daemon or the client."""


def twentieth(options: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (name, value // 20 if name.endswith("_ms") and "backoff" not in name else value) for name, value in options
    )


async def test_half_open_stream_is_closed_by_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "OPTIONS", twentieth(server.OPTIONS))
    async with (
        a_harness(tmp_path, heartbeat_s=0.2) as harness,
        TcpProxy(harness.address.removeprefix("unix:")) as proxy,
    ):
        harness.listed(ready("alpha"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
            call = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest())
            await call.read()
            assert len(harness.service.streams) == 1
            async with proxy.swallowing():
                await eventually(lambda: not harness.service.streams, within_s=OLD_PATIENCE_S / 2)


@pytest.mark.parametrize("peer_credentials", [False, True], ids=["plain", "guarded"])
async def test_f44_only_the_half_open_stream_is_closed_under_load(
    peer_credentials: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other subscribers receive each change while the half-open stream is still waiting."""
    monkeypatch.setattr(server, "OPTIONS", twentieth(server.OPTIONS))
    listener = Listener(name="here", address=UnixSocket(tmp_path / "d.sock"), peer_credentials=peer_credentials)
    async with a_harness(tmp_path, listeners=[listener]) as harness, TcpProxy(str(tmp_path / "d.sock")) as proxy:
        harness.listed(ready("alpha"))
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}", options=NARROW) as channel,
            harness.subscriber() as one,
            harness.subscriber() as other,
        ):
            call = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest())
            await call.read()
            for subscriber in (one, other):
                await subscriber.until_synced()
            event_texts = 0
            async with proxy.swallowing(), asyncio.timeout(OLD_PATIENCE_S / 2):
                while len(harness.service.streams) == 3:
                    event_texts += 1
                    harness.seen(ready("alpha", version=f"{event_texts + 1}", note=f"{event_texts}".ljust(BIG, "x")))
                    assert [await subscriber.events() for subscriber in (one, other)] == [["UPDATED alpha"]] * 2
        assert event_texts * BIG > 2 * MOST_BETWEEN
        assert proxy.swallowed < MOST_BETWEEN


async def test_client_abandons_half_open_connection_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client_library, "CHANNEL_OPTIONS", twentieth(client_library.CHANNEL_OPTIONS))
    async with a_harness(tmp_path) as harness, TcpProxy(harness.address.removeprefix("unix:")) as proxy:
        harness.listed(ready("alpha"))
        async with DiscoveryClient(f"127.0.0.1:{proxy.port}") as client, asyncio.timeout(OLD_PATIENCE_S / 2):
            watch = client.watch()
            assert (await anext(watch)).cluster.name == "alpha"
            async with proxy.swallowing():
                harness.seen(ready("beta", version="2"))
                await eventually(lambda: proxy.swallowed)
            assert (await anext(watch)).cluster.name == "beta"
