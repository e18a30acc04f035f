"""Failures to reach an API server: the message for people, and the cause for programs."""

import asyncio
import datetime
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trustme
from aiohttp import web

from milo_discoveryd.watchers.transport import Transport
from milo_kube.credential import ClientCertificate, Credential, CredentialError, Secret
from milo_kube.credential_providers import StaticCredential
from milo_kube.http.errors import TransportError
from milo_kube.upstream import Upstream
from tests.integration.watchers.api_server import ApiServer, answering, upstream
from tests.support.ports import free_address

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def failure(at: Upstream, timeout_s: float = 10) -> TransportError:
    transport = Transport(at)
    try:
        with pytest.raises(TransportError) as raised:
            await transport.get("/version", timeout_s=timeout_s)
    finally:
        await transport.aclose()
    return raised.value


def nobody(url: str, **differing: object) -> Upstream:
    given: dict[str, object] = {
        "server": url,
        "origin": "test",
        "credentials": StaticCredential(Credential(token=Secret("s3cret"))),
        "plain_loopback": True,
    }
    return Upstream(**(given | differing))  # type: ignore[arg-type]


@asynccontextmanager
async def peer(behaviour: Peer) -> AsyncIterator[int]:
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await behaviour(reader, writer)
        with suppress(OSError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*served)


async def test_unresolvable_host_is_dns_error() -> None:
    error = await failure(nobody("https://milo.invalid"))
    assert error.cause == "dns"
    assert "milo.invalid cannot be resolved" in str(error)


async def test_closed_port_is_connect_error() -> None:
    error = await failure(nobody(f"https://{free_address()}"))
    assert error.cause == "connect"
    assert str(error).endswith("cannot be reached: Connection refused")


async def test_untrusted_certificate_is_tls_error() -> None:
    async with ApiServer(answering()) as server:
        error = await failure(upstream(server, authorities=trustme.CA().cert_pem.bytes()))
    assert error.cause == "tls"
    assert "certificate-authority-data must hold the CA that signed it" in str(error)


async def test_expired_certificate_is_tls_error() -> None:
    authority = trustme.CA()
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    leaf = authority.issue_cert("127.0.0.1", not_before=past, not_after=past + datetime.timedelta(days=1))
    async with ApiServer(answering(), authority, leaf=leaf) as server:
        error = await failure(upstream(server))
    assert error.cause == "tls"
    assert "expired (renew it, or correct this machine's clock)" in str(error)


async def test_certificate_for_another_name_is_tls_error() -> None:
    authority = trustme.CA()
    async with ApiServer(answering(), authority, leaf=authority.issue_cert("api.example.com")) as server:
        error = await failure(upstream(server))
    assert error.cause == "tls"
    assert "set tls-server-name to a name in the certificate" in str(error)


async def test_missing_client_certificate_is_tls_error() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    trustme.CA().configure_trust(context)

    def refuse(listener: socket.socket) -> None:
        # A blocking server, since asyncio's closes without the TLS alert that others send.
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as wrapped:
            with pytest.raises(ssl.SSLError):
                wrapped.do_handshake()
            # Closing with unread data causes a reset, which can overtake the alert.
            with suppress(ConnectionError):
                while os.read(wrapped.fileno(), 1 << 16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = asyncio.create_task(asyncio.to_thread(refuse, listener))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        error = await failure(nobody(url, authorities=authority.cert_pem.bytes()))
        await server
    assert error.cause == "tls"
    assert "the server requires a client certificate, or rejected the one" in str(error)


async def test_certificate_for_which_no_file_can_be_opened_is_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    pair = trustme.CA().issue_cert("client.test")
    chain, key = pair.cert_chain_pems[0].bytes(), Secret(pair.private_key_pem.bytes().decode())
    provider = StaticCredential(Credential(certificate=ClientCertificate(chain=chain, key=key)))
    error = await failure(nobody("https://127.0.0.1:1", credentials=provider))
    assert error.cause == "connect"
    assert str(error).endswith("cannot be reached: Too many open files")


async def test_invalid_ca_is_credential_error() -> None:
    error = await failure(nobody("https://127.0.0.1:1", authorities=b"not a certificate"))
    assert error.cause == "credential"
    assert "PEM" in str(error)


async def test_plain_http_port_is_tls_error() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with peer(plain) as port:
        error = await failure(nobody(f"https://127.0.0.1:{port}"))
    assert error.cause == "tls"
    assert "does the port speak plain HTTP?" in str(error)


async def test_invalid_http_response_is_a_closed_error() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.com\r\n")
        await writer.drain()
        writer.close()

    async with peer(babble) as port:
        error = await failure(nobody(f"http://127.0.0.1:{port}"))
    assert error.cause == "closed"
    assert "sent an invalid HTTP response" in str(error)


async def test_connection_closed_without_response_is_a_closed_error() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with peer(hang_up) as port:
        error = await failure(nobody(f"http://127.0.0.1:{port}"))
    assert error.cause == "closed"


async def test_server_without_response_is_timeout_error() -> None:
    never = asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with ApiServer(wait) as server:
        error = await failure(upstream(server), timeout_s=0.2)
        never.set()
    assert error.cause == "timeout"
    assert "did not answer within" in str(error)


async def test_unanswered_tls_handshake_is_timeout_error() -> None:
    async def sit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # the first message of the TLS handshake, which is never answered
        writer.close()

    async with peer(sit) as port:
        transport = Transport(nobody(f"https://127.0.0.1:{port}"))
        with pytest.raises(TransportError, match="no connection to ") as raised:
            async with transport.stream("/watch", connect_timeout_s=0.1, silence_s=10):
                pass
        await transport.aclose()
    assert raised.value.cause == "timeout"


async def test_unavailable_credential_is_credential_error() -> None:
    class Broken:
        async def credential(self, *, within_s: float, refused: Credential | None = None) -> Credential:
            raise CredentialError("exec plugin login ended with status 1")

    error = await failure(nobody("https://127.0.0.1:1", credentials=Broken()))
    assert error.cause == "credential"
    assert "exec plugin login ended with status 1" in str(error)


async def test_unreachable_proxy_is_connect_error() -> None:
    proxy = Secret(f"http://user:hunter2@{free_address()}")
    error = await failure(nobody("https://milo.example.com", proxy=proxy))
    assert error.cause == "connect"
    assert "the proxy for https://milo.example.com" in str(error)


async def test_proxy_authentication_is_sent_and_rejection_reported() -> None:
    seen: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with peer(refuse) as port:
        error = await failure(nobody("https://milo.example.com", proxy=Secret(f"http://u:hunter2@127.0.0.1:{port}")))
    assert error.cause == "connect"
    assert "407" in str(error)
    assert seen[0].startswith(b"CONNECT milo.example.com:443 ")
    assert b"Proxy-Authorization: Basic dTpodW50ZXIy" in seen[0]


async def test_error_messages_contain_no_token_or_proxy_password() -> None:
    errors = [
        await failure(nobody(f"https://{free_address()}")),
        await failure(nobody("https://milo.invalid", proxy=Secret(f"http://u:hunter2@{free_address()}"))),
    ]
    chained = [str(cause) for error in errors for cause in (error, error.__cause__, repr(error.__cause__))]
    assert not any("s3cret" in text or "hunter2" in text for text in chained)
