"""A Milo with all its parts: its API server, its controllers, and the infrastructure cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.end_to_end.real.controller_manager import ControllerManager
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi, MiloApi
from tests.integration.sandbox_conformance.lives import Places


class WholeMilo(NamedTuple):
    core: MiloApi
    infrastructure: InfrastructureApi

    @property
    def places(self) -> Places:
        return Places(self.core.kubeconfig, self.infrastructure.kubeconfig, self.core.kubeconfig_as("tenant"))


@asynccontextmanager
async def a_whole_milo(programs: Programs, directory: Path) -> AsyncIterator[WholeMilo]:
    """Run it; `programs` must have the controllers."""
    core = MiloApi(programs, directory / "core")
    infrastructure = InfrastructureApi(programs, directory / "infrastructure")
    try:
        await core.start()
        await infrastructure.start()
        async with ControllerManager(programs.controllers, core, infrastructure, directory):
            yield WholeMilo(core, infrastructure)
    finally:
        await core.close()
        await infrastructure.close()
