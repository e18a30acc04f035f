"""Tests of Kubernetes API clients: credentials per request, renewals, redirects, and shared connections."""

from __future__ import annotations

import asyncio
import base64
import copy
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from types import MethodType, SimpleNamespace

import aiohttp
import grpc
import kubernetes.aio.client
import kubernetes.aio.watch
import kubernetes.client
import kubernetes.stream
import kubernetes.watch
import pytest
import websocket
from google.rpc.error_details_pb2 import ErrorInfo
from kubernetes.aio.stream import WsApiClient
from urllib3.connection import HTTPSConnection

from milo_discovery import (
    CertificateRenewed,
    Cluster,
    ClusterNotFound,
    DiscoveryClient,
    DiscoveryError,
    Fleet,
    Kubeconfig,
    SyncDiscoveryClient,
    Unavailable,
    UnusableKubeconfig,
    _convert,
    _kubernetes_aio,
    _kubernetes_sync,
)
from milo_discovery._connection_credential import ConnectionCredential, RequestUrls
from milo_discovery._credential_cache import CachedCredential
from milo_discovery._kubernetes_aio import request_timeout
from milo_discovery.api_clients import SharedTransports, transport_key
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.v1 import discovery_pb2 as pb

from .kubeconfigs import ControlPlane, control_plane, issued, message
from .messages import cluster, disengaged, engaged, following, renewed, snapshot
from .scripted_daemon import Refusal, ScriptedDaemon

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
async def by_aio(daemon: ScriptedDaemon, target: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    async with DiscoveryClient(daemon.address) as client, client.api_client(target) as api:
        yield kubernetes.aio.client.CoreV1Api(api).list_namespace


@asynccontextmanager
async def by_threads_beside_a_loop(daemon: ScriptedDaemon, target: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    async with DiscoveryClient(daemon.address) as client, client.sync_api_client(target) as api:
        yield lambda: asyncio.to_thread(kubernetes.client.CoreV1Api(api).list_namespace)


@asynccontextmanager
async def by_threads(daemon: ScriptedDaemon, target: Cluster | str = "alpha") -> AsyncIterator[Listing]:
    client = SyncDiscoveryClient(daemon.address)
    opened = client.sync_api_client(target)
    try:
        api = await asyncio.to_thread(opened.__enter__)
        try:
            yield lambda: asyncio.to_thread(kubernetes.client.CoreV1Api(api).list_namespace)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)
    finally:
        await asyncio.to_thread(client.close)


@pytest.fixture(params=[by_aio, by_threads_beside_a_loop, by_threads])
def opened(request: pytest.FixtureRequest):
    """Return the function that opens an API client, once for each kind of client."""
    return request.param


def issues(daemon: ScriptedDaemon) -> list[pb.IssueKubeconfigRequest]:
    return [request for request in daemon.requests if isinstance(request, pb.IssueKubeconfigRequest)]


class TestRequests:
    async def test_api_client_sends_its_token_to_the_server_of_the_kubeconfig(self, opened, daemon, plane):
        # The client verifies the server with the kubeconfig's CA and tls-server-name.
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with opened(daemon) as listing:
            await listing()
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-1"]
        assert issues(daemon) == [pb.IssueKubeconfigRequest(cluster="alpha", format=EMBEDDED)]

    async def test_api_client_uses_a_renewed_token(self, opened, daemon, plane):
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

    async def test_api_client_keeps_a_valid_token_while_the_daemon_is_unavailable(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"), age=DUE), AWAY]
        async with opened(daemon) as listing:
            await listing()
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-1"]

    async def test_api_client_retries_a_401_with_a_newer_token(self, opened, daemon, plane):
        plane.refused = {"Bearer t-1"}
        daemon.answers["IssueKubeconfig"] = [
            issued(plane.kubeconfig(token="t-1")),
            issued(plane.kubeconfig(token="t-2")),
        ]
        async with opened(daemon) as listing:
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-2"]

    async def test_api_client_raises_a_401_if_there_is_no_newer_token(self, opened, daemon, plane):
        plane.refused = {"Bearer t-1"}
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with opened(daemon) as listing:
            with pytest.raises(Exception, match="401"):
                await listing()
        assert plane.asked_with == ["Bearer t-1"]

    @pytest.mark.parametrize(("token", "header"), [({}, None), ({"token": "t-1"}, "Bearer t-1")])
    async def test_api_client_uses_a_client_certificate(self, opened, daemon, plane, token, header):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(**certificate(plane, "first"), **token))]
        async with opened(daemon) as listing:
            await listing()
        assert plane.certificates == ["first"]
        assert plane.asked_with == [header]

    async def test_api_client_ignores_proxies_and_netrc_of_the_environment(
        self, opened, daemon, plane, monkeypatch, tmp_path
    ):
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

    async def test_api_client_raises_unavailable_without_a_credential(self, opened, daemon):
        daemon.answers["IssueKubeconfig"] = [AWAY]
        with pytest.raises(Unavailable):
            async with opened(daemon):
                pass


