"""The API servers of scenario runs: sandboxes, or real servers."""

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
    """A server under test; its objects are written over HTTP."""

    kubeconfig: Path
    has_controllers: bool
    """Whether Milo's controllers set the conditions of its objects."""

    async def start(self) -> None:
        """Start the server again, with the same address and data, unless it runs."""

    async def stop(self) -> None:
        """Kill the server."""

    async def compact(self) -> None:
        """Compact old revisions, so that no watch can resume from a version seen so far."""

    async def drop_watches(self) -> None:
        """Cut every open watch."""

    def control_plane(self) -> str:
        """Return the path of an API that accepts CustomResourceDefinitions."""

    async def close(self) -> None: ...


class Servers(Protocol):
    """A provider of API servers for scenario runs."""

    def acquire(self, mode: Mode, directory: Path) -> AbstractAsyncContextManager[ApiServer]:
        """Provide a running server without objects; `directory` is for its files."""


class SandboxApi:
    """A sandbox in this process."""

    has_controllers = False

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
    """Provides a new sandbox for each run."""

    @asynccontextmanager
    async def acquire(self, mode: Mode, directory: Path) -> AsyncIterator[ApiServer]:
        async with Sandbox() as sandbox:
            yield SandboxApi(sandbox, sandbox.write_kubeconfig(directory / "kubeconfig"))


class RealServers:
    """Provides real servers from a pool for each mode, which are started on demand and reused."""

    def __init__(
        self, found: Programs, directory: Path, *, of_each: int = 1, streaming_lists: Collection[Mode] = MODES
    ) -> None:
        """Create the servers; `streaming_lists` contains the modes whose servers support streaming lists."""
        self._all: list[RealApi] = []
        self._free: dict[Mode, asyncio.LifoQueue[RealApi]] = {mode: asyncio.LifoQueue() for mode in MODES}
        for number in range(of_each):
            for server in (
                MiloApi(found, directory / f"milo-{number}", streaming_lists=MiloApi.mode in streaming_lists),
                InfrastructureApi(
                    found,
                    directory / f"infrastructure-{number}",
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
    async def acquire(self, mode: Mode, directory: Path) -> AsyncIterator[RealApi]:
        server = await self._free[mode].get()
        try:
            await server.start()
            async with Objects(mode, kubeconfig.read(server.kubeconfig)) as objects:
                await objects.clear()
            yield server
        finally:
            self._free[mode].put_nowait(server)
