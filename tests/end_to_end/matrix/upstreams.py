"""The sources of clusters of a cell: each can create and delete clusters, and show an empty list."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from milo_sandbox import Sandbox
from milo_sandbox.admission import Part
from milo_sandbox.kubeconfigs import write
from milo_sandbox.resources import SERVICE_CONSUMERS

SERVICE = "dns.example.com"
TOKEN_LIFE_S = 86400.0
"""Longer than any soak: the tokens in kubeconfigs are not renewed."""


class Upstream(Protocol):
    sandbox: Sandbox

    def settings(self, name: str) -> dict[str, Any]:
        """Return the source's settings."""

    def issuer(self, name: str) -> dict[str, Any]:
        """Return the settings of the issuer of its kubeconfigs."""

    def create(self, cluster: str) -> None: ...

    def delete(self, cluster: str) -> None: ...

    def empty(self, *, on: bool) -> None:
        """Serve an empty list, or all clusters again."""

    def damage(self, cluster: str) -> None:
        """Leave reads of a cluster's object unanswered, or its file half-written."""

    def repair(self, cluster: str) -> None: ...


class Projects:
    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        self.sandbox, self._directory = sandbox, directory
        directory.mkdir()
        self._kubeconfig = sandbox.write_kubeconfig(directory / "kubeconfig")
        self._token = directory / "token"
        self._token.write_text(sandbox.token())

    def settings(self, name: str) -> dict[str, Any]:
        return {"name": name, "kind": "project", "discovery_kubeconfig": str(self._kubeconfig)}

    def issuer(self, name: str) -> dict[str, Any]:
        return {"name": name, "type": "token-file", "path": str(self._token)}

    def create(self, cluster: str) -> None:
        """Create a project, whose organization is the part of its name before the first hyphen."""
        self.sandbox.projects.create(cluster, ready=True, organization=cluster.partition("-")[0])

    def delete(self, cluster: str) -> None:
        self.sandbox.projects.delete(cluster)

    def empty(self, *, on: bool) -> None:
        self.sandbox.faults.empty_lists(on=on)

    def damage(self, cluster: str) -> None:
        self.sandbox.faults.hanging(cluster, f"sc-{cluster}")

    def repair(self, cluster: str) -> None:
        self.sandbox.faults.clear()


class Consumers(Projects):
    """ServiceConsumers. Several of them may reference one project, so that its cluster is reduced from them."""

    follows_projects = False

    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        super().__init__(sandbox, directory)
        sandbox.projects.create("provider", ready=True)
        self._store = sandbox.control_plane("provider")
        self._provider = directory / "provider"
        write(self._provider, sandbox.kubeconfig(project="provider"))

    def settings(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "kind": "service-consumer",
            "discovery_kubeconfig": str(self._provider),
            "project_kubeconfig": str(self._kubeconfig),
            "settings": {"services": [SERVICE], "drain": "0s", "follow_projects": self.follows_projects},
        }

    def create(self, cluster: str) -> None:
        super().create(cluster)
        spec = {"serviceRef": {"name": SERVICE}, "consumerProjectRef": {"name": cluster}}
        self._store.create(SERVICE_CONSUMERS, {"metadata": {"name": f"sc-{cluster}"}, "spec": spec})
        status = {"serviceName": SERVICE, "phase": "Active"}
        self._store.modify(
            SERVICE_CONSUMERS, f"sc-{cluster}", lambda document: {**document, "status": status}, part=Part.STATUS
        )

    def delete(self, cluster: str) -> None:
        self._store.delete(SERVICE_CONSUMERS, f"sc-{cluster}")


class ConsumersAndProjects(Consumers):
    """ServiceConsumers and Projects: a cluster needs both. A ServiceConsumer outlives its Project."""

    follows_projects = True

    def delete(self, cluster: str) -> None:
        self.sandbox.projects.delete(cluster)


class Files:
    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        directory.mkdir()
        self.sandbox, self._directory, self._aside = sandbox, directory / "clusters", directory / "aside"
        self._directory.mkdir()
        self._whole = b""

    def settings(self, name: str) -> dict[str, Any]:
        return {"name": name, "kind": "kubeconfig-directory", "settings": {"path": str(self._directory)}}

    def issuer(self, name: str) -> dict[str, Any]:
        return {"name": name, "type": "kubeconfig-file"}

    def create(self, cluster: str) -> None:
        self.sandbox.projects.create(cluster, ready=True)
        write(self._directory / cluster, self.sandbox.kubeconfig(project=cluster, token=self.sandbox.token()))

    def delete(self, cluster: str) -> None:
        (self._directory / cluster).unlink()

    def empty(self, *, on: bool) -> None:
        if on:
            shutil.copytree(self._directory, self._aside)
            for path in self._directory.iterdir():
                path.unlink()
        else:
            for path in self._aside.iterdir():
                path.rename(self._directory / path.name)

    def damage(self, cluster: str) -> None:
        file = self._directory / cluster
        self._whole = file.read_bytes()
        file.write_bytes(self._whole[: len(self._whole) // 2])

    def repair(self, cluster: str) -> None:
        if (file := self._directory / cluster).exists():
            file.write_bytes(self._whole)


KINDS: dict[str, list[Callable[[Sandbox, Path], Upstream]]] = {
    "one": [Projects],
    "two": [Projects, Projects],
    "reduced": [Consumers, ConsumersAndProjects],
    "files": [Files],
}


@asynccontextmanager
async def open_upstreams(kind: str, directory: Path) -> AsyncIterator[dict[str, Upstream]]:
    """Provide the sources of a cell, by name."""
    async with Sandbox(token_life=TOKEN_LIFE_S) as first, Sandbox(token_life=TOKEN_LIFE_S) as second:
        pairs = zip(KINDS[kind], ("eu", "us"), (first, second), strict=False)
        yield {name: upstream(sandbox, directory / name) for upstream, name, sandbox in pairs}
