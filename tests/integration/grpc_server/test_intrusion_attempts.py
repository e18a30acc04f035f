"""Intrusion attempts: each is denied and audited, and reveals nothing."""

import asyncio
import datetime as dt
import json
import os
import socket
import ssl
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.rights import Grant, Rights, RightsRule
from milo_discoveryd.rights.scope import ALL_CLUSTERS, ClusterScope
from milo_discoveryd.server.connections.listener import Listener, TcpEndpoint, UnixSocket
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectObjects
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL
from tests.integration.grpc_server.callers import RulesHarness, error_fields, form, open_rules_harness, rule
from tests.integration.grpc_server.conftest import Harness, a_harness, event_texts, ready
from tests.integration.grpc_server.test_tls import TlsFiles
from tests.support.certificates import Authority, Pair
from tests.unit.sources.objects import project

__all__ = ["form"]

FRIEND = "spiffe://example.com/ns/milo/sa/operator"
THEIRS = ("zz-name", "zz-label", "zz-uid", "zz-organization")
"""Values of a cluster that no intruder may see. Some intruders may see the other cluster, `ours`."""


def ours_and_theirs(harness: Harness) -> None:
    harness.listed(ready("ours", env="prod"), ready("zz-name", uid="zz-uid", env="zz-label"))


