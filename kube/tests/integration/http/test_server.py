"""The HTTP server on a real socket."""

import asyncio
import gc
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from milo_kube.http import server as server_module
from milo_kube.http.server import FIELDS_LIMIT, REQUEST_LIMIT, HttpReply, HttpServer, ServerRequest
from milo_kube.http.tls import TlsTransport
from tests.support.certificates import Authority
from tests.support.eventually import LIMIT_S, eventually

LARGE = 16 << 20
"""More bytes than the buffers of two sockets take."""


@asynccontextmanager
async def serving(
    connections: int = 8, *, body_limit: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int, list[ServerRequest]]]:
    seen: list[ServerRequest] = []
    never = asyncio.Event()

    async def answer(request: ServerRequest) -> HttpReply:
        seen.append(request)
        if request.path == "/never":
            await never.wait()
        if request.path == "/large":
            return HttpReply(bytes(LARGE))
        return HttpReply(f"{request.path} {dict(request.query)}".encode())

    server = HttpServer(answer, connections=connections, body_limit=body_limit, tls=tls)
    url = await server.start("127.0.0.1", 0)
    host, _, port = url.partition("://")[2].rpartition(":")
    try:
        yield host, int(port), seen
    finally:
        await server.stop()


async def received(host: str, port: int, sent: bytes) -> bytes:
    """Return everything that is received until the server closes the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(sent)
    async with asyncio.timeout(LIMIT_S):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_connection_serves_consecutive_requests() -> None:
    async with serving() as (host, port, seen):
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(2):
            writer.write(b"GET /a%20b?c=d&e HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(len(b"/a b {'c': 'd', 'e': ''}"))
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: keep-alive" in head
    assert answer == b"/a b {'c': 'd', 'e': ''}"
    assert (seen[0].peer, seen[0].headers["HOST"]) == ("127.0.0.1", "x")


async def test_stopped_server_closes_a_connection_that_it_is_accepting() -> None:
    async def answer(_: ServerRequest) -> HttpReply:
        raise NotImplementedError

    server = HttpServer(answer, connections=8)
    port = int((await server.start("127.0.0.1", 0)).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # accepted; a task that will handle the connection has been created
        await server.stop()
        connection.settimeout(LIMIT_S)
        with suppress(ConnectionResetError):
            assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_head_response_has_no_body() -> None:
    async with serving() as (host, port, _):
        answer = await received(host, port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("together", [True, False])
async def test_pipelined_request_is_not_answered(together: bool) -> None:
    request = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving() as (host, port, seen):
        answer = await received(host, port, request * 2 if together else request + b"GET")
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer
    assert len(seen) == 1


async def test_protocol_upgrade_is_ignored() -> None:
    async with serving() as (host, port, _):
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n"
        answer = await received(host, port, b"GET / HTTP/1.1\r\nHost: x\r\n" + offer)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET /" + b"x" * REQUEST_LIMIT, b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * REQUEST_LIMIT, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (FIELDS_LIMIT + 1) + b"\r\n", b"431"),
        (b"GET /?" + b"&a" * FIELDS_LIMIT + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n" + b"x" * REQUEST_LIMIT, b"431"),
    ],
    ids=["method", "TLS", "smuggling", "target", "header", "many headers", "query", "body"],
)
async def test_invalid_request_is_rejected_and_its_connection_closed(sent: bytes, status: bytes) -> None:
    async with serving() as (host, port, seen):
        answer = await received(host, port, sent)
    assert answer.split(b" ")[1] == status
    assert not seen


async def test_request_of_a_disconnected_client_is_canceled() -> None:
    async with serving() as (host, port, seen):
        before = asyncio.all_tasks()
        _, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: bool(seen))
        [answering] = [task for task in asyncio.all_tasks() - before if task.get_name() == "answer an HTTP request"]
        writer.transport.abort()
        with pytest.raises(asyncio.CancelledError):
            await answering


async def test_oldest_unread_replies_are_dropped_beyond_their_limit() -> None:
    """Clients that read no reply must not take the memory of the process."""
    async with serving() as (host, port, seen), AsyncExitStack() as closing:
        crowd = [closing.enter_context(socket.create_connection((host, port), LIMIT_S)) for _ in range(6)]
        for count, client in enumerate(crowd, 1):
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await eventually(lambda: len(seen) == count)  # noqa: B023 - called before the next one
        are_whole = [await asyncio.to_thread(read_all, client) > LARGE for client in crowd]
    assert are_whole == [False, False, True, True, True, True]


async def test_bodies_that_arrive_slowly_are_dropped_beyond_their_limit() -> None:
    """Neither a short request nor the newest one pays for the clients that send large bodies and never end them."""
    async with serving(body_limit=LARGE) as (host, port, seen), AsyncExitStack() as closing:
        crowd = [closing.enter_context(socket.create_connection((host, port), LIMIT_S)) for _ in range(7)]
        for client, size in zip(crowd, (1000, *[LARGE] * 6), strict=True):
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            with suppress(ConnectionError):
                await asyncio.to_thread(client.sendall, head.encode() + bytes(size - 1))
        await eventually(lambda: sum(map(is_open, crowd)) == 1 + 4)
        assert is_open(crowd[0])
        crowd[0].sendall(b".")
        assert (await asyncio.to_thread(crowd[0].recv, 100)).startswith(b"HTTP/1.1 200 ")
        assert [len(request.body) for request in seen] == [1000]


async def test_connection_whose_request_is_being_answered_is_not_closed_for_a_new_one() -> None:
    async with serving(2) as (host, port, seen), AsyncExitStack() as closing:
        clients = [closing.enter_context(socket.create_connection((host, port), LIMIT_S))]
        clients[0].sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: len(seen) == 1)
        for _ in range(2):
            clients.append(closing.enter_context(socket.create_connection((host, port), LIMIT_S)))
            clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asyncio.to_thread(clients[-1].recv, 4096)).startswith(b"HTTP/1.1 200 ")
        assert [is_open(client) for client in clients] == [True, False, True]


async def test_connections_that_are_accepted_at_once_are_limited() -> None:
    async with serving() as (host, port, _), AsyncExitStack() as closing:
        crowd = [closing.enter_context(socket.create_connection((host, port), LIMIT_S)) for _ in range(50)]
        await eventually(lambda: sum(map(is_open, crowd)) == 8)


async def test_request_is_answered_before_a_flood_of_connections_closes_its_own() -> None:
    async with serving(64) as (host, port, _), AsyncExitStack() as closing:
        probe = closing.enter_context(socket.create_connection((host, port), LIMIT_S))
        probe.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        flood = [closing.enter_context(socket.socket()) for _ in range(300)]
        for client in flood:
            client.setblocking(False)
            client.connect_ex((host, port))
        assert (await asyncio.to_thread(probe.recv, 100)).startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: sum(map(is_open, flood)) == 64)


async def test_connections_that_their_clients_have_closed_take_the_place_of_no_other() -> None:
    async with serving(connections=2) as (host, port, _):
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(LIMIT_S):
                await reader.readuntil(b"/ {}")
            for number in range(200):  # the server accepts none before this test awaits something
                with socket.create_connection((host, port)) as closed:
                    if number % 2:
                        closed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            answered = await received(host, port, b"GET /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"/other" in answered
        writer.close()
        await writer.wait_closed()


async def test_connections_without_a_handshake_are_limited(tmp_path: Path) -> None:
    ca = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.server().write(tmp_path, "server"))
    async with serving(tls=context) as (host, port, _), AsyncExitStack() as closing:
        silent = [closing.enter_context(socket.create_connection((host, port), LIMIT_S)) for _ in range(20)]
        await eventually(lambda: sum(map(is_open, silent)) == 8)
        trusting = ssl.create_default_context(cadata=ca.pem.decode())
        reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        silent[-1].sendall(b"not TLS")
        await eventually(lambda: not is_open(silent[-1]))


async def test_unexpected_error_of_a_handshake_ends_its_connection_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.server().write(tmp_path, "server"))
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: raised.append(problem))

    async def broken(_: TlsTransport) -> None:
        raise ZeroDivisionError

    async with serving(tls=context) as (host, port, _):
        with monkeypatch.context() as patched, socket.create_connection((host, port), LIMIT_S) as client:
            patched.setattr(TlsTransport, "handshake", broken)
            await eventually(lambda: not is_open(client))
        trusting = ssl.create_default_context(cadata=ca.pem.decode())
        reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    gc.collect()
    assert [type(problem.get("exception")) for problem in raised] == [ZeroDivisionError]


def is_open(client: socket.socket) -> bool:
    """Return whether the server has not closed the connection. What it sent stays unread."""
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        client.settimeout(LIMIT_S)


async def test_request_sent_before_the_previous_reply_was_read_is_not_answered() -> None:
    async with serving() as (host, port, seen):
        with socket.create_connection((host, port), LIMIT_S) as client:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: len(seen) == 1)
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert LARGE < await asyncio.to_thread(read_all, client) < 2 * LARGE
    assert len(seen) == 1


def read_all(client: socket.socket) -> int:
    """Return how many bytes are received until the server closes the connection."""
    size = 0
    with suppress(ConnectionError):
        while data := client.recv(1 << 20):
            size += len(data)
    return size


async def test_stopped_server_cancels_requests() -> None:
    async with serving() as (host, port, seen):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: bool(seen))
    assert await reader.read() == b""
    writer.close()


async def test_port_in_use_is_an_error() -> None:
    async def answer(request: ServerRequest) -> HttpReply:
        return HttpReply(b"")

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await HttpServer(answer, connections=1).start("127.0.0.1", taken.getsockname()[1])


async def test_unexpected_error_of_a_handler_ends_only_its_connection() -> None:
    unhandled: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context["message"]))

    async def answer(request: ServerRequest) -> HttpReply:
        if request.path == "/broken":
            raise ZeroDivisionError
        return HttpReply(b"fine")

    server = HttpServer(answer, connections=8)
    host, _, port = (await server.start("127.0.0.1", 0)).removeprefix("http://").rpartition(":")
    try:
        with suppress(ConnectionResetError):
            assert not await received(host, int(port), b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        answered = await received(host, int(port), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answered.endswith(b"fine")
    finally:
        await server.stop()
    gc.collect()
    assert unhandled == ["Task exception was never retrieved"], "asyncio logs it with its stack"


async def test_closed_connection_holds_neither_its_body_nor_what_its_handler_held() -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    async def answer(_: ServerRequest) -> HttpReply:
        async with asyncio.timeout(LIMIT_S):
            large = Held()
            held.append(weakref.ref(large))
            await asyncio.Event().wait()
        raise AssertionError("the connection was not closed")

    server = HttpServer(answer, connections=8, body_limit=1 << 20)
    host, _, port = (await server.start("127.0.0.1", 0)).removeprefix("http://").rpartition(":")
    gc.collect()
    gc.disable()
    try:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" + b"x" * 9)
        await eventually(lambda: held)
        writer.transport.abort()
        await eventually(lambda: held[0]() is None)
        connections = [found for found in gc.get_objects() if isinstance(found, server_module._Connection)]
        assert not any(connection.held for connection in connections)
    finally:
        gc.enable()
        await server.stop()


async def test_other_connections_are_not_looked_at_for_each_piece_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,000 connections, a request of 16 KB took 1.5 s."""
    looks: list[object] = []
    held = server_module._Connection.held
    looking = property(lambda connection: looks.append(connection) or held.fget(connection))  # type: ignore[func-returns-value, attr-defined]
    monkeypatch.setattr(server_module._Connection, "held", looking)
    chunks = b"1\r\na\r\n" * 2_000 + b"0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(body_limit=1 << 20) as (host, port, seen):
        assert (await received(host, port, head + chunks)).startswith(b"HTTP/1.1 200")
    assert seen[0].body == b"a" * 2_000
    assert len(looks) < 10


