"""Tests of the TCP proxy with network faults, `tests/support/tcp_proxy.py`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.eventually import LIMIT_S, eventually
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def at(cls, proxy: TcpProxy) -> "Caller":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    def says(self, text: str) -> None:
        self._writer.write(f"{text}\n".encode())

    async def hears(self) -> str:
        async with asyncio.timeout(LIMIT_S):
            return (await self._reader.readline()).decode().rstrip("\n")

    def close(self) -> None:
        self._writer.close()


async def test_tcp_proxy_forwards_bytes_both_ways(echo: int) -> None:
    async with TcpProxy(echo) as proxy:
        caller = await Caller.at(proxy)
        caller.says("hello")
        assert await caller.hears() == "hello"
        caller.close()


async def test_tcp_proxy_connects_to_unix_sockets(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        writer.close()

    async with await asyncio.start_unix_server(greet, tmp_path / "s"), TcpProxy(str(tmp_path / "s")) as proxy:
        caller = await Caller.at(proxy)
        assert await caller.hears() == "welcome"
        caller.close()


async def test_tcp_proxy_cut_resets_open_connections_and_accepts_new_ones(echo: int) -> None:
    async with TcpProxy(echo) as proxy:
        caller = await Caller.at(proxy)
        caller.says("hello")
        await caller.hears()
        await proxy.cut()
        with pytest.raises(ConnectionResetError):
            await caller.hears()
        caller = await Caller.at(proxy)
        caller.says("again")
        assert await caller.hears() == "again"
        caller.close()


async def test_tcp_proxy_refuses_connections_and_resumes_on_the_same_port(echo: int) -> None:
    async with TcpProxy(echo) as proxy:
        async with proxy.refusing():
            with pytest.raises(ConnectionRefusedError):
                await Caller.at(proxy)
        caller = await Caller.at(proxy)
        caller.says("hello")
        assert await caller.hears() == "hello"
        caller.close()


async def test_tcp_proxy_delivers_slow_bytes_completely(echo: int) -> None:
    async with TcpProxy(echo) as proxy, proxy.dripping():
        caller = await Caller.at(proxy)
        caller.says("x" * 700)
        assert await caller.hears() == "x" * 700
        caller.close()


async def test_tcp_proxy_never_reuses_a_connection_that_lost_bytes(echo: int) -> None:
    async with TcpProxy(echo) as proxy:
        caller = await Caller.at(proxy)
        async with proxy.swallowing():
            caller.says("lost")
            await eventually(lambda: proxy.swallowed == len("lost\n"))
        caller.says("lost too")
        await eventually(lambda: proxy.swallowed == len("lost\nlost too\n"))
        another = await Caller.at(proxy)
        another.says("hello")
        assert await another.hears() == "hello"
        caller.close()
        another.close()


async def test_tcp_proxy_closes_connections_if_its_target_is_down() -> None:
    async with TcpProxy("/nowhere") as proxy:
        caller = await Caller.at(proxy)
        assert await caller.hears() == ""
        caller.close()
