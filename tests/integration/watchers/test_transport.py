"""The transport to API servers: requests, responses, and what is rejected."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from milo_discoveryd.watchers.transport import Transport
from milo_kube.api_request import Answer
from milo_kube.credential import ClientCertificate, Credential, Secret
from milo_kube.credential_providers import FileOrigin, RenewedCredential, StaticCredential
from milo_kube.file_content import FileContent
from milo_kube.http.errors import TransportError
from tests.integration.watchers.api_server import ApiServer, answering, upstream
from tests.support.eventually import eventually
from tests.support.renamed_file import replace

PATH = "/apis/resourcemanager.miloapis.com/v1alpha1/projects"


async def get(transport: Transport, path: str = PATH) -> Answer:
    return await transport.get(path, timeout_s=10)


async def test_get_request_has_token_query_and_user_agent() -> None:
    async with ApiServer(answering(b'{"kind":"List"}', headers={"X-Seen": "yes"})) as server:
        transport = Transport(upstream(server))
        answer = await transport.get(PATH, [("labelSelector", "a in (b,c),d!=e+f"), ("limit", "2")], timeout_s=10)
        await transport.aclose()
    (request,) = server.requests
    assert (answer.status, answer.headers["x-seen"], answer.body) == (200, "yes", b'{"kind":"List"}')
    assert request.path == PATH
    assert dict(request.query) == {"labelSelector": "a in (b,c),d!=e+f", "limit": "2"}
    assert request.headers["Authorization"] == "Bearer t0"
    assert request.headers["User-Agent"].startswith("milo-discoveryd/")


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422, 429, 500, 503])
async def test_http_error_status_is_returned_as_response(status: int) -> None:
    async with ApiServer(answering(b"why", status, {"Retry-After": "3"})) as server:
        transport = Transport(upstream(server))
        answer = await get(transport)
        await transport.aclose()
    assert (answer.status, answer.headers["Retry-After"], answer.body) == (status, "3", b"why")


async def test_server_path_prefix_is_kept() -> None:
    async with ApiServer(answering()) as server:
        transport = Transport(upstream(server, server=f"{server.url}/apis/x/projects/p1/control-plane"))
        await get(transport, "/version")
        await transport.aclose()
    assert server.requests[0].path == "/apis/x/projects/p1/control-plane/version"


async def test_gzip_response_is_requested_and_decompressed() -> None:
    body = b'{"items":[]}' * 1000
    async with ApiServer(answering(gzip.compress(body), headers={"Content-Encoding": "gzip"})) as server:
        transport = Transport(upstream(server))
        answer = await get(transport)
        await transport.aclose()
    assert server.headers("Accept-Encoding") == ["gzip"]
    assert answer.body == body


async def test_decompressed_response_over_limit_is_aborted() -> None:
    bomb = gzip.compress(b"0" * (8 << 20))
    async with ApiServer(answering(bomb, headers={"Content-Encoding": "gzip"})) as server:
        transport = Transport(upstream(server), response_limit=1 << 20)
        with pytest.raises(TransportError, match="more than 1048576 bytes") as raised:
            await get(transport)
        await transport.aclose()
    assert raised.value.cause == "too_large"


async def test_post_sends_json_and_returns_body() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), status=201)

    async with ApiServer(echo) as server:
        transport = Transport(upstream(server))
        answer = await transport.post("/apis/authorization.k8s.io/v1/reviews", b'{"spec":{"a":1}}', timeout_s=10)
        await transport.aclose()
    assert (answer.status, json.loads(answer.body)) == (201, {"spec": {"a": 1}})
    assert server.headers("Content-Type") == ["application/json"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_returned_and_not_followed(status: int) -> None:
    async with ApiServer(answering(b"over there", status, {"Location": "/elsewhere"})) as server:
        transport = Transport(upstream(server))
        answer = await get(transport)
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            streamed = (stream.status, await stream.read_error(100))
        await transport.aclose()
    assert (answer.status, answer.headers["Location"], answer.body) == (status, "/elsewhere", b"over there")
    assert streamed == (status, b"over there")
    assert [request.path for request in server.requests] == [PATH, PATH]


@pytest.mark.parametrize(
    "path", ["/a/../secrets", "/a/..", "/a/%2e%2e/b", "/a?b", "/a#b", "//evil", "a", "", "/a b", "/a\n", "/a/./b", "/ä"]
)
async def test_request_with_unsafe_path_is_rejected_before_sending(path: str) -> None:
    async with ApiServer(answering()) as server:
        transport = Transport(upstream(server))
        with pytest.raises(ValueError, match="unsafe path"):
            await get(transport, path)
        await transport.aclose()
    assert server.requests == []


async def test_netrc_and_proxies_of_the_process_environment_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with ApiServer(answering()) as server:
        transport = Transport(upstream(server, credentials=StaticCredential(Credential())))
        answer = await get(transport)
        await transport.aclose()
    assert answer.status == 200
    assert server.headers("Authorization") == [None]


class Renewing:
    """A credential issuer that issues a new token after each rejection."""

    def __init__(self) -> None:
        self.refusals = 0

    async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
        if refused is not None:
            self.refusals += 1
        return Credential(token=Secret(f"t{self.refusals}"))


def accepting(token: str) -> ApiServer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers["Authorization"] == f"Bearer {token}" else 401)

    return ApiServer(answer)


async def test_rejected_token_is_renewed_and_request_repeated_once() -> None:
    async with accepting("t1") as server:
        transport = Transport(upstream(server, credentials=Renewing()))
        assert (await get(transport)).status == 200
        async with transport.stream(PATH, connect_timeout_s=10, silence_s=10) as stream:
            assert stream.status == 200
        await transport.aclose()
    assert server.headers("Authorization") == ["Bearer t0", "Bearer t1", "Bearer t1"]


async def test_token_rejected_twice_returns_the_response() -> None:
    async with accepting("none") as server:
        transport = Transport(upstream(server, credentials=Renewing()))
        assert (await get(transport)).status == 401
        await transport.aclose()
    assert server.headers("Authorization") == ["Bearer t0", "Bearer t1"]


async def test_rejected_token_that_cannot_be_renewed_is_not_resent() -> None:
    async with accepting("none") as server:
        transport = Transport(upstream(server))
        assert (await get(transport)).status == 401
        await transport.aclose()
    assert server.headers("Authorization") == ["Bearer t0"]


def files_of(leaf: trustme.LeafCert) -> tuple[bytes, bytes]:
    return leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()


async def test_client_certificate_is_presented() -> None:
    clients = trustme.CA()
    chain, key = files_of(clients.issue_cert(common_name="milo-discoveryd"))
    pair = ClientCertificate(chain=chain, key=Secret(key.decode()))
    async with ApiServer(answering(), wants_client_certificate_of=clients) as server:
        transport = Transport(upstream(server, credentials=StaticCredential(Credential(certificate=pair))))
        assert (await get(transport)).status == 200
        await transport.aclose()


async def test_renewed_client_certificate_is_used_while_open_streams_continue(tmp_path: Path) -> None:
    release = asyncio.Event()
    serials: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        serials.append(request.transport.get_extra_info("peercert")["serialNumber"])
        if request.path != "/watch":
            return web.Response()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await release.wait()
        await response.write(b"last")
        return response

    clients = trustme.CA()
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue() -> None:
        for path, content in zip((chain, key), files_of(clients.issue_cert(common_name="me")), strict=True):
            replace(path, content)

    issue()
    source = RenewedCredential(FileOrigin(chain=FileContent(chain), key=FileContent(key)))
    async with ApiServer(answer, wants_client_certificate_of=clients) as server:
        transport = Transport(upstream(server, credentials=source))
        async with transport.stream("/watch", connect_timeout_s=10, silence_s=10) as stream:
            chunks = stream.chunks()
            received = [await anext(chunks)]
            used = source.held()
            issue()
            await eventually(lambda: source.held() != used)
            await get(transport)
            release.set()
            received += [chunk async for chunk in chunks]
        await transport.aclose()
        await source.aclose()
    assert received == [b"first", b"last"]
    assert len(set(serials)) == 2


async def test_renewed_ca_is_trusted_from_next_request(tmp_path: Path) -> None:
    pem = tmp_path / "ca.crt"
    pem.write_bytes(trustme.CA().cert_pem.bytes())
    async with ApiServer(answering()) as server:
        transport = Transport(upstream(server, authorities=FileContent(pem)))
        with pytest.raises(TransportError):
            await get(transport)
        replace(pem, server.pem)
        assert (await get(transport)).status == 200
        await transport.aclose()


async def test_f8_renewed_certificate_of_same_ca_is_trusted() -> None:
    async with ApiServer(answering()) as server:
        transport = Transport(upstream(server))
        assert (await get(transport)).status == 200
    async with ApiServer(answering(), server.authority, port=server.port) as renewed:
        assert renewed.url == server.url
        assert (await get(transport)).status == 200
    await transport.aclose()


async def test_intermediate_certificate_is_a_trust_anchor() -> None:
    root = trustme.CA()
    middle = root.create_child_ca()
    async with ApiServer(answering(), leaf=middle.issue_cert("127.0.0.1")) as server:
        transport = Transport(upstream(server, authorities=middle.cert_pem.bytes()))
        assert (await get(transport)).status == 200
        await transport.aclose()


async def test_tls_server_name_is_requested_and_verified() -> None:
    authority = trustme.CA()
    async with ApiServer(answering(), authority, leaf=authority.issue_cert("api.example.com")) as server:
        transport = Transport(upstream(server, tls_server_name="api.example.com"))
        assert (await get(transport)).status == 200
        await transport.aclose()
