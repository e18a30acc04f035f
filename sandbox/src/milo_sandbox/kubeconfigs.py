"""Kubeconfigs for the sandbox, and token files that are renewed."""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import yaml

from milo_sandbox.resources import Document


def kubeconfig(*, server: str, ca_pem: bytes, user: Document, name: str = "milo-sandbox") -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server, "certificate-authority-data": b64encode(ca_pem).decode()},
            }
        ],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def write_daemon_config(path: Path, kubeconfig: Path) -> None:
    """Write a configuration of the daemon, which issues its own identity: in the sandbox that has all rights."""
    issuer = {"name": "sandbox", "type": "project-kubeconfig", "share_discovery_identity": True}
    config = {"discovery_kubeconfig": str(kubeconfig), "kubeconfigs": {"issuers": [issuer]}}
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def write(path: Path, config: Document) -> None:
    write_secret(path, yaml.safe_dump(config, sort_keys=False))


def write_secret(path: Path, text: str) -> None:
    """Replace a file atomically, readable only by its owner."""
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


class RenewedTokenFile:
    """A file with a token. The token is replaced after half its lifetime."""

    def __init__(self, path: Path, issue: Callable[[], str], *, life: float) -> None:
        self.path = path
        self._issue = issue
        self._life = life
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._life / 2, self.start)
        self.renew()

    def renew(self) -> None:
        write_secret(self.path, self._issue())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
