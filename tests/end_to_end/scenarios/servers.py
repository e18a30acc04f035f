"""The API servers of scenario runs: the sandbox, or real ones."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from milo_sandbox import Sandbox
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi, MiloApi, RealApi
from tests.end_to_end.scenarios import kubeconfig
from tests.end_to_end.scenarios.objects import Objects
from tests.end_to_end.scenarios.steps import MODES, Mode


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

    def control_plane(self) -> str:
        """The path below which it serves an API that takes CustomResourceDefinitions."""

    async def close(self) -> None: ...


class Servers(Protocol):
    """A provider of API servers for scenario runs."""

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

    def control_plane(self) -> str:
        self._sandbox.projects.create("kinds", ready=True)
        return self._sandbox.control_plane_url("kinds").removeprefix(self._sandbox.url)

    async def close(self) -> None:
        await self._sandbox.stop()


class Sandboxes:
    """A sandbox for each run."""

    @asynccontextmanager
    async def lend(self, mode: Mode, folder: Path) -> AsyncIterator[ApiServer]:
        async with Sandbox() as sandbox:
            yield SandboxApi(sandbox, sandbox.write_kubeconfig(folder / "kubeconfig"))


class RealServers:
    """A pool of real servers for each mode, started on demand and reused by later runs."""

    def __init__(
        self, found: Programs, folder: Path, *, of_each: int = 1, streaming_lists: Collection[Mode] = MODES
    ) -> None:
        """`streaming_lists`: of which modes the servers can stream a list."""
        self._all: list[RealApi] = []
        self._free: dict[Mode, asyncio.LifoQueue[RealApi]] = {mode: asyncio.LifoQueue() for mode in MODES}
        for number in range(of_each):
            for server in (
                MiloApi(found, folder / f"milo-{number}", streaming_lists=MiloApi.mode in streaming_lists),
                InfrastructureApi(
                    found,
                    folder / f"infrastructure-{number}",
                    streaming_lists=InfrastructureApi.mode in streaming_lists,
                ),
            ):
                self._all.append(server)
                self._free[server.mode].put_nowait(server)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._all:
            await server.close()

    @asynccontextmanager
    async def lend(self, mode: Mode, folder: Path) -> AsyncIterator[RealApi]:
        server = await self._free[mode].get()
        try:
            await server.start()
            async with Objects(mode, kubeconfig.read(server.kubeconfig)) as objects:
                await objects.clear()
            yield server
        finally:
            self._free[mode].put_nowait(server)
