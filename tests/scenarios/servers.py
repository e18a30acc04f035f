"""The API servers that scenarios are played against: the sandbox, or the real ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from milo_discoveryd.sandbox import Sandbox
from tests.real.programs import Programs
from tests.real.servers import InfrastructureApi, MiloApi, RealApi
from tests.scenarios import kubeconfig
from tests.scenarios.objects import Objects
from tests.scenarios.steps import MODES, Mode


class ApiServer(Protocol):
    """A server that can be steered. What it holds is written over HTTP."""

    kubeconfig: Path

    async def start(self) -> None:
        """Comes back, on the same address with the same data. No more than that where it runs."""

    async def stop(self) -> None:
        """Dies."""

    async def compact(self) -> None:
        """Forgets old revisions: a watch can't be resumed from any seen so far."""

    async def drop_watches(self) -> None:
        """Cuts every open watch."""

    async def close(self) -> None: ...


class Servers(Protocol):
    """Where a play gets its server from."""

    def lend(self, mode: Mode, folder: Path) -> AbstractAsyncContextManager[ApiServer]:
        """A running server without any object; `folder` is for its files."""


class SandboxApi:
    """The sandbox, in this process."""

    def __init__(self, sandbox: Sandbox, kubeconfig: Path) -> None:
        self._sandbox = sandbox
        self.kubeconfig = kubeconfig

    async def start(self) -> None:
        await self._sandbox.start()

    async def stop(self) -> None:
        await self._sandbox.stop()

    async def compact(self) -> None:
        self._sandbox.compact()

    async def drop_watches(self) -> None:
        self._sandbox.drop_watches()

    async def close(self) -> None:
        await self._sandbox.stop()


class Sandboxes:
    """One for each play."""

    @asynccontextmanager
    async def lend(self, mode: Mode, folder: Path) -> AsyncIterator[ApiServer]:
        async with Sandbox() as sandbox:
            yield SandboxApi(sandbox, sandbox.write_kubeconfig(folder / "kubeconfig"))


class RealServers:
    """One for each mode, started when it is first needed; plays of the same mode have it in turn."""

    def __init__(self, found: Programs, folder: Path) -> None:
        self._turns: dict[Mode, asyncio.Lock] = {mode: asyncio.Lock() for mode in MODES}
        self._servers: dict[Mode, RealApi] = {
            "project": MiloApi(found, folder / "milo"),
            "project-control-plane": InfrastructureApi(found, folder / "infrastructure"),
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            await server.close()

    @asynccontextmanager
    async def lend(self, mode: Mode, folder: Path) -> AsyncIterator[RealApi]:
        async with self._turns[mode]:
            server = self._servers[mode]
            await server.start()
            async with Objects(mode, kubeconfig.read(server.kubeconfig)) as objects:
                await objects.clear()
            yield server