class Intruder:
    """A client that calls five methods of the service and records all responses."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = DiscoveryServiceStub(channel)
        self.heard: list[str] = []

    async def denials(self) -> set[tuple[grpc.StatusCode, str]]:
        """Return the distinct status codes and reasons of all responses."""
        name = THEIRS[0]
        requests = [
            self._stub.ListClusters(pb.ListClustersRequest()),
            self._stub.GetCluster(pb.GetClusterRequest(name=name)),
            self._stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name)),
            self._stub.GetServerInfo(pb.GetServerInfoRequest()),
            self._stub.WatchClusters(pb.WatchClustersRequest(filter=pb.ClusterFilter(names=[name]))).read(),
        ]
        found = set()
        for asked in requests:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                self.heard.append(str(await asked))
            self.heard.append(
                f"{caught.value} {caught.value.trailing_metadata()}".replace(f"{name} ", "the requested name ")
            )
            has_status = any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata() or ())
            found.add((caught.value.code(), error_fields(caught.value)[1] if has_status else ""))
        return found

    @property
    def learned(self) -> list[str]:
        return [word for word in (*THEIRS, "ours") for text in self.heard if word in text]


def for_san(name: str, *sans: str, scope: ClusterScope = ALL_CLUSTERS) -> RightsRule:
    return RightsRule(CallerSelector(sans=sans), Grant(rule=name, scope=scope))


@asynccontextmanager
async def at_the_network(directory: Path, *rules: RightsRule) -> AsyncIterator[tuple[Harness, TlsFiles]]:
    tls_files = TlsFiles(directory)
    listener = Listener(name="net", address=TcpEndpoint("127.0.0.1", 0), tls=tls_files.tls)
    async with a_harness(directory, listeners=[listener], rights=Rights(rules)) as harness:
        [harness.address] = harness.server.addresses
        ours_and_theirs(harness)
        yield harness, tls_files


@asynccontextmanager
async def intruder(harness: Harness, tls_files: TlsFiles, pair: Pair) -> AsyncIterator[Intruder]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(harness.address, tls_files.credentials(pair), options=options) as channel:
        yield Intruder(channel)


# --- network ---


@pytest.mark.parametrize("wrong", ["another CA", "expired"])
async def test_connection_with_invalid_client_certificate_receives_no_bytes(tmp_path: Path, wrong: str) -> None:
    async with at_the_network(tmp_path, for_san("friends", f"uri:{FRIEND}")) as (harness, tls_files):
        san = x509.UniformResourceIdentifier(FRIEND)
        pair, why = {
            "another CA": (Authority("clients").issue(san), "certificate verify failed"),
            "expired": (tls_files.ca.issue(san, life=-dt.timedelta(minutes=1)), "certificate has expired"),
        }[wrong]
        async with intruder(harness, tls_files, pair) as calling:
            assert await calling.denials() == {(grpc.StatusCode.UNAVAILABLE, "")}
        assert calling.learned == []
        assert await asyncio.to_thread(bytes_received_with, harness, tls_files, pair) == b"", (
            "a TLS alert or HTTP/2 settings were received"
        )
    assert {line["reason"] for line in harness.audited} == {"CONNECTION_REFUSED"}
    assert all(why in line["problem"] for line in harness.audited)


def bytes_received_with(harness: Harness, tls_files: TlsFiles, pair: Pair) -> bytes:
    """Return the bytes that a client with this certificate receives first; none if the server refuses it."""
    context = ssl.create_default_context(cadata=tls_files.serving.pem.decode())
    context.load_cert_chain(*pair.write(tls_files.directory, "intruder"))
    host, _, port = harness.address.partition(":")
    plain = socket.create_connection((host, int(port)), timeout=20)
    with closing(context.wrap_socket(plain, server_hostname="localhost")) as connected:
        try:
            return connected.recv(65_536)
        except (ssl.SSLError, ConnectionError):
            return b""


WRONG_SANS = {
    "another": x509.UniformResourceIdentifier("spiffe://example.com/ns/evil/sa/operator"),
    "a longer one": x509.UniformResourceIdentifier(f"{FRIEND}-2"),
    "a directory above": x509.UniformResourceIdentifier("spiffe://example.com/ns/milo"),
    "another case": x509.UniformResourceIdentifier(FRIEND.upper()),
    "escaped": x509.UniformResourceIdentifier(FRIEND.replace("/ns/", "/%6Es/")),
    "up and down": x509.UniformResourceIdentifier("spiffe://example.com/ns/other/../milo/sa/operator"),
    "of another kind": x509.DNSName(FRIEND),
    "for anybody": x509.DNSName("*.example.com"),
}


@pytest.mark.parametrize("wrong", WRONG_SANS)
async def test_client_certificate_with_unmatched_san_is_denied(tmp_path: Path, wrong: str) -> None:
    friends = for_san("friends", f"uri:{FRIEND}", "uri:spiffe://example.com/ns/shop/*", "dns:operator.example.com")
    async with at_the_network(tmp_path, friends) as (harness, tls_files):
        pair = tls_files.ca.issue(WRONG_SANS[wrong], common_name="operator.example.com")
        async with intruder(harness, tls_files, pair) as calling:
            assert await calling.denials() == {(grpc.StatusCode.PERMISSION_DENIED, "NO_RULE")}
        assert calling.learned == []
    assert [line["reason"] for line in harness.audited] == ["NO_RULE"] * 5
    assert all(line["caller"]["sans"] for line in harness.audited)


# --- local users ---

AS_ANOTHER = """
import asyncio, json, os, sys
import grpc
from tests.integration.grpc_server.test_intrusion_attempts import Intruder
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        calling = Intruder(channel)
        refusals = await calling.denials()
        print(json.dumps([sorted([code.name, reason] for code, reason in refusals), calling.learned]))
asyncio.run(main())
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter, unlike pytest's temporary ones."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_peer_with_unmatched_uid_is_denied(open_directory: Path) -> None:
    us = RightsRule(CallerSelector(uids=frozenset({os.getuid()})), Grant(rule="us", scope=ALL_CLUSTERS))
    listener = Listener(name="local", address=UnixSocket(open_directory / "d.sock", 0o666), peer_credentials=True)
    async with a_harness(open_directory, listeners=[listener], rights=Rights((us,))) as harness:
        ours_and_theirs(harness)
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", AS_ANOTHER, harness.address, "1001", stdout=PIPE
        )
        output, _ = await client.communicate()
        assert json.loads(output) == [[["PERMISSION_DENIED", "NO_RULE"]], []]
    assert {(line["reason"], line["caller"]["uid"]) for line in harness.audited} == {("NO_RULE", 1001)}
    assert len(harness.audited) == 5


