"""A daemon with the arguments, environment, listeners and memory limit of deploy/overlays/shared, under attack."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from cryptography import x509

from milo_discovery import ClientCredentials, DiscoveryClient
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.certificates import Authority
from tests.support.memory_limit import peak_bytes, shipped_limit
from tests.support.ports import free_port
from tests.tooling.deploy.manifests import DEPLOY, arguments, daemon, environment, image_environment

LIVEZ_S = 0.5
_SHARED = DEPLOY / "overlays" / "shared"
_AFTERWARDS_S = 3.0
"""How long probes continue after an attack, whose consequences may come later."""
_MIB = 1 << 20


class Credential(NamedTuple):
    """What an operator with a certificate has."""

    ca: Path
    certificate: Path
    key: Path


class ShippedDaemon:
    """A daemon of the shared overlay, and its operator. Directories of the container are below `directory`."""

    def __init__(
        self,
        directory: Path,
        cgroup: Path | None,
        *,
        rule: Mapping[str, Any] = MappingProxyType({}),
        environ: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        """What a deployment adds: to the rule of the operator, to the environment, and to the configuration file."""
        self._directory = directory
        self.port = free_port()
        config = yaml.safe_load(self._moved((_SHARED / "config.yaml").read_text())) | settings
        config["rights"] = [known | rule if "san" in known["who"] else known for known in config["rights"]]
        (directory / "etc" / "config").mkdir(parents=True)
        (directory / "run").mkdir()
        (directory / "etc" / "config" / "config.yaml").write_text(yaml.safe_dump(config))
        self.operator = self._certificates(config)
        container = daemon(_SHARED)
        variables = [variable for variable in container["env"] if variable["name"] != "MILO_DISCOVERYD_MODE"]
        # The file has the mode or the sources, as docs/deploying.md says.
        container |= {"env": [*variables, {"name": "MILO_DISCOVERYD_MODE", "value": ""}]}  # type: ignore[operator]
        shipped = {name: self._moved(value) for name, value in environment(_SHARED, container).items()}
        own = {"MILO_DISCOVERYD_HTTP_LISTEN": "127.0.0.1:0", "POD_NAME": directory.name, "POD_UID": directory.name}
        command = [self._moved(argument) for argument in arguments(_SHARED, container)]
        assert command.pop(0) == "run"
        address = f"127.0.0.1:{self.port}"
        environ = {**image_environment(), **shipped, **own, **environ}
        self.process = DaemonProcess(address, *command, environ=environ, cgroup=cgroup)

    def _moved(self, text: str) -> str:
        text = text.replace("/run/milo-discovery", f"{self._directory}/run")
        text = text.replace("/etc/milo-discoveryd", f"{self._directory}/etc")
        return text.replace("0.0.0.0:7443", f"127.0.0.1:{self.port}")

    def _certificates(self, config: dict[str, Any]) -> Credential:
        """Write the Secrets of the overlay's Certificates."""
        authority, tls = Authority(), self._directory / "etc" / "tls"
        tls.mkdir()
        authority.server().write(tls, "tls")
        ca = tls / "ca.crt"
        ca.write_bytes(authority.pem)
        [san] = [rule["who"]["san"] for rule in config["rights"] if "san" in rule["who"]]
        name = x509.DNSName(san.removeprefix("dns:"))
        return Credential(ca, *authority.issue(name).write(self._directory, "operator"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DiscoveryClient]:
        """Run the daemon, with a client of the operator; the first lists are complete."""
        async with self.process:
            await self.process.start()
            async with self.client() as client, client.watch(accept_pending_sources=True) as watch:
                await self.process.during(watch.synced())
                yield client

    def client(self) -> DiscoveryClient:
        ca, certificate, key = self.operator
        credentials = ClientCredentials(ca_file=ca, certificate_file=certificate, key_file=key)
        return DiscoveryClient(self.process.address, credentials=credentials, timeout=timedelta(minutes=1))

    @property
    def http_port(self) -> int:
        return int(str(self.process.events("started")[-1]["http"]).rpartition(":")[2])

    @asynccontextmanager
    async def attacked(self, attack: str) -> AsyncIterator[None]:
        """Probe `/livez` within the block, and print the longest time and the peak of memory; both are limited."""
        await self.process.wait_for_output('"started"')
        prober = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.livez_prober", str(self.http_port), str(self.process.pid),
            stdin=PIPE, stdout=PIPE,
        )  # fmt: skip
        assert prober.stdout is not None
        assert await prober.stdout.readline() == b"probing\n"
        try:
            yield
            await asyncio.sleep(_AFTERWARDS_S)
        finally:
            out, _ = await prober.communicate(b"")
        assert self.process.is_running, f"{attack}: the daemon ended: {self.process.tail()}"
        probed, peak = json.loads(out), peak_bytes(self.process.pid)
        longest, attributed = (max(durations) for durations in zip(*probed, strict=True))
        row = f"{attack:<54} /livez {attributed:5.3f} s ({longest:5.3f} s with waits for a CPU, {len(probed)} probes)"
        sys.stdout.write(f"\n{row}, peak {peak / _MIB:3.0f} MiB\n")
        assert attributed <= LIVEZ_S, row
        assert peak < shipped_limit() / 2, f"{attack}: peak {peak / _MIB:.0f} MiB"
