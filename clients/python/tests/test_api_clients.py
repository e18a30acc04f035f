"""API clients against an API server: which credential goes with which request, and what must not stand in its way."""

from __future__ import annotations

import asyncio
import base64
import copy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from kubernetes.aio.client import CoreV1Api as AioCoreV1Api
from kubernetes.client import CoreV1Api

from milo_discovery import (
    CertificateRenewed,
    Cluster,
    ClusterNotFound,
    DiscoveryClient,
    Fleet,
    SyncDiscoveryClient,
    Unavailable,
    _wire,
)
from milo_discovery._access import Access
from milo_discovery._credential import Credential
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._identity import Identity
from milo_discovery._kubernetes_aio import limit

from .kubeconfigs import ControlPlane, control_plane, issued, message
from .messages import cluster, engaged, following, renewed, snapshot
from .scripted import Refusal, ScriptedDaemon

LIFE = timedelta(minutes=10)
DUE, OVER = 0.6 * LIFE, LIFE
ALPHA = Cluster(name="alpha", uid="uid-of-alpha", incarnation="i-1")
EMBEDDED = pb.KUBECONFIG_FORMAT_EMBEDDED
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "away")
OTHER_INCARNATION = Refusal(
    grpc.StatusCode.FAILED_PRECONDITION, "another one", (ErrorInfo(reason="OTHER_INCARNATION"),)
)

Listing = Callable[[], Awaitable[object]]


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with control_plane() as plane:
        yield plane