# --- tenants ---


async def never_seen(stub: Any, name: str) -> str:
    """Return the message of a NOT_FOUND response with reason NEVER_SEEN."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetCluster(pb.GetClusterRequest(name=name))
    code, reason, words, _ = error_fields(caught.value)
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NEVER_SEEN")
    return words


PROJECTS = ProjectObjects(SourceOptions(project_server="https://api.test"))


def of_organization(organization: str, name: str, *, owner: str = "", **labels: str) -> Any:
    spec = {"ownerRef": {"kind": "Organization", "name": owner or organization}}
    return PROJECTS.observe(project(name, spec=spec, labels={ORGANIZATION_LABEL: organization, **labels}))


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[RulesHarness]:
    """Yield a server with a caller whose scope is an organization, and one whose scope is a name pattern."""
    by_organization = rule("shop", ClusterScope(organizations=frozenset({"shop"})))
    by_name = rule("bank", ClusterScope(names=name_patterns(["bank-*"])))
    async with open_rules_harness(tmp_path, by_organization, by_name, rule("root", ALL_CLUSTERS)) as made:
        made.harness.listed(of_organization("shop", "ours"), of_organization("zz-organization", "theirs"))
        yield made


async def test_forged_owner_of_a_project_does_not_change_its_organization(shop: RulesHarness) -> None:
    async with shop.caller("shop") as guest, guest.watching() as mine:
        assert event_texts(await mine.until_synced()) == ["ENGAGED ours"]
        forged = of_organization("zz-organization", "theirs", owner="shop", organization_name="shop")
        shop.harness.seen(forged)
        shop.harness.seen(of_organization("shop", "ours", n="1"))
        assert await mine.events() == ["UPDATED ours"]
        await never_seen(guest.stub, "theirs")
    assert shop.denials() == [("shop", "NEVER_SEEN")]


@pytest.mark.parametrize(
    "name", ["..%2e", "bank-..%2e", "bank-/../ours", "bank-%2e%2e", "bank-\r\nX-Evil: 1", "bank-*"]
)
async def test_project_with_a_hostile_name_is_never_engaged(shop: RulesHarness, name: str) -> None:
    async with shop.caller("bank") as guest, guest.watching() as mine, shop.caller("root") as root:
        assert event_texts(await mine.until_synced()) == []
        shop.harness.seen(of_organization("zz-organization", name))
        shop.harness.seen(of_organization("zz-organization", "bank-well"))
        assert await mine.events() == ["ENGAGED bank-well"], "another event came before this one"
        covered = name.startswith("bank-")
        for caller, may_see in ((guest, covered), (root, True)):
            if may_see:
                answer = await caller.stub.GetCluster(pb.GetClusterRequest(name=name))
                assert answer.engagement.reason == pb.Engagement.REASON_MALFORMED
                assert not answer.HasField("cluster")
            else:
                hidden, absent = [await never_seen(caller.stub, asked) for asked in (name, "zz-never")]
                assert hidden.replace(name, "zz-never") == absent
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name))
            assert error_fields(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_ENGAGED")
        mine_of, of_root = [
            (await caller.stub.GetServerInfo(pb.GetServerInfoRequest())).counts.malformed for caller in (guest, root)
        ]
        assert (mine_of, of_root) == (int(covered), 1)
    assert shop.denials()[-1:] == [("bank", "NOT_ENGAGED")]
    assert [line["cluster"] for line in shop.harness.audited if line["event"] == "object refused"] == [name]
    state = {"state": "malformed"} | ({"source": ""} if shop.harness.has_rival else {})
    assert shop.harness.metrics.registry.get_sample_value("milo_discoveryd_known_clusters", state) == 1
