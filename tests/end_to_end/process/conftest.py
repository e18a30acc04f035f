"""Fixtures: a sandbox, and daemon processes with individual settings."""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient
from milo_discovery.v1 import discovery_pb2 as pb
from milo_sandbox import Sandbox
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.streams import Stream


class Workspace:
    """A directory with a sandbox's kubeconfig, in which daemons are started."""

    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self.directory = directory
        self.sandbox = sandbox
        self.kubeconfig = sandbox.write_kubeconfig(directory / "kubeconfig")
        self.socket = directory / "discovery.sock"
        self.address = f"unix://{self.socket}"
        self.latest: DaemonProcess | None = None
        """The daemon that was created last."""

    def daemon(
        self,
        *flags: str,
        environ: Mapping[str, str] | None = None,
        descriptors: int | None = None,
        cgroup: Path | None = None,
        **settings: Any,
    ) -> DaemonProcess:
        """Return a daemon that is not started yet."""
        given = {
            "discovery_kubeconfig": str(self.kubeconfig),
            "listen": [self.address],
            "http_listen": "off",
            "connectivity": {"interval": "off"},  # probe results would come between the events of a test
            **settings,
        }
        config = self.directory / "config.yaml"
        config.write_text(yaml.safe_dump(given))
        arguments = ("--config", str(config), *flags)
        # Environment variables and limits apply from the start of a process, so a daemon that has any is not forked.
        is_forked = environ is None and descriptors is None and cgroup is None
        self.latest = DaemonProcess(
            given["listen"][0],
            *arguments,
            environ=environ,
            descriptors=descriptors,
            cgroup=cgroup,
            is_forked=is_forked,
        )
        return self.latest

    def client(self) -> DiscoveryClient:
        return DiscoveryClient(self.address)

    def stream(self, request: pb.WatchClustersRequest | None = None) -> Stream:
        return Stream(self.address, request)

    async def subscribers(self) -> int:
        """Return the daemon's count of subscribers."""
        async with self.client() as client:
            return (await client.server_info()).counts.subscribers


@pytest.fixture
def directory() -> Iterator[Path]:
    """A temporary directory with a short path, since a socket's path has 107 characters at most."""
    with TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)


@pytest.fixture
async def workspace(directory: Path) -> AsyncIterator[Workspace]:
    async with Sandbox() as sandbox:
        yield Workspace(directory, sandbox)
