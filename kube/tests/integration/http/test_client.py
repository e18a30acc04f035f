"""The HTTP client, against servers with scripted bytes."""

import asyncio
import gc
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import pytest
import trustme

from milo_kube.http.client import DIALS_PER_SERVER, Client
from milo_kube.http.connection import OVERHEAD_LIMIT, Response, ResponseBody
from milo_kube.http.connection_memory import ConnectionMemory
from milo_kube.http.errors import TransportError
from milo_kube.http.tls import TlsTransport
from tests.support.eventually import eventually

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answers = Callable[[int, int], bytes | None]
"""The response by the number of the connection and of its request; None closes the connection without one."""


class Peer:
    def __init__(self, answers: Answers, *, ends: bool) -> None:
        self._answers = answers
        self._ends = ends
        self._connections = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        self._tasks.append(asyncio.create_task(self._serve(self._connections, reader, writer)))

    async def _serve(self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(1, 100):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                lengths = [line for line in head.split("\r\n") if line.lower().startswith("content-length:")]
                self.bodies.append(await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b"")
                answer = self._answers(connection, number)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if self._ends:
                    break
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def serving(
    answers: Answers | bytes, *, ends: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    given = answers if callable(answers) else (lambda connection, number: answers)
    peer = Peer(given, ends=ends)
    server = await asyncio.start_server(peer.accept, "127.0.0.1", 0, ssl=tls)
    peer.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield peer
        await peer.ended()


def client(idle_s: float = 15.0, memory: ConnectionMemory | None = None) -> Client:
    return Client(ssl.create_default_context, user_agent="tests", idle_s=idle_s, memory=memory)


async def got(
    using: Client, url: str, method: str = "GET", *, body: bytes | None = None, proxy: str | None = None
) -> tuple[int, bytes]:
    async with using.request(
        method, url, headers={}, body=body, proxy=proxy, connect_timeout_s=10, silence_s=10
    ) as response:
        read = b""
        while chunk := await response.read(10):
            read += chunk
        return response.status, read


async def failure(answer: bytes, *, ends: bool = False) -> TransportError:
    async with serving(answer, ends=ends) as peer, aclosing(client()) as using:
        with pytest.raises(TransportError) as raised:
            await got(using, peer.url)
        await using.aclose()
    return raised.value


def connections_of(peer: Peer) -> int:
    return peer._connections


async def test_connection_is_reused_for_the_next_request() -> None:
    async with serving(OK) as peer, aclosing(client()) as using:
        assert [await got(using, f"{peer.url}/a?b=c") for _ in range(3)] == [(200, b"ok")] * 3
        await using.aclose()
    assert connections_of(peer) == 1
    assert peer.heads[0].startswith("GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_idle_connection_is_closed_after_a_timeout() -> None:
    async with serving(OK) as peer, aclosing(client(idle_s=0.0)) as using:
        await got(using, peer.url)
        await peer.ended()


async def test_oldest_idle_connection_of_all_clients_is_closed_beyond_their_limit() -> None:
    memory = ConnectionMemory(60 << 10)
    async with (
        serving(OK) as first,
        serving(OK) as second,
        serving(OK) as third,
        aclosing(client(memory=memory)) as one,
        aclosing(client(memory=memory)) as other,
    ):
        for using, peer in ((one, first), (other, second), (one, third)):
            await got(using, peer.url)
        await first.ended()
        for using, peer in ((other, second), (one, third)):
            await got(using, peer.url)
        assert (connections_of(second), connections_of(third)) == (1, 1)
        await one.aclose()
        await other.aclose()


async def test_connection_in_use_is_not_closed_for_the_limit_of_idle_connections() -> None:
    async with (
        serving(lambda connection, number: OK[:-1]) as busy,
        serving(OK) as peer,
        aclosing(client(memory=ConnectionMemory(1))) as using,
    ):
        async with using.request("GET", busy.url, headers={}, connect_timeout_s=10, silence_s=10) as response:
            await got(using, peer.url)
            await peer.ended()
            assert await response.read(10) == b"o"
        await busy.ended()


async def test_closed_client_leaves_the_limit_of_idle_connections_to_others() -> None:
    memory = ConnectionMemory(30 << 10)
    async with serving(OK) as peer:
        async with aclosing(client(memory=memory)) as using:
            await got(using, peer.url)
        async with aclosing(client(memory=memory)) as using:
            assert [await got(using, peer.url) for _ in range(2)] == [(200, b"ok")] * 2
    assert connections_of(peer) == 2


async def test_get_is_retried_when_the_server_closed_the_reused_connection() -> None:
    async with (
        serving(lambda connection, number: OK if number == 1 else None) as peer,
        aclosing(client()) as using,
    ):
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"ok")] * 2
        await using.aclose()
    assert connections_of(peer) == 2


async def test_post_is_not_retried_when_the_server_closed_the_reused_connection() -> None:
    async with (
        serving(lambda connection, number: OK if number == 1 else None) as peer,
        aclosing(client()) as using,
    ):
        await got(using, peer.url, "POST", body=b"one")
        with pytest.raises(TransportError) as raised:
            await got(using, peer.url, "POST", body=b"two")
    assert raised.value.cause == "closed"
    assert peer.bodies == [b"one", b"two"]


async def test_request_on_a_new_connection_is_not_retried() -> None:
    async with serving(lambda connection, number: None) as peer, aclosing(client()) as using:
        with pytest.raises(TransportError):
            await got(using, peer.url)
    assert len(peer.heads) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nLink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;name=value\r\nk\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(b"ok", mtime=0)), gzip.compress(b"ok", mtime=0)),
    ],
    ids=["continue", "early hints", "chunks with extension and trailer", "gzip in chunks"],
)
async def test_http1_response_is_parsed(answer: bytes) -> None:
    async with serving(answer) as peer, aclosing(client()) as using:
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"ok")] * 2
        await using.aclose()
    assert connections_of(peer) == 1


