"""A sandbox with short-lived tokens, a real daemon, and the client's command."""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from milo_discovery import DiscoveryClient
from milo_sandbox import Sandbox
from tests.end_to_end.process.daemon import DaemonProcess

COMMANDS = Path(sys.executable).parent
ENDS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Workspace:
    """A running sandbox and daemon, and the directory of their files."""

    directory: Path
    sandbox: Sandbox
    daemon: DaemonProcess
    refused: list[str]
    """Tokens that the sandbox's API answered with 401."""

    @property
    def address(self) -> str:
        return self.daemon.address

    def client(self) -> DiscoveryClient:
        return DiscoveryClient(self.address)

    @asynccontextmanager
    async def running(self, program: str, *arguments: str) -> AsyncIterator[Process]:
        environ = {
            "HOME": str(self.directory),
            "PATH": f"{COMMANDS}:{os.environ['PATH']}",
            "MILO_DISCOVERY_ADDRESS": self.address,
        }
        process = await asyncio.create_subprocess_exec(
            program, *arguments, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(self, program: str, *arguments: str) -> Outcome:
        async with self.running(program, *arguments) as process, asyncio.timeout(ENDS_WITHIN_S):
            out, err = await process.communicate(b"")
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())

    async def discovery(self, *arguments: str) -> Outcome:
        """Run the client's command, which must succeed."""
        outcome = await self.run(str(COMMANDS / "milo-discovery"), *arguments)
        assert outcome.status == 0, outcome.err
        return outcome

    def has_ended(self, token: str) -> bool:
        return self.sandbox.tokens.claims(token).exp <= time.time()

    async def kubeconfig(self, *arguments: str, name: str = "alpha") -> Path:
        path = self.directory / "-".join(["kubeconfig", name, *arguments])
        await self.discovery("kubeconfig", name, *arguments, "-w", str(path))
        return path


@asynccontextmanager
async def open_workspace(directory: Path, *, token_life: float = 600.0, **settings: object) -> AsyncIterator[Workspace]:
    """Start a sandbox and a daemon with these settings; the project alpha is engaged."""
    async with Sandbox(seed=1, token_life=token_life) as sandbox:
        refused = _watched(sandbox)
        sandbox.projects.create("alpha", ready=True)
        address, upstream = f"unix://{directory}/d.sock", sandbox.write_kubeconfig(directory / "upstream")
        source = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
        config = directory / "config.yaml"
        config.write_text(json.dumps({"kubeconfigs": {"issuers": [source]}, **settings}))
        arguments = (
            "--config",
            str(config),
            "--discovery-kubeconfig",
            str(upstream),
            "--listen",
            address,
            "--http-listen",
            "off",
        )
        async with DaemonProcess(address, *arguments, is_forked=True) as daemon:
            await daemon.start()
            async with DiscoveryClient(address) as client, client.watch() as watch:
                await watch.synced()
                assert "alpha" in watch.clusters
            yield Workspace(directory, sandbox, daemon, refused)


def _watched(sandbox: Sandbox) -> list[str]:
    """Record the tokens that the API rejects from now on."""
    refused: list[str] = []
    subject = sandbox.tokens.subject

    def watched(token: str) -> str:
        try:
            return subject(token)
        except Exception:
            refused.append(token)
            raise

    sandbox.tokens.subject = watched  # type: ignore[method-assign]
    return refused
