"""Tests of the proxy: it forwards bytes, cuts connections, and refuses them when its server is down."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.end_to_end.real.proxy import Proxy
from tests.support.eventually import LIMIT_S


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    made = Proxy()
    yield made
    await made.close()


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> bytes:
    writer.write(line)
    async with asyncio.timeout(LIMIT_S):
        return await reader.readline()


async def test_proxy_forwards_bytes_both_ways(proxy: Proxy, echo: int) -> None:
    await proxy.open(echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

    assert await say(reader, writer, b"hello\n") == b"hello\n"

    writer.close()


async def test_proxy_cut_resets_connections_and_serves_new_ones(proxy: Proxy, echo: int) -> None:
    await proxy.open(echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await say(reader, writer, b"hello\n")

    await proxy.cut()

    with pytest.raises(ConnectionResetError):
        await reader.readline()
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await say(reader, writer, b"again\n") == b"again\n"
    writer.close()


@pytest.mark.parametrize("steps", range(12))
async def test_proxy_cut_during_connection_end_is_harmless(proxy: Proxy, echo: int, steps: int) -> None:
    await proxy.open(echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await say(reader, writer, b"hello\n")
    writer.transport.abort()
    for _ in range(steps):
        await asyncio.sleep(0)

    await proxy.cut()

    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await say(reader, writer, b"again\n") == b"again\n"
    writer.close()


@pytest.mark.parametrize("steps", range(6))
async def test_proxy_shut_ends_connections_being_accepted(proxy: Proxy, echo: int, steps: int) -> None:
    await proxy.open(echo)
    client = socket.create_connection(("127.0.0.1", proxy.port))
    for _ in range(steps):
        await asyncio.sleep(0)

    await proxy.shut()

    client.settimeout(5)
    with client, suppress(ConnectionResetError):
        assert client.recv(1) == b""


async def test_proxy_never_opened_refuses_connections(proxy: Proxy) -> None:
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_proxy_reopens_at_same_port(proxy: Proxy, echo: int) -> None:
    port = proxy.port
    await proxy.open(echo)
    await proxy.shut()

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)

    await proxy.open(echo)
    assert proxy.port == port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await say(reader, writer, b"hello\n") == b"hello\n"
    writer.close()


async def test_proxy_refuses_new_connections_and_keeps_open_ones(proxy: Proxy, echo: int) -> None:
    await proxy.open(echo)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await say(reader, writer, b"hello\n")

    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await say(reader, writer, b"still\n") == b"still\n"
    writer.close()


async def test_proxy_forwards_end_of_connection(proxy: Proxy) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        await proxy.open(server.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        writer.close()


async def test_proxy_flushes_data_and_drops_disconnected_client(echo: int) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello, " + await reader.readline())

    proxy = Proxy(greet)
    await proxy.open(echo)
    _, leaving = await asyncio.open_connection("127.0.0.1", proxy.port)
    leaving.close()
    await leaving.wait_closed()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

    assert await say(reader, writer, b"somebody\n") == b"hello, somebody\n"
    assert await say(reader, writer, b"again\n") == b"again\n"

    writer.close()
    await proxy.close()
