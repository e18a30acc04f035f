"""The proxy between two connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame

from milo_discoveryd.server.connections.header_blocks import FRAME_COST, PREFACE_BYTES, HeaderBlocks
from milo_discoveryd.server.connections.proxy import MOST_TOGETHER, READ_BYTES, ProxySide, proxy
from milo_discoveryd.server.connections.unread import UnreadLimit


async def two_ends() -> tuple[socket.socket, socket.socket, "asyncio.Task[bool]"]:
    """Return the outer ends of two proxied connections, and the task of the proxy."""
    loop = asyncio.get_running_loop()
    (client, ours), (server, theirs) = socket.socketpair(), socket.socketpair()
    for sock in (client, ours, server, theirs):
        sock.setblocking(False)
    one, other = ProxySide(UnreadLimit()), ProxySide(UnreadLimit())
    await loop.create_connection(lambda: one, sock=ours)
    # Data that arrives before the connections are joined is buffered.
    await loop.sock_sendall(client, b"early, ")
    await asyncio.sleep(0)
    await loop.create_connection(lambda: other, sock=theirs)
    return client, server, asyncio.create_task(proxy(one, other))


@asynccontextmanager
async def held_calls(pause_s: Callable[[int, float], float]) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Yield the outer ends of two connections, of which one is a client's with this limit of calls."""
    loop = asyncio.get_running_loop()
    (client, ours), (server, theirs) = socket.socketpair(), socket.socketpair()
    for sock in (client, ours, server, theirs):
        sock.setblocking(False)
    one, other = ProxySide(UnreadLimit()), ProxySide(UnreadLimit())
    one.header_blocks, one.pause_s = HeaderBlocks(), pause_s
    await loop.create_connection(lambda: one, sock=ours)
    await loop.create_connection(lambda: other, sock=theirs)
    passing = asyncio.create_task(proxy(one, other))
    await asyncio.sleep(0)
    try:
        yield client, server
    finally:
        client.close()
        server.close()
        await passing


async def test_proxy_forwards_in_both_directions() -> None:
    loop = asyncio.get_running_loop()
    client, server, passing = await two_ends()
    await loop.sock_sendall(client, b"then")
    received = b""
    while len(received) < 11:
        received += await loop.sock_recv(server, 100)
    assert received == b"early, then"
    await loop.sock_sendall(server, b"answer")
    assert await loop.sock_recv(client, 100) == b"answer"
    client.close()
    server.close()
    await passing


async def test_proxy_forwards_half_close() -> None:
    loop = asyncio.get_running_loop()
    client, server, passing = await two_ends()
    client.shutdown(socket.SHUT_WR)
    assert await loop.sock_recv(server, 100) == b"early, "
    assert await loop.sock_recv(server, 100) == b""
    await loop.sock_sendall(server, b"still here")
    assert await loop.sock_recv(client, 100) == b"still here"
    server.close()
    assert await loop.sock_recv(client, 100) == b""
    await passing
    client.close()


async def test_calls_of_a_paused_client_are_passed_on_after_the_pause() -> None:
    loop, preface = asyncio.get_running_loop(), b"x" * PREFACE_BYTES
    calls = HeadersFrame(1, b"x").serialize() + HeadersFrame(3, b"y").serialize()
    pauses, asked = [0.05, 0.05, 0.0, 0.0], list[float]()

    def pause_s(_calls: int, cost: float) -> float:
        asked.append(cost)
        return pauses.pop(0)

    async with held_calls(pause_s) as (client, server):
        await loop.sock_sendall(client, preface + calls)
        await asyncio.sleep(0.02)
        await loop.sock_sendall(client, calls)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await loop.sock_recv(server, 100)
        received = b""
        while len(received) < len(preface + calls + calls):
            received += await loop.sock_recv(server, 1000)
        assert received == preface + calls + calls
    assert asked == [2, 2, 2, 2]


@pytest.mark.parametrize("frame", [SettingsFrame(0), PingFrame(0, bytes(8)), DataFrame(1, b"")])
async def test_frames_that_begin_no_call_are_paused_as_well(frame: Frame) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Queue[float]()
    pauses = [0.1, 0.0]

    def pause_s(_calls: int, cost: float) -> float:
        asked.put_nowait(cost)
        return pauses.pop(0)

    async with held_calls(pause_s) as (client, server):
        await loop.sock_sendall(client, b"x" * PREFACE_BYTES + frame.serialize() * 10)
        assert await asyncio.wait_for(asked.get(), 5) == pytest.approx(10 * FRAME_COST)
        with pytest.raises(BlockingIOError):
            server.recv(1000)
        assert len(await loop.sock_recv(server, 1000)) == PREFACE_BYTES + 10 * len(frame.serialize())


