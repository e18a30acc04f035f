"""A Milo with all its parts: its API server, its controllers, and the infrastructure cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.end_to_end.real.controller_manager import ControllerManager
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi, MiloApi
from tests.end_to_end.scenarios import kubeconfig
from tests.end_to_end.scenarios.objects import Objects
from tests.end_to_end.scenarios.steps import Mode
from tests.integration.sandbox_conformance.lives import Places

_TENANT = "tenant"
_IN_PROJECTS = {"level": "Metadata", "users": [_TENANT]}


class _Request(msgspec.Struct, frozen=True):
    """A line of the audit log. Its path lacks the project, which is in an annotation."""

    annotations: dict[str, str] = {}


class WholeMilo(NamedTuple):
    core: MiloApi
    infrastructure: InfrastructureApi

    def requests_of(self, project: str) -> int:
        """Count the requests of the tenant to a project's control plane."""
        lines = self.core.audit_log.read_bytes().splitlines(keepends=True)
        requests = (msgspec.json.decode(line, type=_Request) for line in lines if line.endswith(b"\n"))
        return sum(request.annotations.get("platform.miloapis.com/scope.name") == project for request in requests)

    @property
    def places(self) -> Places:
        return Places(self.core.kubeconfig, self.infrastructure.kubeconfig, self.core.kubeconfig_as(_TENANT))


class WholeMiloServers:
    """Provides a Milo with its controllers for scenario runs in mode `project`, one at a time."""

    def __init__(self, milo: WholeMilo) -> None:
        self._milo = milo
        self._taken = asyncio.Lock()

    @asynccontextmanager
    async def acquire(self, mode: Mode, directory: Path) -> AsyncIterator[MiloApi]:
        assert mode == MiloApi.mode, f"Milo's controllers write the objects of mode {mode}, so scenarios cannot"
        core = self._milo.core
        async with self._taken:
            await core.start()
            async with Objects(mode, kubeconfig.read(core.kubeconfig), has_controllers=core.has_controllers) as objects:
                await objects.clear()
            yield core


@asynccontextmanager
async def a_whole_milo(programs: Programs, directory: Path) -> AsyncIterator[WholeMilo]:
    """Run a whole Milo; `programs` must have its controllers."""
    core = MiloApi(programs, directory / "core", audit=[_IN_PROJECTS])
    core.has_controllers = True
    infrastructure = InfrastructureApi(programs, directory / "infrastructure")
    try:
        await core.start()
        await infrastructure.start()
        async with ControllerManager(programs.controllers, core, infrastructure, directory):
            yield WholeMilo(core, infrastructure)
    finally:
        await core.close()
        await infrastructure.close()