async def test_idle_connection_is_kept_for_longer_than_an_api_server_keeps_it() -> None:
    """An API server, and each client in Go, closes it after 90 s, and does not repeat a POST that meets the end."""
    delays: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    async with serving(body_limit=10) as (host, port, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loop,
                "call_later",
                lambda delay, *given, **more: delays.append(delay) or call_later(delay, *given, **more),
            )
            request = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
            assert b"/a {}" in await received(host, port, request)
    assert min(delays) > 90.0


async def test_request_that_has_begun_is_answered_while_the_server_stops() -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(_: ServerRequest) -> HttpReply:
        is_asked.set()
        await may_answer.wait()
        return HttpReply(b"answered")

    server = HttpServer(answer, connections=8)
    url = await server.start("127.0.0.1", 0)
    host, _, port = url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        await is_asked.wait()
        stopping = asyncio.create_task(server.stop(within_s=LIMIT_S))
        await eventually(lambda: server.is_stopping)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        may_answer.set()
        answered = await reader.read()
        await stopping
    assert b"Connection: close\r\n" in answered
    assert answered.endswith(b"answered")
    writer.close()


async def test_server_stops_although_a_request_is_not_answered() -> None:
    never = asyncio.Event()

    async def answer(_: ServerRequest) -> HttpReply:
        await never.wait()
        raise AssertionError

    server = HttpServer(answer, connections=8)
    url = await server.start("127.0.0.1", 0)
    host, _, port = url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        await server.stop(within_s=0.05)
        with suppress(ConnectionResetError):
            assert not await reader.read()
    writer.close()


async def test_request_at_the_end_of_the_idle_time_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_S", 2.0)
    answering = asyncio.Event()

    async def answer(_: ServerRequest) -> HttpReply:
        await answering.wait()
        return HttpReply(b"answered")

    server = HttpServer(answer, connections=1)
    url = await server.start("127.0.0.1", 0)
    host, _, port = url.partition("://")[2].rpartition(":")
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(host, int(port))
    opened = loop.time()
    loop.call_at(opened + 1.0, writer.write, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    loop.call_at(opened + 2.3, answering.set)
    try:
        async with asyncio.timeout(LIMIT_S):
            assert await reader.readuntil(b"answered")
    finally:
        writer.close()
        await server.stop()