@pytest.mark.parametrize(("size", "count"), [(1, 900), (70, 20_000)])
async def test_small_chunks_are_read(size: int, count: int) -> None:
    chunks = b"%x\r\n%b\r\n" % (size, b"x" * size) * count
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(head + chunks + b"0\r\n\r\n") as peer, aclosing(client()) as using:
        assert await got(using, peer.url) == (200, b"x" * size * count)


async def test_body_without_content_length_ends_with_the_connection() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n\r\nok", ends=True) as peer, aclosing(client()) as using:
        assert await got(using, peer.url) == (200, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
    ids=["length", "chunks", "head"],
)
async def test_truncated_response_is_an_error(answer: bytes) -> None:
    assert (await failure(answer, ends=True)).cause == "closed"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", "sent an invalid HTTP response"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
            "sent an invalid HTTP response",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "sent an invalid HTTP response"),
        (b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", "sent an invalid HTTP response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (OVERHEAD_LIMIT + 300_000), "bytes of headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, "bytes of headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"X:\r\n" * 2_000 + b"Content-Length: 2\r\n\r\nok", "bytes of headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"X:\r\n" * 50_000 + b"Content-Length: 2\r\n\r\nok", "bytes of headers"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: " + b"x" * 600_000,
            "bytes of headers",
        ),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok", "encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", "not valid gzip"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\n"
            + gzip.compress(b"ok", mtime=0)[:12],
            "truncated",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 25000\r\n\r\n"
            + gzip.compress(b"ok", mtime=0).ljust(25_000, b"x"),
            "sent data after the end of a gzip body",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2\r\nok\r\n" * 40_000, "pieces of a few bytes"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 200010\r\n\r\n"
            + gzip.compress(b"", mtime=0)[:10]
            + b"\0\0\0\xff\xff" * 40_000,  # empty blocks
            "gzip body without data",
        ),
    ],
)
async def test_invalid_http1_response_is_an_error(answer: bytes, problem: str) -> None:
    error = await failure(answer)
    assert error.cause == "closed"
    assert problem in str(error)


async def all_of(response: Response) -> int:
    size = 0
    while chunk := await response.read(10):
        size += len(chunk)
    return size


async def test_data_after_the_end_of_a_gzip_body_is_not_kept() -> None:
    body = gzip.compress(bytes(1 << 20)) + b"x" * (24 << 20)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(head + body) as peer, aclosing(client()) as using:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            with pytest.raises(TransportError, match="sent data after the end of a gzip body"):
                await all_of(response)
            assert response._unzip is not None
            assert len(response._unzip.unused_data) < 2 << 20
        await using.aclose()


