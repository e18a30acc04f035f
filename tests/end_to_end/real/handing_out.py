"""A daemon in this process that follows a real server and issues kubeconfigs for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from milo_discovery import DiscoveryClient
from tests.end_to_end.real.inside import addresses_inside
from tests.end_to_end.real.servers import RealApi
from tests.integration.kubeconfigs.daemon import a_daemon

SOURCE = "tested"


@asynccontextmanager
async def handing_out(
    server: RealApi,
    directory: Path,
    source: dict[str, Any],
    *,
    kubeconfig: Path | None = None,
    authenticates: bool = False,
    **kubeconfigs: str,
) -> AsyncIterator[DiscoveryClient]:
    """Run a daemon with this credential issuer, and yield a client.

    The daemon reads the server's clusters with `kubeconfig` or, if `authenticates` is set, with a credential of the
    issuer.
    """
    config = {
        "mode": server.mode,
        "discovery_kubeconfig": str(kubeconfig or server.kubeconfig),
        **addresses_inside(server.mode),
        "connectivity": {"interval": "off"},
        "credentials": SOURCE if authenticates else None,
        "kubeconfigs": {"issuers": [{"name": SOURCE, **source}], **kubeconfigs},
    }
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    async with a_daemon(directory, file), DiscoveryClient(f"unix://{directory}/d.sock") as client:
        yield client


def certificates(server: RealApi) -> dict[str, Any]:
    """Return an issuer of certificates with all rights."""
    return {
        "type": "client-certificate",
        "ca_certificate": str(server.authority.file),
        "ca_key": str(server.authority.key_file()),
        "common_name": "operator",
        "organizations": ["system:masters"],
    }


async def kubeconfig_of(client: DiscoveryClient, name: str, directory: Path) -> Path:
    path = directory / f"{name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_bytes((await client.issue_kubeconfig(name)).kubeconfig)
    return path
