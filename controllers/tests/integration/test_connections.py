"""The connections of controllers, to a server that offers HTTP/2 and HTTP/1.1."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
import trustme

from clients.python.tests.kubeconfigs import control_plane
from kube.tests.integration.http.http2_peer import Accepted, Authority, serving
from milo_discovery.api_errors import ApiError, NotLeading, Unreachable
from milo_discovery.cluster_api import ClusterApi
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_kube.api_request import Answer
from milo_kube.api_server import Pools
from milo_kube.http.errors import TransportError
from milo_kube.http.http2 import Http2Connection
from tests.support.eventually import LIMIT_S


class Fixed:
    """A credential that does not change."""

    def __init__(self, access: KubeconfigAccess) -> None:
        self._access = access

    async def access(self) -> KubeconfigAccess:
        return self._access

    async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
        return self._access

    def require_present(self, server: str) -> None:
        return None


@pytest.mark.parametrize(("environ", "connections_used"), [({}, 1), ({"DISABLE_HTTP2": "1"}, 3)])
async def test_clusters_of_one_host_share_a_connection_over_http2(
    environ: dict[str, str], connections_used: int
) -> None:
    authority = Authority()

    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"{}", end=False)

    pools = Pools(user_agent="controllers", environ=environ, http2=Http2Connection)
    async with serving(authority, script) as peer:
        access = KubeconfigAccess(server=peer.url, authorities=authority.pem, token="secret")
        apis = [ClusterApi(name, Fixed(access), pools) for name in ("alpha", "beta", "gamma")]
        watches = [api.stream("/watch", connect_timeout_s=10, silence_s=10) for api in apis]
        for watch in watches:
            async with asyncio.timeout(LIMIT_S):
                assert (await watch.__aenter__()).status == 200
        assert len(peer.accepted) == connections_used
        for watch in watches:
            await watch.__aexit__(None, None, None)
        for api in apis:
            await api.aclose()


@pytest.mark.parametrize("token", [None, "secret"])
async def test_client_certificate_is_presented_with_and_without_a_token(token: str | None) -> None:
    with control_plane() as plane:
        pair = plane.authority.issue_cert("client", common_name="admin")
        access = KubeconfigAccess(
            server=plane.url,
            authorities=plane.authority.cert_pem.bytes().decode(),
            tls_server_name="alpha.test",
            certificate=pair.cert_chain_pems[0].bytes().decode(),
            key=pair.private_key_pem.bytes().decode(),
            token=token,
        )
        api = ClusterApi("alpha", Fixed(access), Pools(user_agent="controllers"))
        await api.send("GET", "/api/v1/namespaces")
        await api.aclose()
    assert (plane.certificates, plane.asked_with) == (["admin"], [token and f"Bearer {token}"])


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"details": {"causes": [{"reason": "\xff"}]}}',
        b'{"details": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["page", "not UTF-8", "nested"],
)
async def test_response_that_is_not_a_json_object_is_an_error_of_the_request(status: int, body: bytes) -> None:
    """Found by a reader: other errors than those of a request ended a leader election."""

    class Answering(ClusterApi):
        async def request(self, *_: Any, **__: Any) -> Answer:
            return Answer(status, {}, body)

    api = Answering("alpha", Fixed(KubeconfigAccess(server="https://milo.test")), Pools(user_agent="controllers"))
    with pytest.raises(Unreachable if status == 200 else ApiError):
        await api.send("GET", "/")


@pytest.mark.parametrize(("header", "expected"), [("7", 7.0), ("soon", None), (None, None)])
async def test_api_error_of_a_throttled_write_contains_retry_after(header: str | None, expected: float | None) -> None:
    authority = Authority()

    def refuse(accepted: Accepted, stream: int) -> None:
        headers = {} if header is None else {"retry-after": header}
        accepted.answer(stream, b"too many requests", status=429, headers=headers)

    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, refuse) as peer:
        api = ClusterApi("alpha", Fixed(KubeconfigAccess(server=peer.url, authorities=authority.pem)), pools)
        with pytest.raises(ApiError) as refused:
            await api.send("POST", "/api/v1/configmaps", body={})
        await api.aclose()
    assert (refused.value.status, refused.value.retry_after_s) == (429, expected)
    assert len(peer.requests) == 1


async def test_request_timeout_error_contains_method_and_path() -> None:
    authority = Authority()
    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, lambda _accepted, _stream: None) as peer:
        api = ClusterApi("alpha", Fixed(KubeconfigAccess(server=peer.url, authorities=authority.pem)), pools)
        with pytest.raises(Unreachable, match=r"^POST /api/v1/configmaps: \S+ did not answer within 0\.2 s$"):
            await api.send("POST", "/api/v1/configmaps", body={}, timeout_s=0.2)
        await api.aclose()


async def test_watch_failure_has_cause_credential_if_the_credential_renewed_after_401_is_unusable() -> None:
    authority = Authority()

    class Renewed(Fixed):
        async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
            return KubeconfigAccess(server=peer.url, authorities="no PEM", token="second")

    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"", status=401)) as peer:
        first = KubeconfigAccess(server=peer.url, authorities=authority.pem, token="first")
        api = ClusterApi("alpha", Renewed(first), pools)
        with pytest.raises(TransportError) as failed:
            async with api.stream("/watch", connect_timeout_s=10, silence_s=10):
                pass
        await api.aclose()
    assert failed.value.cause == "credential"


@pytest.mark.parametrize(("lost_by", "sent"), [("access", 0), ("access_after_401", 1)])
async def test_write_is_not_sent_if_the_lease_is_lost_while_it_waits_for_a_credential(lost_by: str, sent: int) -> None:
    authority = Authority()
    leads = True

    class Slow(Fixed):
        async def access(self) -> KubeconfigAccess:
            nonlocal leads
            leads = lost_by != "access"
            return await super().access()

        async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
            nonlocal leads
            leads = False
            return KubeconfigAccess(server=peer.url, authorities=authority.pem, token="second")

    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"", status=401)) as peer:
        first = KubeconfigAccess(server=peer.url, authorities=authority.pem, token="first")
        api = ClusterApi("alpha", Slow(first), pools, may_write=lambda _: leads)
        with pytest.raises(NotLeading, match="POST /api/v1/configmaps was not sent"):
            await api.send("POST", "/api/v1/configmaps", body={})
        await api.aclose()
    assert len(peer.requests) == sent


async def test_write_is_not_sent_if_the_lease_is_lost_while_it_waits_for_a_connection() -> None:
    authority = Authority()
    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, lambda accepted, stream: accepted.answer(stream, b"{}")) as peer:
        access = KubeconfigAccess(server=peer.url, authorities=authority.pem, token="secret")
        api = ClusterApi("alpha", Fixed(access), pools, may_write=lambda _: not peer.accepted)
        with pytest.raises(NotLeading, match="POST /api/v1/configmaps was not sent"):
            await api.send("POST", "/api/v1/configmaps", body={})
        assert await api.send("GET", "/api/v1/configmaps") == {}
        await api.aclose()
    assert [[request[":method"] for request in accepted.requests] for accepted in peer.accepted] == [["GET"]]


async def test_client_certificate_renewed_after_401_is_used() -> None:
    authority = Authority()
    statuses = [401, 200]

    def user() -> KubeconfigAccess:
        pair = trustme.CA().issue_cert("user")
        certificate, key = pair.cert_chain_pems[0].bytes().decode(), pair.private_key_pem.bytes().decode()
        return KubeconfigAccess(server=peer.url, authorities=authority.pem, certificate=certificate, key=key)

    def script(accepted: Accepted, stream: int) -> None:
        accepted.answer(stream, b"{}", status=statuses.pop(0))

    class Renewed(Fixed):
        async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
            return user()

    pools = Pools(user_agent="controllers", environ={}, http2=Http2Connection)
    async with serving(authority, script) as peer:
        api = ClusterApi("alpha", Renewed(user()), pools)
        assert await api.send("GET", "/api/v1/configmaps") == {}
        await api.aclose()
    assert not statuses
    assert len(peer.accepted) == 2


@pytest.mark.parametrize(
    "module", ["milo_publishing.publisher", "milo_discovery_cli.command_line", "milo_discoveryd.app"]
)
def test_modules_in_the_daemon_image_can_be_imported_without_h2(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import sys; sys.modules['h2'] = None; import {module}"], check=True)
