"""Attacks on the memory of a daemon, in a cgroup with the limit of the shipped manifest."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discovery import ClientCredentials, DiscoveryClient
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.integration.grpc_server.test_tls import SPIFFE
from tests.support.certificates import Authority
from tests.support.memory_limit import memory_limit, peak_bytes

SIDECAR = Path(__file__).parents[3] / "deploy/components/sidecar/sidecar.yaml"
ATTACKERS = tuple(f"127.0.0.{number}" for number in range(2, 18))
"""Addresses that a rate limit tells apart."""
_MIB = 1 << 20


@pytest.fixture
def limited(workspace: Workspace) -> Iterator["Limited"]:
    [limit] = shipped_limits()
    with memory_limit(limit) as cgroup:
        yield Limited(workspace, limit, cgroup)


class Limited:
    """Daemons that are killed, or judged by their peak, when they take more than the shipped limit."""

    def __init__(self, workspace: Workspace, limit: int, cgroup: Path | None) -> None:
        self.workspace = workspace
        self.limit = limit
        self._cgroup = cgroup

    @asynccontextmanager
    async def daemon(self, **settings: Any) -> AsyncIterator[DaemonProcess]:
        async with self.workspace.daemon(cgroup=self._cgroup, **settings) as daemon:
            await daemon.start()
            yield daemon
            assert daemon.is_running, f"killed: {daemon.tail()}"
            assert peak_bytes(daemon.pid) < self.limit
            await daemon.terminate()


def shipped_limits() -> set[int]:
    """Return the memory limits of the daemon's container in the shipped manifest."""
    [manifest] = yaml.safe_load_all(SIDECAR.read_text())
    containers = manifest["spec"]["template"]["spec"]
    found = [*containers.get("containers", ()), *containers.get("initContainers", ())]
    return {
        int(each["resources"]["limits"]["memory"].removesuffix("Mi")) * _MIB for each in found if "resources" in each
    }


def client_hello(server_name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def test_client_hello_flood_is_bounded_and_leaves_room_for_others(limited: Limited) -> None:
    """Each connection sends one ClientHello and is silent: a handshake that is begun costs the server memory."""
    directory, authority = limited.workspace.directory, Authority()
    certificate, key = authority.server().write(directory, "server")
    ours, our_key = authority.issue(SPIFFE).write(directory, "operator")
    (directory / "ca.crt").write_bytes(authority.pem)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(directory / "ca.crt")}
    listen = [limited.workspace.address, {"name": "net", "address": f"127.0.0.1:{port}", "tls": tls}]
    limited.workspace.sandbox.projects.create("alpha", ready=True)
    async with limited.daemon(listen=listen) as daemon:
        await daemon.wait_for_output('"synced"')
        before = peak_bytes(daemon.pid)
        with ExitStack() as closing:
            await flood(closing, port, client_hello("localhost"), each=150)
            credentials = ClientCredentials(ca_file=directory / "ca.crt", certificate_file=ours, key_file=our_key)
            async with DiscoveryClient(f"127.0.0.1:{port}", credentials=credentials) as client:
                assert [cluster.name for cluster in await client.list()] == ["alpha"]
        grown = peak_bytes(daemon.pid) - before
        assert grown < 48 * _MIB


async def flood(closing: ExitStack, port: int, hello: bytes, each: int) -> None:
    """Open so many connections from each address, send the hello on each, and leave them open."""
    for _ in range(each):
        for address in ATTACKERS:
            connection = closing.enter_context(socket.socket())
            connection.bind((address, 0))
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            with suppress(OSError):  # refused
                connection.send(hello)
