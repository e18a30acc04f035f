"""Milo's own controllers, as a process beside its API server and the infrastructure cluster."""

import asyncio
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import aiohttp

from tests.end_to_end.real import process
from tests.end_to_end.real.process import Process
from tests.end_to_end.real.servers import InfrastructureApi, MiloApi
from tests.support.ports import free_port

_STARTED_WITHIN_S = 180
_LOOK_EVERY_S = 0.25
_HEALTHY_LOOKS = 20


class ControllerManager:
    """The process of Milo's controller-manager, as a context manager."""

    def __init__(
        self,
        argv: tuple[str, ...],
        core: MiloApi,
        infrastructure: InfrastructureApi,
        directory: Path,
        *,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._log = directory / "controller-manager.log"
        self._process: Process | None = None
        self.starts = 0
        """How many times the process was started."""
        # The process reads the certificate of its webhooks from this directory of TMPDIR.
        certificates = directory / "controller-manager" / "k8s-webhook-server" / "serving-certs"
        certificates.mkdir(parents=True)
        certificate, key = core.authority.server("webhooks")
        shutil.copy(certificate, certificates / "tls.crt")
        shutil.copy(key, certificates / "tls.key")
        self._argv = [
            shutil.which("env") or "/usr/bin/env",
            f"TMPDIR={directory / 'controller-manager'}",
            *(f"{name}={value}" for name, value in environ.items()),
            *argv,
            f"--kubeconfig={core.kubeconfig}",
            f"--infra-cluster-kubeconfig={infrastructure.kubeconfig}",
            "--control-plane-scope=core",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--controller-runtime-webhook-port={free_port()}",
            "--authorization-always-allow-paths=/healthz,/metrics",
        ]

    async def start(self) -> None:
        """Start the process, and wait until it stays up: it reports healthy before it needs the API server."""
        self._keeping = asyncio.create_task(self._keep(), name="Milo's controllers")
        healthy_looks = 0
        async with asyncio.timeout(_STARTED_WITHIN_S):
            while healthy_looks < _HEALTHY_LOOKS:
                await asyncio.sleep(_LOOK_EVERY_S)
                healthy_looks = healthy_looks + 1 if await self._healthy() else 0

    async def _keep(self) -> None:
        """Restart the process whenever it has exited: it exits if the API server lacks a definition, or is killed."""
        while True:
            if self._process is None or not self._process.running():
                self._process = process.start("Milo's controllers", self._argv, log=self._log, tied=True)
                self.starts += 1
            await asyncio.sleep(_LOOK_EVERY_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def end(self) -> None:
        """Kill the process."""
        assert self._process is not None
        self._keeping.cancel()
        await self._process.end(signal.SIGKILL)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def _healthy(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/healthz", ssl=False) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False
