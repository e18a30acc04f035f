"""The network inside an installation, for clients outside of it: an HTTP proxy that knows its names.

A project's control plane is reached there by a name that only the cluster's own DNS knows. Clients that are given this
proxy use such a name as it stands in their kubeconfig, TLS and all; whatever the name, the one server answers.
"""

import asyncio
from types import TracebackType
from typing import Self

from tests.end_to_end.real.certificates import INSIDE
from tests.end_to_end.real.proxy import Proxy
from tests.end_to_end.real.servers import RealApi

ADDRESSES = f"project-{{uid}}.{INSIDE}:6443"
"""Of the projects' control planes, as the daemon's `internal_address_template` has it."""


class Inside:
    def __init__(self, server: RealApi) -> None:
        self._server = server
        self._tunnels = Proxy(self._greet)
        self.asked: list[str] = []
        """The addresses that were asked for."""

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self._tunnels.port}"

    async def __aenter__(self) -> Self:
        await self._tunnels.open(int(self._server.url.rpartition(":")[2]))
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
