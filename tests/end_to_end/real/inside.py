"""The internal network of an installation: an HTTP proxy that resolves its names.

A project's control plane has a name that only the cluster's DNS resolves. Clients with this proxy use the name as
it is in their kubeconfig, TLS included; every name leads to the one server.
"""

import asyncio
from types import TracebackType
from typing import Self

from tests.end_to_end.real.certificates import INSIDE
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios.steps import Mode
from tests.support.tcp_proxy import TcpProxy

ADDRESSES = f"project-{{uid}}.{INSIDE}:6443"
"""The names of the projects' control planes, as in the daemon's `internal_address_template`."""


def addresses_inside(mode: Mode) -> dict[str, str]:
    """Return the daemon's setting of the control planes' addresses, which one mode has."""
    return {"internal_address_template": ADDRESSES} if mode == "project-control-plane" else {}


class Inside:
    def __init__(self, server: RealApi) -> None:
        self._server = server
        self._tunnels = TcpProxy(greet=self._greet)
        self.asked: list[str] = []
        """The addresses in the CONNECT requests of clients so far."""

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self._tunnels.port}"

    async def __aenter__(self) -> Self:
        self._tunnels.open(int(self._server.url.rpartition(":")[2]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tunnels.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, address, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        assert method == "CONNECT"
        self.asked.append(address)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