async def test_calls_are_passed_on_in_parts_and_a_call_with_the_end_of_its_headers() -> None:
    """A call waits for those before it, of which gRPC takes none before its headers are complete."""
    loop, asked = asyncio.get_running_loop(), asyncio.Queue[int]()
    frames = [HeadersFrame(stream, b"x" * 20, flags=["END_HEADERS"]).serialize() for stream in range(1, 41, 2)]
    data = b"x" * PREFACE_BYTES + b"".join(frames)
    part = PREFACE_BYTES + MOST_TOGETHER * len(frames[0])
    may_pass = 0

    def pause_s(calls: int, _cost: float) -> float:
        nonlocal may_pass
        asked.put_nowait(calls)
        may_pass -= 1
        return 0.0 if may_pass >= 0 else 0.01

    async def passed(size: int) -> bytes:
        nonlocal may_pass
        may_pass, received = 1, b""
        while len(received) < size:
            received += await asyncio.wait_for(loop.sock_recv(server, 10_000), 5)
        with pytest.raises(BlockingIOError):
            server.recv(1)
        return received

    async with held_calls(pause_s) as (client, server):
        await loop.sock_sendall(client, data[:-1])
        received = await passed(part)
        assert asked.get_nowait() == MOST_TOGETHER
        received += await passed(part - PREFACE_BYTES)
        received += await passed(len(data) - 1 - len(received))
        while not asked.empty():
            last = asked.get_nowait()
        assert last == len(frames) - 2 * MOST_TOGETHER - 1
        await loop.sock_sendall(client, data[-1:])
        received += await passed(1)
        assert asked.get_nowait() == 1
    assert received == data


async def test_client_is_not_read_from_until_it_reads_what_it_was_sent() -> None:
    """gRPC keeps up to 10,000 answers to SETTINGS and PING frames of each connection."""
    loop = asyncio.get_running_loop()
    (client, ours), (server, theirs) = socket.socketpair(), socket.socketpair()
    for sock in (client, ours, server, theirs):
        sock.setblocking(False)
    one, other = ProxySide(UnreadLimit()), ProxySide(UnreadLimit())
    one.header_blocks = HeaderBlocks()
    await loop.create_connection(lambda: one, sock=ours)
    await loop.create_connection(lambda: other, sock=theirs)
    passing = asyncio.create_task(proxy(one, other))
    sending = asyncio.create_task(loop.sock_sendall(server, b"x" * 2_000_000))
    while not one._is_stalled:  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(0)
    assert not one.transport.is_reading()
    received = 0
    while received < 2_000_000:
        received += len(await loop.sock_recv(client, 65_536))
    await sending
    await loop.sock_sendall(client, b"y" * PREFACE_BYTES)
    assert await loop.sock_recv(server, 100) == b"y" * PREFACE_BYTES
    client.close()
    server.close()
    await passing


async def test_proxy_flushes_before_close() -> None:
    loop = asyncio.get_running_loop()
    client, server, passing = await two_ends()
    sending = asyncio.create_task(loop.sock_sendall(server, b"x" * 1_000_000))
    received = 0
    while received < 1_000_000:
        received += len(await loop.sock_recv(client, 65_536))
        if sending.done():
            server.close()
    server.close()
    await passing
    client.close()


async def test_proxy_reports_which_side_closed_first() -> None:
    loop = asyncio.get_running_loop()
    client, server, passing = await two_ends()
    server.close()
    assert await passing, "the server closed first"
    client.close()

    client, server, passing = await two_ends()
    client.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(server, 100):
        pass
    server.close()
    assert not await passing, "the server received everything"
    client.close()


async def test_canceled_proxy_closes_both_sides() -> None:
    client, server, passing = await two_ends()
    await asyncio.sleep(0)
    passing.cancel()
    await asyncio.wait((passing,))
    loop = asyncio.get_running_loop()
    for sock in (client, server):
        with suppress(ConnectionResetError):
            while await loop.sock_recv(sock, 100):
                pass
        sock.close()


class Recorded(ProxySide):
    def __init__(self) -> None:
        super().__init__(UnreadLimit())
        self.sizes: list[int] = []

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        super().data_received(data)


async def test_proxy_reads_little_of_a_client_at_once() -> None:
    """Each frame costs time, and its client chooses how many there are in a piece, and on how many connections."""
    loop = asyncio.get_running_loop()
    (client, ours), (server, theirs) = socket.socketpair(), socket.socketpair()
    for sock in (client, ours, server, theirs):
        sock.setblocking(False)
    size, one, other = 100_000, Recorded(), ProxySide(UnreadLimit())
    await one.adopt(ours)
    await loop.create_connection(lambda: other, sock=theirs)
    await loop.sock_sendall(client, b"x" * size)
    passing = asyncio.create_task(proxy(one, other))
    received = 0
    while received < size:
        received += len(await loop.sock_recv(server, size))
    assert max(one.sizes) <= READ_BYTES
    client.close()
    server.close()
    await passing
