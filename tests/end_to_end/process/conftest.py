"""A sandbox and daemons beside it, each a process with settings of its own."""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient
from milo_discovery._gen import discovery_pb2 as pb
from milo_sandbox import Sandbox
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.streams import Stream


class Place:
    """A folder with a sandbox's kubeconfig, where daemons are started."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.kubeconfig = sandbox.write_kubeconfig(folder / "kubeconfig")
        self.socket = folder / "discovery.sock"
        self.address = f"unix://{self.socket}"

    def daemon(
        self,
        *flags: str,
        environ: Mapping[str, str] | None = None,
        descriptors: int | None = None,
        **settings: Any,
    ) -> DaemonProcess:
        """Not started yet."""
        given = {
            "discovery_kubeconfig": str(self.kubeconfig),
            "listen": [self.address],
            "http_listen": "off",
            "connectivity": {"interval": "off"},  # what probes find would come between the events that a test is about
            **settings,
        }
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(given))
        arguments = ("--config", str(config), *flags)
        return DaemonProcess(given["listen"][0], *arguments, environ=environ, descriptors=descriptors)

    def client(self) -> DiscoveryClient:
        return DiscoveryClient(self.address)

    def stream(self, request: pb.WatchClustersRequest | None = None) -> Stream:
        return Stream(self.address, request)

    async def subscribers(self) -> int:
        """By the daemon's own count."""
        async with self.client() as client:
            return (await client.server_info()).counts.subscribers


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: that of a socket has 107 characters at most."""
    with TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Place]:
    async with Sandbox() as sandbox:
        yield Place(folder, sandbox)
