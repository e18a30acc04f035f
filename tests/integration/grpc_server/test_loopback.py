"""Listeners without TLS on loopback."""

import asyncio
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
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint
from milo_kube.addresses import bracketed
from tests.integration.grpc_server.conftest import a_harness, ready
from tests.integration.grpc_server.test_peer_credentials import acceptor, callers, has_ended
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


async def test_connections_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    async with a_harness(tmp_path, listeners=[LOCALHOST]) as harness:
        port = port_of(harness.server.addresses[0])
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)]
            await eventually(lambda: sum(map(has_ended, clients)) == 2)
            assert len(acceptor(harness)) == LOCALHOST.connections
        await eventually(lambda: len(acceptor(harness)) == 0)
        await asyncio.to_thread(socket.create_connection(("127.0.0.1", port)).close)
    assert "connection limit (3) of the listener reached" in str(harness.audited)