async def test_failed_response_is_freed_at_once() -> None:
    body = gzip.compress(bytes(1 << 20)) + bytes(700_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def fail() -> None:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            with pytest.raises(TransportError, match="sent data after the end of a gzip body"):
                await all_of(response)

    def responses() -> int:
        return sum(isinstance(found, Response) for found in gc.get_objects())

    async with serving(head + body) as peer, aclosing(client()) as using:
        gc.collect()
        gc.disable()
        try:
            before = responses()
            await fail()
            assert responses() == before
        finally:
            gc.enable()


async def test_each_piece_of_a_gzip_body_is_small() -> None:
    body = gzip.compress(bytes(4 << 20))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with (
        serving(head + body) as peer,
        aclosing(client()) as using,
        using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response,
    ):
        sizes = [len(await response.read(10))]
        while sizes[-1]:
            sizes.append(len(await response.read(10)))
    assert (sum(sizes), max(sizes)) == (4 << 20, 64 << 10)


async def test_unsolicited_bytes_after_a_response_close_the_connection() -> None:
    async with serving(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil") as peer, aclosing(client()) as using:
        assert [await got(using, peer.url) for _ in range(2)] == [(200, b"ok")] * 2
        await using.aclose()
    assert connections_of(peer) == 2


async def test_connection_is_closed_when_the_body_is_not_read() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok") as peer, aclosing(client()) as using:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10):
            pass
        await peer.ended()


async def test_unread_response_causes_backpressure() -> None:
    body = b"x" * (32 << 20)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(head + body) as peer, aclosing(client()) as using:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            await eventually(lambda: len(response._body) > 128 << 10)
            held = len(response._body)
            read = 0
            while chunk := await response.read(10):
                read += len(chunk)
        await using.aclose()
    assert held < 2 << 20
    assert read == len(body)


async def test_large_body_is_not_copied_when_it_is_complete() -> None:
    class Arriving:
        """A response of 32 MiB in pieces."""

        origin, left = "https://api.test", 512

        async def read(self, _: float | None) -> bytes:
            self.left -= 1
            return bytes(1 << 16) if self.left >= 0 else b""

    tracemalloc.start()
    try:
        body = await ResponseBody(cast(Response, Arriving()), None).read(1 << 25)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(body) == 1 << 25
    assert peak < 1.3 * len(body)
    with pytest.raises(TransportError, match="more than 1000 bytes"):
        await ResponseBody(cast(Response, Arriving()), None).read(1000)


async def test_closed_client_cancels_requests_in_flight() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok") as peer, aclosing(client()) as using:
        async with using.request("GET", peer.url, headers={}, connect_timeout_s=10) as response:
            assert await response.read(10) == b"ok"
            await using.aclose()
            with pytest.raises(TransportError):
                await response.read(10)
        await peer.ended()


async def test_line_break_in_a_header_is_refused() -> None:
    async with serving(OK) as peer, aclosing(client()) as using:
        with pytest.raises(ValueError, match="line break"):
            async with using.request("GET", peer.url, headers={"X": "a\r\nB: c"}, connect_timeout_s=10):
                pass
        await using.aclose()
    assert not peer.heads


async def test_tls_close_notify_closes_the_connection() -> None:
    """A server may send close_notify, and wait for that of the client before it closes the socket."""
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    async with (
        serving(OK, ends=True, tls=server) as peer,
        aclosing(Client(lambda: trusting, user_agent="tests")) as using,
        asyncio.timeout(15),  # shorter than the wait of the server
    ):
        assert await got(using, peer.url) == (200, b"ok")
        await peer.ended()


async def test_concurrent_connection_attempts_to_one_server_are_limited() -> None:
    """Each connection waits for the TLS handshake, which the server does not answer."""
    accepted: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        trusting = ssl.create_default_context()  # once: it takes longer than the dials
        async with aclosing(Client(lambda: trusting, user_agent="tests")) as using:
            requests = [asyncio.create_task(got(using, url)) for _ in range(DIALS_PER_SERVER + 1)]
            await eventually(lambda: len(accepted) == DIALS_PER_SERVER)
            accepted[0].close()
            await eventually(lambda: len(accepted) == DIALS_PER_SERVER + 1)
            assert sum(request.done() for request in requests) == 1
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        for writer in accepted:
            writer.close()


# --- proxies ---


async def test_plain_http_request_sends_its_absolute_url_to_the_proxy() -> None:
    async with serving(OK) as peer, aclosing(client()) as using:
        proxy = peer.url.replace("http://", "http://user:p%40ss@")
        assert await got(using, "http://api.test/version", proxy=proxy) == (200, b"ok")
        await using.aclose()
    assert peer.heads[0].startswith("GET http://api.test/version HTTP/1.1\r\nHost: api.test\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in peer.heads[0]


async def test_international_hostname_is_sent_in_ascii() -> None:
    """Found by a reader: the request raised UnicodeEncodeError, which no caller expects."""
    async with serving(OK) as peer, aclosing(client()) as using:
        assert await got(using, "http://例え.test/version", proxy=peer.url) == (200, b"ok")
        with pytest.raises(TransportError, match="it is not a valid hostname"):
            await got(using, f"http://{'例' * 64}.test/version", proxy=peer.url)
        await using.aclose()
    assert peer.heads[0].startswith("GET http://xn--r8jz45g.test/version HTTP/1.1\r\nHost: xn--r8jz45g.test\r\n")


@pytest.mark.parametrize("host", ["api.test", "api.test."])
async def test_https_request_uses_a_connect_tunnel_of_an_https_proxy(host: str) -> None:
    """Certificates, and the name that a handshake states, have no trailing dot."""
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1", "api.test").configure_cert(server)
    authority.configure_trust(trusting)
    stated: set[str | None] = set()
    server.sni_callback = lambda _, name, __: stated.add(name)
    async with serving(OK, tls=server) as target:
        port = int(target.url.rpartition(":")[2])
        async with tunneling(server, port) as tunnel, aclosing(Client(lambda: trusting, user_agent="tests")) as using:
            url = f"https://{host}:{port}/"
            assert [await got(using, url, proxy=tunnel.url) for _ in range(2)] == [(200, b"ok")] * 2
            await using.aclose()
    assert tunnel.asked == [f"CONNECT {host}:{port} HTTP/1.1".encode()]
    assert f"Host: {host}:{port}" in target.heads[0]
    assert stated == {None, "api.test"}


class Tunnel:
    """An HTTPS proxy that connects every tunnel to one local port, whatever host is requested."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: list[asyncio.Task[None]] = []
        self.asked: list[bytes] = []
        """The first line of each request."""
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def tunneling(tls: ssl.SSLContext, port: int) -> AsyncIterator[Tunnel]:
    tunnel = Tunnel(port)
    proxy = await asyncio.start_server(tunnel.accept, "127.0.0.1", 0, ssl=tls)
    tunnel.url = f"https://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    async with proxy:
        yield tunnel
        await tunnel.ended()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_tls_connection_lost_before_its_handshake_is_awaited_reports_no_unhandled_error() -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    secured = TlsTransport(lambda _: asyncio.Protocol(), ssl.create_default_context(), "api.test")
    secured.connection_lost(None)  # as after the request was canceled
    del secured
    gc.collect()
    assert reported == []


async def test_tunnel_is_closed_if_tls_cannot_begin_in_it() -> None:
    def context() -> ssl.SSLContext:
        raise OSError("no file descriptor is left")

    async with (
        asyncio.timeout(20),
        serving(b"HTTP/1.1 200 OK\r\n\r\n") as peer,  # until the client closes the connection
        aclosing(Client(context, user_agent="tests")) as using,
    ):
        with pytest.raises(TransportError, match="no file descriptor"):
            await got(using, "https://api.test", proxy=peer.url)


async def test_long_phrase_of_proxy_is_shortened() -> None:
    async with serving(b"HTTP/1.1 403 " + b"x" * 50_000 + b"\r\n\r\n") as peer, aclosing(client()) as using:
        with pytest.raises(TransportError, match="answered 403 xxx") as caught:
            await got(using, "https://api.test", proxy=peer.url)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "proxy",
    ["http://user:secret@proxy.test:port", "socks5://user:secret@proxy.test:1080", "http://", "ftp://proxy.test"],
)
async def test_request_through_something_that_is_no_proxy_fails(proxy: str) -> None:
    using = client()
    with pytest.raises(
        TransportError, match=r"^the proxy for https://api.test is not http\(s\)://HOST\[:PORT\]"
    ) as caught:
        async with using.request("GET", "https://api.test", headers={}, proxy=proxy, connect_timeout_s=10):
            pass
    assert caught.value.cause == "connect"
    await using.aclose()