class TestClusterIdentity:
    """Tests that an API client for a Cluster never sends requests to a later cluster of the same name."""

    async def test_api_client_requests_the_kubeconfig_of_the_given_incarnation(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with opened(daemon, ALPHA):
            pass
        assert [request.incarnation for request in issues(daemon)] == ["i-1"]

    async def test_api_client_accepts_new_incarnation_with_the_same_uid(self, opened, daemon, plane):
        same = pb.GetClusterResponse(
            cluster=cluster("alpha", incarnation="i-2"), engagement=pb.Engagement(engaged=True)
        )
        daemon.answers["IssueKubeconfig"] = [OTHER_INCARNATION, issued(plane.kubeconfig(token="t-1"))]
        daemon.answers["GetCluster"] = [same]
        async with opened(daemon, ALPHA):
            pass
        assert [request.incarnation for request in issues(daemon)] == ["i-1", "i-2"]

    async def test_api_client_of_replaced_cluster_raises_cluster_not_found(self, opened, daemon):
        later = pb.GetClusterResponse(
            cluster=cluster("alpha", uid="later", incarnation="i-2"), engagement=pb.Engagement(engaged=True)
        )
        daemon.answers["IssueKubeconfig"] = [OTHER_INCARNATION]
        daemon.answers["GetCluster"] = [later]
        with pytest.raises(ClusterNotFound, match="no longer engaged"):
            async with opened(daemon, ALPHA):
                pass


async def all_kinds_of_requests(api: object) -> list[str]:
    """Send requests with an asyncio or blocking API client; return the HTTP status of each error."""
    is_aio = isinstance(api, kubernetes.aio.client.ApiClient)
    core = kubernetes.aio.client.CoreV1Api(api) if is_aio else kubernetes.client.CoreV1Api(api)
    watch = kubernetes.aio.watch.Watch() if is_aio else kubernetes.watch.Watch()
    body = {"metadata": {"name": "new"}}

    async def follow() -> None:
        async for _ in watch.stream(core.list_namespace):
            pass

    def follow_blocking() -> None:
        for _ in watch.stream(core.list_namespace):
            pass

    raised = []
    for call in (
        core.list_namespace,
        lambda: core.create_namespace(body),
        lambda: core.delete_namespace("old"),
        follow if is_aio else follow_blocking,
    ):
        try:
            await (call() if is_aio else asyncio.to_thread(call))
        except (kubernetes.client.ApiException, kubernetes.aio.client.ApiException) as error:
            raised.append(str(error.status))
        else:
            raised.append("nothing")
    await api.close() if is_aio else api.close()
    return raised


class TestOtherServers:
    """Tests that a credential is sent only to the server of its kubeconfig."""

    @pytest.mark.parametrize("opening", ["api_client", "sync_api_client"])
    async def test_redirect_is_an_error_and_is_not_followed(self, client, daemon, plane, opening):
        with control_plane() as elsewhere:
            daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t", **{"as": "shop"}))]
            for target in (elsewhere.url, plane.url.replace("/projects", "/elsewhere")):
                plane.redirect_to = target
                plane.asked_with.clear()
                async with getattr(client, opening)("alpha") as api:
                    assert await all_kinds_of_requests(api) == ["307"] * 4
                assert plane.asked_with == ["Bearer t"] * 4
                daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t", **{"as": "shop"}))]
            assert (elsewhere.asked_with, elsewhere.acting) == ([], [])

    async def test_redirect_of_a_websocket_is_not_followed(self, client, daemon, plane):
        with control_plane() as elsewhere:
            plane.redirect_to = elsewhere.url
            daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t"))]
            async with client.api_client("alpha") as api:
                # The WebSocket client of the package creates its session like this, without the TLS server name.
                session = aiohttp.ClientSession(**api.configuration.client_session_kwargs, connector_owner=False)
                async with session:
                    with pytest.raises(kubernetes.aio.client.ApiException, match="redirect"):
                        await session.ws_connect(plane.url, server_hostname="alpha.test")
            assert plane.paths
            assert elsewhere.asked_with == []

    async def test_blocking_stream_follows_no_redirect_and_impersonates_the_user(self, client, daemon, plane, tmp_path):
        trusted = tmp_path / "ca.pem"

        def run(api: kubernetes.client.ApiClient) -> None:
            api.configuration.ssl_ca_cert = str(trusted)  # the only CA setting of the package's streams
            core = kubernetes.client.CoreV1Api(api)
            kubernetes.stream.stream(core.connect_get_namespaced_pod_exec, "web", "default", command=["id"])

        with control_plane() as elsewhere:
            trusted.write_bytes(plane.authority.cert_pem.bytes() + elsewhere.authority.cert_pem.bytes())
            plane.redirect_to = elsewhere.url
            daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t", **{"as": "shop"}))]
            async with client.sync_api_client("alpha") as api:
                with pytest.raises(kubernetes.client.ApiException, match="Redirect"):
                    await asyncio.to_thread(run, api)
                assert "call_api" not in vars(api), "call_api is still patched after the stream"
            assert (plane.asked_with, plane.acting) == (["Bearer t"], ["shop"])
            assert elsewhere.asked_with == []

    async def test_client_sends_the_token_of_a_new_endpoint_only_to_that_endpoint(self, opened, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [
            issued(plane.kubeconfig(token="t-1"), age=DUE),
            issued(plane.kubeconfig(token="t-2").replace(b"/projects/alpha", b"/moved/alpha"), age=DUE),
            issued(plane.kubeconfig(token="t-3").replace(b"/projects/alpha", b"/again/alpha")),
        ]
        async with opened(daemon) as listing:
            while "Bearer t-3" not in plane.asked_with:
                await listing()
        paths = {"Bearer t-1": "/projects/", "Bearer t-2": "/moved/", "Bearer t-3": "/again/"}
        assert all(path.startswith(paths[token]) for token, path in zip(plane.asked_with, plane.paths, strict=True))

    async def test_newer_token_after_a_401_is_sent_to_the_endpoint_of_its_kubeconfig(self, opened, daemon, plane):
        plane.refused = {"Bearer t-1"}
        second = plane.kubeconfig(token="t-2", **{"as": "shop"}).replace(b"/projects/alpha", b"/moved/alpha")
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1")), issued(second)]
        async with opened(daemon) as listing:
            await listing()
        assert plane.asked_with == ["Bearer t-1", "Bearer t-2"]
        assert [path.split("/")[1] for path in plane.paths] == ["projects", "moved"]
        assert plane.acting == [None, "shop"]

    def test_request_to_an_unknown_server_is_refused(self):
        urls = RequestUrls("https://a/p")
        assert urls.moved("https://a/p/api", "https://b") == "https://b/api"
        assert urls.moved("https://b/api?x", "https://a/p/") == "https://a/p/api?x"
        for url in ("https://c/api", "https://a/prefix/api", "https://bb/api"):
            with pytest.raises(DiscoveryError, match="does not belong to a server of the cluster"):
                urls.moved(url, "https://b")


class TestEngagedCluster:
    async def test_pushed_kubeconfigs_are_used_without_calls(self, client, daemon, plane):
        async with Fleet(client, include_kubeconfigs=True) as fleet:
            stream = await daemon.stream()
            first = engaged("alpha")
            first.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-1")))
            stream.send(snapshot("1", first))
            await fleet.synced()
            alpha = fleet.get("alpha")
            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                second = renewed("alpha", "")
                second.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-2")))
                stream.send(following("1", "2", second))
                await alpha.renewed(since=_convert.kubeconfig(first.kubeconfig))
                await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
        assert plane.asked_with == ["Bearer t-1", "Bearer t-2", "Bearer t-2"]
        assert daemon.requests == []

    @pytest.mark.parametrize("include_kubeconfigs", [True, False])
    async def test_credential_is_refused_after_the_end_of_the_engagement(
        self, client, daemon, plane, include_kubeconfigs
    ):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with Fleet(client, include_kubeconfigs=include_kubeconfigs) as fleet:
            stream = await daemon.stream()
            first = engaged("alpha")
            if include_kubeconfigs:
                first.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-1")))
            stream.send(snapshot("1", first))
            await fleet.synced()
            alpha = fleet.get("alpha")
            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                again = engaged(cluster("alpha", uid="later", incarnation="i-2"))
                again.kubeconfig.CopyFrom(message(plane.kubeconfig(token="t-2")))
                stream.send(following("1", "2", disengaged("alpha"), again))
                with pytest.raises(ClusterNotFound):
                    await alpha.updated()
                with pytest.raises(ClusterNotFound, match="no longer engaged"):
                    await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                with pytest.raises(ClusterNotFound, match="no longer engaged"):
                    await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
        assert plane.asked_with == ["Bearer t-1"]

    async def test_request_is_not_sent_if_the_engagement_ends_while_it_waits_for_a_connection(
        self, client, daemon, plane, monkeypatch
    ):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with Fleet(client) as fleet:
            stream = await daemon.stream()
            stream.send(snapshot("1", engaged("alpha")))
            await fleet.synced()
            alpha = fleet.get("alpha")
            connect_aio, connect_blocking = aiohttp.TCPConnector.connect, HTTPSConnection.connect

            async def connected_late(connector, *given, **named):
                connection = await connect_aio(connector, *given, **named)
                alpha.disengage()
                return connection

            def blocking_connected_late(connection):
                connect_blocking(connection)
                alpha.disengage()

            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                monkeypatch.setattr(aiohttp.TCPConnector, "connect", connected_late)
                monkeypatch.setattr(HTTPSConnection, "connect", blocking_connected_late)
                with pytest.raises(ClusterNotFound, match="no longer engaged"):
                    await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                monkeypatch.setattr(alpha, "_engaged", True)
                with pytest.raises(ClusterNotFound, match="no longer engaged"):
                    await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
        assert plane.asked_with == []

    @pytest.mark.parametrize("is_issued", [False, True])
    async def test_request_is_not_sent_if_the_cluster_moves_while_it_waits_for_a_connection(
        self, client, daemon, plane, monkeypatch, is_issued
    ):
        moved = plane.kubeconfig(token="t-2").replace(b"/projects/alpha", b"/moved/alpha")
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with Fleet(client) as fleet:
            (await daemon.stream()).send(snapshot("1", engaged("alpha")))
            await fleet.synced()
            alpha = fleet.get("alpha")
            connect_aio, connect_blocking = aiohttp.TCPConnector.connect, HTTPSConnection.connect

            def move(api):
                endpoint = f"{alpha.current.endpoint}/moved"
                alpha.refresh(replace(alpha.current, endpoint=endpoint))
                if is_issued:
                    renewer = getattr(api._renewer, "_renewer", api._renewer)
                    kubeconfig = Kubeconfig(cluster="alpha", kubeconfig=moved)
                    renewer.cache.requested(kubeconfig, datetime.now(UTC), endpoint)

            async def connected_late(connector, *given, **named):
                connection = await connect_aio(connector, *given, **named)
                move(api)
                return connection

            def blocking_connected_late(connection):
                connect_blocking(connection)
                move(blocking)

            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                monkeypatch.setattr(aiohttp.TCPConnector, "connect", connected_late)
                monkeypatch.setattr(HTTPSConnection, "connect", blocking_connected_late)
                with pytest.raises(UnusableKubeconfig, match="the request was not sent: cluster alpha has moved"):
                    await kubernetes.aio.client.CoreV1Api(api).list_namespace()
                daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
                with pytest.raises(UnusableKubeconfig, match="the request was not sent: cluster alpha has moved"):
                    await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking).list_namespace)
        assert plane.asked_with == []

    async def test_stream_is_not_opened_if_the_cluster_moves_while_it_waits_for_a_connection(
        self, client, daemon, plane, monkeypatch, tmp_path
    ):
        trusted = tmp_path / "ca.pem"
        trusted.write_bytes(plane.authority.cert_pem.bytes())
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))] * 2
        async with Fleet(client) as fleet:
            (await daemon.stream()).send(snapshot("1", engaged("alpha")))
            await fleet.synced()
            alpha = fleet.get("alpha")
            connect_aio, connect_blocking = aiohttp.TCPConnector.connect, websocket._core.connect

            def move():
                alpha.refresh(replace(alpha.current, endpoint=f"{alpha.current.endpoint}/moved"))

            async def connected_late(connector, *given, **named):
                connection = await connect_aio(connector, *given, **named)
                move()
                return connection

            def blocking_connected_late(*given, **named):
                connection = connect_blocking(*given, **named)
                move()
                return connection

            def run(api: kubernetes.client.ApiClient) -> None:
                api.configuration.ssl_ca_cert = str(trusted)  # the only CA setting of the package's streams
                core = kubernetes.client.CoreV1Api(api)
                kubernetes.stream.stream(core.connect_get_namespaced_pod_exec, "web", "default", command=["id"])

            async with alpha.api_client() as api, alpha.sync_api_client() as blocking:
                monkeypatch.setattr(aiohttp.TCPConnector, "connect", connected_late)
                monkeypatch.setattr(websocket._core, "connect", blocking_connected_late)
                # The WebSocket client of the package does not send the TLS server name.
                ws_connect = partialmethod(aiohttp.ClientSession.ws_connect, server_hostname="alpha.test")
                monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", ws_connect)
                streams = kubernetes.aio.client.CoreV1Api(WsApiClient(api.configuration))
                with pytest.raises(UnusableKubeconfig, match="the request was not sent: cluster alpha has moved"):
                    await streams.connect_get_namespaced_pod_exec("web", "default", command=["id"])
                await streams.api_client.close()
                daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
                refused = "the request was not sent: cluster alpha has moved"
                with pytest.raises(kubernetes.client.ApiException, match=refused):
                    await asyncio.to_thread(run, blocking)
        assert plane.asked_with == []

    async def test_stream_of_a_cluster_that_has_moved_is_opened_at_its_present_server(
        self, client, daemon, plane, tmp_path
    ):
        trusted = tmp_path / "ca.pem"
        trusted.write_bytes(plane.authority.cert_pem.bytes())
        first = issued(plane.kubeconfig(token="t-1"), age=DUE)
        second = plane.kubeconfig(token="t-2", **{"as": "shop"}).replace(b"/projects/alpha", b"/moved/alpha")
        daemon.answers["IssueKubeconfig"] = [first, issued(second)]

        def run(api: kubernetes.client.ApiClient, url: str) -> None:
            api.configuration.ssl_ca_cert = str(trusted)
            opened = SimpleNamespace(api_client=api)
            kubernetes.stream.stream(MethodType(lambda of, **_: of.api_client.call_api("GET", url), opened))

        async with client.sync_api_client("alpha") as api:
            former = f"{api.configuration.host}/api/v1/namespaces/default/pods/web/exec"
            while "Bearer t-2" not in plane.asked_with:
                await asyncio.to_thread(kubernetes.client.CoreV1Api(api).list_namespace)
            with pytest.raises(kubernetes.client.ApiException):  # the server answers with no WebSocket
                await asyncio.to_thread(run, api, former)
        assert plane.paths[-1].startswith("/moved/alpha/")

    async def test_kubeconfigs_are_requested_if_none_are_pushed(self, client, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t-1"))]
        async with Fleet(client) as fleet:
            (await daemon.stream()).send(snapshot("1", engaged(cluster("alpha", incarnation="i-1"))))
            await fleet.synced()
            async with fleet.get("alpha").api_client() as api:
                await kubernetes.aio.client.CoreV1Api(api).list_namespace()
        assert plane.asked_with == ["Bearer t-1"]
        assert issues(daemon) == [pb.IssueKubeconfigRequest(cluster="alpha", format=EMBEDDED, incarnation="i-1")]


async def test_api_clients_offer_elliptic_curves_alone():
    """Otherwise a cluster's server chooses a finite field, of 10,000 bits if it likes."""
    access = KubeconfigAccess(server="https://a.test", token="t")
    pool = _kubernetes_sync.create_pool(access, None, None)
    transport = _kubernetes_aio.AioTransport(access, None, None)
    for context in (pool.connection_pool_kw["ssl_context"], transport.template.rest_client.ssl_context):
        assert {cipher["kea"] for cipher in context.get_ciphers()} == {"kx-any", "kx-ecdhe"}
    await transport.close()


async def test_copied_api_client_configuration_uses_renewed_token(client, daemon, plane):
    """The WebSocket client of the Kubernetes package, for example, copies the configuration."""
    daemon.answers["IssueKubeconfig"] = [
        issued(plane.kubeconfig(token="t-1"), age=OVER),
        issued(plane.kubeconfig(token="t-2")),
    ]
    async with client.api_client("alpha") as api:
        copied = copy.deepcopy(api.configuration)
        assert (await copied.auth_settings())["BearerToken"]["value"] == "Bearer t-2"


async def test_missing_kubernetes_package_error_names_the_extra(client, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("milo_discovery._kubernetes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    monkeypatch.setitem(sys.modules, "kubernetes.aio.client", None)
    with pytest.raises(ImportError, match=r"pip install ./kube './clients/python\[kubernetes\]'"):
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
def test_request_timeout_accepts_pairs_and_exceeds_timeout_seconds_of_watches(query, given, expected):
    assert request_timeout(f"https://a/api/v1/namespaces?{query}", given) == expected


def test_connection_raises_certificate_renewed_once_its_certificate_has_expired():
    first, second = (KubeconfigAccess(server="https://a", certificate=name, key="k") for name in ("first", "second"))
    now = datetime.now(UTC)
    still_good = ConnectionCredential(CachedCredential(first, refresh_at=now, expires_at=now + timedelta(hours=1)))
    assert still_good.authorization(second) is None
    over = ConnectionCredential(CachedCredential(first, refresh_at=now, expires_at=now))
    with pytest.raises(CertificateRenewed, match="create another"):
        over.authorization(second)
    assert over.authorization(KubeconfigAccess(server="https://a", token="t")) == "Bearer t"


def test_certificate_beside_a_token_may_be_valid_after_the_token_has_expired():
    first, second = (
        KubeconfigAccess(server="https://a", certificate=name, key="k", token=name) for name in ("first", "second")
    )
    now = datetime.now(UTC)
    made_with = CachedCredential(first, refresh_at=now, expires_at=now)
    assert ConnectionCredential(made_with).authorization(second) == "Bearer second"


def certificate(plane: ControlPlane, name: str) -> dict[str, str]:
    made = plane.authority.issue_cert(f"{name}.test", common_name=name)
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    return {
        "client_certificate_data": base64.b64encode(chain).decode(),
        "client_key_data": base64.b64encode(made.private_key_pem.bytes()).decode(),
    }


class TestSharedTransports:
    async def test_async_and_blocking_clients_each_share_one_connection_and_ssl_context_per_host(
        self, client, daemon, plane, monkeypatch
    ):
        contexts: list[ssl.SSLContext] = []
        create = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: contexts.append(c := create(*a, **k)) or c)
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token=f"t-{n}")) for n in range(6)]
        async with AsyncExitStack() as stack:
            apis = [await stack.enter_async_context(client.api_client(f"c{n}")) for n in range(3)]
            for api in apis:
                await kubernetes.aio.client.CoreV1Api(api).list_namespace()
            blocking = [await stack.enter_async_context(client.sync_api_client(f"c{n}")) for n in range(3)]
            for blocking_api in blocking:
                await asyncio.to_thread(kubernetes.client.CoreV1Api(blocking_api).list_namespace)
        assert len(contexts) == 2, "each kind of client has its own transport"
        assert plane.connections == 2
        assert plane.asked_with == [f"Bearer t-{n}" for n in range(6)]

    async def test_closing_a_client_keeps_shared_connections_open(self, client, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token=f"t-{n}")) for n in range(4)]
        async with client.api_client("a") as first, client.sync_api_client("a") as first_blocking:
            async with client.api_client("b") as second, client.sync_api_client("b") as second_blocking:
                await kubernetes.aio.client.CoreV1Api(second).list_namespace()
                await asyncio.to_thread(kubernetes.client.CoreV1Api(second_blocking).list_namespace)
            await kubernetes.aio.client.CoreV1Api(first).list_namespace()
            await asyncio.to_thread(kubernetes.client.CoreV1Api(first_blocking).list_namespace)
        assert plane.connections == 2

    async def test_concurrent_requests_are_not_limited_by_the_connection_pool(self, client, daemon, plane):
        daemon.answers["IssueKubeconfig"] = [issued(plane.kubeconfig(token="t"))]
        plane.barrier = threading.Barrier(120)  # the server responds only when all requests have arrived
        async with client.api_client("a") as api:
            await asyncio.gather(*(kubernetes.aio.client.CoreV1Api(api).list_namespace() for _ in range(120)))

    def test_clients_with_the_same_trust_root_certificate_and_proxy_share_a_transport(self):
        token = KubeconfigAccess(server="https://a", authorities="A", token="1")
        certificate = replace(token, token=None, certificate="c", key="k")
        same = [token, replace(token, token="2"), replace(token, server="https://b")]
        assert len({transport_key(access, None) for access in same}) == 1
        assert transport_key(replace(certificate, token="1"), None) == transport_key(certificate, None)
        others = [replace(token, authorities=None), replace(token, tls_server_name="n"), certificate]
        keys = {*(transport_key(access, None) for access in [token, *others]), transport_key(token, "http://proxy")}
        assert len(keys) == 5

    def test_shared_transport_is_closed_by_its_last_client(self):
        transports: SharedTransports[object] = SharedTransports()
        first, second = transports.acquire("k", object), transports.acquire("k", object)
        assert first is second
        assert transports.release("k") is None
        assert transports.release("k") is first
        assert transports.acquire("k", object) is not first