@asynccontextmanager
async def by_aio(daemon: ScriptedDaemon, whom: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    async with DiscoveryClient(daemon.address) as client, client.api_client(whom) as api:
        yield AioCoreV1Api(api).list_namespace


@asynccontextmanager
async def by_threads_beside_a_loop(daemon: ScriptedDaemon, whom: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    async with DiscoveryClient(daemon.address) as client, client.sync_api_client(whom) as api:
        yield lambda: asyncio.to_thread(CoreV1Api(api).list_namespace)


@asynccontextmanager
async def by_threads(daemon: ScriptedDaemon, whom: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    client = SyncDiscoveryClient(daemon.address)
    opened = client.sync_api_client(whom)
    try:
        api = await asyncio.to_thread(opened.__enter__)
        try:
            yield lambda: asyncio.to_thread(CoreV1Api(api).list_namespace)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)
    finally:
        await asyncio.to_thread(client.close)


@pytest.fixture(params=[by_aio, by_threads_beside_a_loop, by_threads])
def opened(request: pytest.FixtureRequest):
    """Each kind of API client, opened."""
    return request.param


def issues(daemon: ScriptedDaemon) -> list[pb.IssueKubeconfigRequest]:
    return [each for each in daemon.requests if isinstance(each, pb.IssueKubeconfigRequest)]


class TestEachKind:
    async def test_sends_the_token_to_the_server_that_the_kubeconfig_names(self, opened, daemon, plane):
        # Which is trusted by the kubeconfig's authority, under the name that the kubeconfig gives it.
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with opened(daemon) as listing:
            await listing()
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-1"]
        assert issues(daemon) == [pb.IssueKubeconfigRequest(cluster="alpha", format=EMBEDDED)]

    async def test_takes_the_next_token_in_time_and_the_same_client_goes_on(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [
            issued(plane.kubeconfig(token="t-1"), age=OVER),
            issued(plane.kubeconfig(token="t-2"), age=DUE),
            issued(plane.kubeconfig(token="t-3")),
        ]
        async with opened(daemon) as listing:
            while plane.asked_with[-1:] != ["Bearer t-3"]:
                await listing()
        assert "Bearer t-1" not in plane.asked_with
        assert len(issues(daemon)) == 3

    async def test_goes_on_with_a_good_token_while_the_daemon_is_away(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"), age=DUE), AWAY]
        async with opened(daemon) as listing:
            await listing()
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-1"]

    async def test_asks_once_more_with_a_newer_token_when_one_is_refused(self, opened, daemon, plane):
        plane.refused = {"Bearer t-1"}
        daemon.answers["IssueKubeconfig"] = [
            issued(plane.kubeconfig(token="t-1")),
            issued(plane.kubeconfig(token="t-2")),
        ]
        async with opened(daemon) as listing:
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-2"]

    async def test_hands_on_a_refusal_that_no_newer_token_mends(self, opened, daemon, plane):
        plane.refused = {"Bearer t-1"}
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with opened(daemon) as listing:
            with pytest.raises(Exception, match="401"):
                await listing()
        assert plane.asked_with == ["Bearer t-1"]

    async def test_works_with_a_client_certificate(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(**certificate(plane, "first")))]
        async with opened(daemon) as listing:
            await listing()
        assert plane.certificates == ["first"]
        assert plane.asked_with == [None]

    async def test_ignores_proxies_and_passwords_of_the_environment(self, opened, daemon, plane, monkeypatch, tmp_path):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password else\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with opened(daemon) as listing:
            await listing()
        assert plane.asked_with == ["Bearer t-1"]

    async def test_cannot_be_made_while_there_is_no_credential(self, opened, daemon):
        daemon.answers["IssueKubeconfig"] = [AWAY]
        with pytest.raises(Unavailable):
            async with opened(daemon):
                pass


class TestWhichCluster:
    """Given a Cluster, a later one of the same name is another one."""

    async def test_the_incarnation_is_asked_for(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with opened(daemon, ALPHA):
            pass
        assert [each.incarnation for each in issues(daemon)] == ["i-1"]

    async def test_the_same_cluster_at_another_daemon_has_another_incarnation(self, opened, daemon, plane):
        same = pb.GetClusterResponse(
            cluster=cluster("alpha", incarnation="i-2"), engagement=pb.Engagement(engaged=True)
        )
        daemon.answers["IssueKubeconfig"] = [OTHER_INCARNATION, issued(plane.kubeconfig(token="t-1"))]
        daemon.answers["GetCluster"] = [same]
        async with opened(daemon, ALPHA):
            pass
        assert [each.incarnation for each in issues(daemon)] == ["i-1", "i-2"]

    async def test_a_later_one_of_the_same_name_is_not_opened(self, opened, daemon):
        later = pb.GetClusterResponse(
            cluster=cluster("alpha", uid="later", incarnation="i-2"), engagement=pb.Engagement(engaged=True)
        )
        daemon.answers["IssueKubeconfig"] = [OTHER_INCARNATION]
        daemon.answers["GetCluster"] = [later]
        with pytest.raises(ClusterNotFound, match="not engaged any more"):
            async with opened(daemon, ALPHA):
                pass


class TestOfAnEngagedCluster:
    async def test_it_is_fed_by_the_fleet_and_asks_for_nothing(self, client, daemon, plane):
        async with Fleet(client, include_kubeconfigs=True) as fleet:
            stream = await daemon.stream()
            first = engaged("alpha")
            first.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-1")))
            stream.send(snapshot("1", first))
            await fleet.synced()
            alpha = fleet.get("alpha")
            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                await AioCoreV1Api(api).list_namespace()
                second = renewed("alpha", b"")
                second.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-2")))
                stream.send(following("1", "2", second))
                await alpha.renewed(since=_wire.kubeconfig(first.kubeconfig))
                await AioCoreV1Api(api).list_namespace()
                await asyncio.to_thread(CoreV1Api(blocking).list_namespace)
        assert plane.asked_with == ["Bearer t-1", "Bearer t-2", "Bearer t-2"]
        assert daemon.requests == []

    async def test_without_kubeconfigs_in_the_stream_it_asks(self, client, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with Fleet(client) as fleet:
            (await daemon.stream()).send(snapshot("1", engaged(cluster("alpha", incarnation="i-1"))))
            await fleet.synced()
            async with fleet.get("alpha").api_client() as api:
                await AioCoreV1Api(api).list_namespace()
        assert plane.asked_with == ["Bearer t-1"]
        assert issues(daemon) == [pb.IssueKubeconfigRequest(cluster="alpha", format=EMBEDDED, incarnation="i-1")]


async def test_a_configuration_can_be_copied_and_its_copy_stays_fresh(client, daemon, plane):
    """What opens web sockets, for one, wants a client of its own."""
    daemon.answers["IssueKubeconfig"] = [
        issued(plane.kubeconfig(token="t-1"), age=OVER),
        issued(plane.kubeconfig(token="t-2")),
    ]
    async with client.api_client("alpha") as api:
        copied = copy.deepcopy(api.configuration)
        assert (await copied.auth_settings())["BearerToken"]["value"] == "Bearer t-2"


async def test_without_the_package_it_says_what_to_install(client, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("milo_discovery._kubernetes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    monkeypatch.setitem(sys.modules, "kubernetes.aio.client", None)
    with pytest.raises(ImportError, match=r"pip install 'milo-discovery-client\[kubernetes\]'"):
        async with client.api_client("alpha"):
            pass


@pytest.mark.parametrize(
    ("query", "given", "expected"),
    [
        ("watch=True&timeoutSeconds=3600", None, 3630.0),
        ("watch=True&timeoutSeconds=3600", 5, 5),
        ("watch=True", None, None),
        ("timeoutSeconds=3600", None, None),
        ("", (1, 2), aiohttp.ClientTimeout(total=None, sock_connect=1, sock_read=2)),
    ],
)
def test_a_watch_may_last_for_as_long_as_it_says(query, given, expected):
    assert limit(f"https://a/api/v1/namespaces?{query}", given) == expected


def test_when_a_certificate_is_over_another_client_is_needed():
    first, second = (Access(server="https://a", certificate=each, key="k") for each in ("first", "second"))
    now = datetime.now(UTC)
    still_good = Identity(Credential(first, due_at=now, over_at=now + timedelta(hours=1)))
    assert still_good.authorization(second) is None
    over = Identity(Credential(first, due_at=now, over_at=now))
    with pytest.raises(CertificateRenewed, match="make another"):
        over.authorization(second)


def certificate(plane: ControlPlane, name: str) -> dict[str, str]:
    made = plane.authority.issue_cert(f"{name}.test", common_name=name)
    chain = b"".join(each.bytes() for each in made.cert_chain_pems)
    return {
        "client_certificate_data": base64.b64encode(chain).decode(),
        "client_key_data": base64.b64encode(made.private_key_pem.bytes()).decode(),
    }
