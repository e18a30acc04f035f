"""Listeners without TLS on loopback."""

import socket
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.rights import Grant, Rights, RightsRule
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from milo_discoveryd.server.connections import connection_rates
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint
from milo_kube.addresses import bracketed
from milo_kube.rate_limit import Rate
from tests.integration.grpc_server.conftest import Subscriber, a_harness, ready
from tests.integration.grpc_server.test_peer_credentials import callers, has_ended
from tests.support.eventually import eventually
from tests.support.ports import loopback_addresses

__all__ = ["callers"]
LOCALHOST = Listener(name="net", address=TcpEndpoint("localhost", 0), connections=3)


def port_of(address: str) -> int:
    return int(address.removeprefix("localhost:"))


async def test_caller_is_known_by_listener_and_address(callers: list[Caller], tmp_path: Path) -> None:
    async with a_harness(tmp_path, listeners=[LOCALHOST]) as harness:
        harness.listed(ready("alpha"))
        [address] = harness.server.addresses
        hosts = [bracketed(host) for host in loopback_addresses()]
        for host in hosts:
            async with grpc.aio.insecure_channel(f"{host}:{port_of(address)}") as channel:
                await DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest())
    assert [(caller.listener, caller.peer.rpartition(":")[0], caller.over_tcp) for caller in callers] == [
        ("net", f"{'ipv6' if ':' in host else 'ipv4'}:{host}", True) for host in hosts
    ]


async def test_refused_call_is_audited_with_the_address_of_its_caller(tmp_path: Path) -> None:
    rule = RightsRule(CallerSelector(listeners=frozenset({"other"})), Grant(rule="others", scope=ALL_CLUSTERS))
    async with a_harness(tmp_path, listeners=[LOCALHOST], rights=Rights((rule,))) as harness:
        [address] = harness.server.addresses
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_of(address)}") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                await DiscoveryServiceStub(channel).ListClusters(pb.ListClustersRequest())
    [line] = harness.audited
    assert line["caller"]["peer"].startswith("ipv4:127.0.0.1:")


async def test_connection_beyond_the_limit_replaces_the_one_that_has_been_idle_for_longest(tmp_path: Path) -> None:
    """Nobody knows whose connections they are: those of one process must not lock out another."""
    async with a_harness(tmp_path, listeners=[LOCALHOST]) as harness:
        harness.listed(ready("alpha"))
        port = port_of(harness.server.addresses[0])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            subscriber = Subscriber(DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest()))
            await subscriber.until_synced()
            with ExitStack() as stack:
                clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)]
                await eventually(lambda: [has_ended(client) for client in clients] == [True] * 3 + [False] * 2)
                harness.seen(ready("beta"))
                assert await subscriber.events() == ["ENGAGED beta"], "the stream lost its connection"
    assert "a caller with fewer connections" in str(harness.audited)


async def test_caller_with_too_many_refused_calls_loses_its_connection_and_no_other_caller_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection_rates, "REFUSED_CALL_RATE", Rate(per_second=0.001, burst=20.0))
    rule = RightsRule(CallerSelector(listeners=frozenset({"other"})), Grant(rule="others", scope=ALL_CLUSTERS))
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with a_harness(tmp_path, listeners=[LOCALHOST], rights=Rights((rule,))) as harness:
        address = f"127.0.0.1:{port_of(harness.server.addresses[0])}"
        async with (
            grpc.aio.insecure_channel(address, options) as one,
            grpc.aio.insecure_channel(address, options) as two,
        ):
            calls = [DiscoveryServiceStub(one).ListClusters(pb.ListClustersRequest()) for _ in range(60)]
            codes = [await call.code() for call in calls]
            assert grpc.StatusCode.UNAVAILABLE in codes, "the connection was not closed"
            other = DiscoveryServiceStub(two).ListClusters(pb.ListClustersRequest())
            assert await other.code() is grpc.StatusCode.PERMISSION_DENIED
