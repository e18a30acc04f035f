"""Connections to API servers: keepalive and proxies."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from milo_discoveryd.watchers.transport import Transport
from milo_kube.credential import Secret
from milo_kube.http.dialing import keep_alive
from milo_kube.http.errors import TransportError
from tests.integration.watchers.api_server import ApiServer, answering, upstream


def test_socket_options_detect_a_vanished_peer_within_45_seconds() -> None:
    with socket.socket() as made:
        keep_alive(made)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            made.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 45
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


class Tunnels:
    """A proxy that connects every tunnel to one local port, whatever host is requested."""

    def __init__(self, leads_to: int) -> None:
        self._leads_to = leads_to
        self.port = 0
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode().split("\r\n")[0])
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._leads_to)
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, far_writer))
            tasks.create_task(pump(far_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxy(leads_to: int) -> AsyncIterator[Tunnels]:
    tunnels = Tunnels(leads_to)
    server = await asyncio.start_server(tunnels.serve, "127.0.0.1", 0)
    async with server:
        tunnels.port = server.sockets[0].getsockname()[1]
        yield tunnels


async def test_kubeconfig_proxy_applies_to_loopback() -> None:
    async with ApiServer(answering()) as server, proxy(server.port) as tunnels:
        transport = Transport(upstream(server, proxy=Secret(f"http://127.0.0.1:{tunnels.port}")))
        answer = await transport.get("/version", timeout_s=10)
        await transport.aclose()
    assert answer.status == 200
    assert tunnels.asked == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]


async def test_proxy_of_the_environment_is_used_except_for_no_proxy_hosts() -> None:
    authority = trustme.CA()
    async with (
        ApiServer(answering(), authority, leaf=authority.issue_cert("api.invalid")) as server,
        proxy(server.port) as tunnels,
    ):
        at = upstream(server, server="https://api.invalid")
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{tunnels.port}", "NO_PROXY": "10.0.0.0/8"}
        transport = Transport(at, environ=environ)
        answer = await transport.get("/version", timeout_s=10)
        await transport.aclose()
        excepted = Transport(at, environ=environ | {"NO_PROXY": ".invalid"})
        with pytest.raises(TransportError, match="cannot be resolved"):
            await excepted.get("/version", timeout_s=10)
        await excepted.aclose()
    assert answer.status == 200
    assert tunnels.asked == ["CONNECT api.invalid:443 HTTP/1.1"]
