"""Pods of a sharded operator, as processes: a daemon and an operator beside it."""

import asyncio
import json
import os
import signal
import sys
import uuid
from pathlib import Path

import yaml

from milo_discovery import DiscoveryClient, DiscoveryError
from milo_discovery.model import Sharding
from tests.end_to_end.process.daemon import DaemonProcess

GROUP = "operator"
TOKENS = {"name": "tokens", "type": "token-request", "namespace": "default", "service_account": "operators"}
_ANSWERS_WITHIN_S = 5.0


class Pod:
    """A pod of a StatefulSet: its name stays the same, and its processes are new after each start."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        projects: Path,
        leases: Path,
        objects: Path,
        interval_s: float,
        fenced: bool,
    ) -> None:
        """Prepare a pod with the kubeconfigs `projects`, `leases` and `objects`.

        The operator writes to the objects every `interval_s`. `fenced`: credentials are revoked before clusters move.
        """
        self.name = name
        self._log = directory / f"{name}.operator.log"
        self._address = f"unix://{directory}/{name}.sock"
        self._objects = objects
        self._interval_s = interval_s
        self._config = directory / f"{name}.json"
        self._config.write_text(
            json.dumps(
                {
                    "discovery_kubeconfig": str(projects),
                    "sharding": {"group": GROUP, "kubeconfig": str(leases), "fence_credentials": fenced},
                    "kubeconfigs": {"issuers": [{**TOKENS, "kubeconfig": str(leases)}] if fenced else []},
                    "connectivity": {"interval": "off"},
                    "listen": [self._address],
                    "http_listen": "off",
                    "log": {"level": "warning"},
                }
            )
        )
        self._daemon: DaemonProcess | None = None
        self._operator: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        run = uuid.uuid4().hex[:8]
        environ = {"POD_NAME": self.name, "POD_NAMESPACE": "default", "POD_UID": run}
        self._daemon = DaemonProcess(self._address, "--config", str(self._config), environ=environ)
        await self._daemon.start()
        arguments = (self._address, self.name, run, str(self._objects), str(self._interval_s))
        with self._log.open("ab") as log:
            self._operator = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.end_to_end.real.sharding.operator", *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ},
            )  # fmt: skip

    async def sharding(self) -> Sharding | None:
        """Return the group as the daemon sees it, or None if it does not answer."""
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN_S), DiscoveryClient(self._address) as client:
                return (await client.server_info()).sharding
        except (DiscoveryError, TimeoutError):
            return None

    async def token_of(self, project: str) -> str:
        """Return the token of a kubeconfig that the daemon issues."""
        async with DiscoveryClient(self._address) as client:
            issued = yaml.safe_load((await client.issue_kubeconfig(project)).kubeconfig)
        token: str = issued["users"][0]["user"]["token"]
        return token

    async def terminate(self) -> None:
        """Terminate the operator and then the daemon, as the kubelet terminates sidecars after the other containers."""
        operator, daemon = self._processes()
        operator.send_signal(signal.SIGTERM)
        await operator.wait()
        await daemon.terminate()

    async def kill(self) -> None:
        operator, daemon = self._processes()
        operator.kill()
        await daemon.kill()
        await operator.wait()

    def signal(self, number: signal.Signals, *, with_operator: bool) -> None:
        operator, daemon = self._processes()
        daemon.signal(number)
        if with_operator:
            operator.send_signal(number)

    async def close(self) -> None:
        if self._operator is not None and self._operator.returncode is None:
            self._operator.kill()
            await self._operator.wait()
        if self._daemon is not None and self._daemon.is_running:
            await self._daemon.kill()

    @property
    def conflicts(self) -> int:
        """The number of writes that were rejected with a conflict."""
        return self._log.read_text().count("CONFLICT") if self._log.exists() else 0

    @property
    def last_words(self) -> str:
        lines = self._log.read_text().splitlines()[-20:] if self._log.exists() else []
        return "\n".join(["" if self._daemon is None else self._daemon.tail(20), *lines])

    def _processes(self) -> tuple[asyncio.subprocess.Process, DaemonProcess]:
        assert self._operator is not None
        assert self._daemon is not None
        return self._operator, self._daemon
