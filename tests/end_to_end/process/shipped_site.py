"""Where a shipped daemon is deployed: the API servers that it follows, of tenants or of a shard group."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from milo_discoveryd.sharding.lease_objects import LeaseNames
from milo_sandbox.resources import LEASES, Document
from tests.end_to_end.matrix.cell import HUB, create_hub, sharding
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.end_to_end.process.shipped_daemon import ShippedDaemon
from tests.end_to_end.process.test_secrets_of_objects import SETTINGS, Fleet


class Site:
    """Where the daemon is deployed: its API servers, and a cgroup with the shipped limit."""

    def __init__(self, workspace: Workspace, cgroup: Path | None) -> None:
        self.workspace = workspace
        self.directory = workspace.directory
        self._cgroup = cgroup

    def daemon(self, name: str = "daemon", **settings: Any) -> ShippedDaemon:
        return ShippedDaemon(self.directory / name, self._cgroup, **settings)

    def of_projects(self, **settings: Any) -> ShippedDaemon:
        return self.daemon(discovery_kubeconfig=str(self.workspace.kubeconfig), **settings)


class Tenants(Fleet):
    """Clusters that tenants declare, each by an object with a kubeconfig in a Secret; `honest` is another tenant's."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.workspace)
        self._site = site
        self.put("honest")
        self.put_secret("honest")

    def shipped(self, **settings: Any) -> ShippedDaemon:
        return self._site.daemon(
            rule={"kubeconfigs": True}, **SETTINGS, discovery_kubeconfig=str(self.kubeconfig), **settings
        )

    def declare(self, name: str, content: str) -> None:
        self.put(name)
        self.put_secret(name, content=content)


class Hub:
    """The control plane with the Leases of a group, and the API server of its clusters."""

    def __init__(self, site: Site, clusters: int) -> None:
        self._site = site
        self._kubeconfig = site.directory / "hub"
        create_hub(site.workspace.sandbox, self._kubeconfig)
        self.store = site.workspace.sandbox.control_plane(HUB)
        self.names = LeaseNames(namespace="default", group=sharding(self._kubeconfig)["group"])
        self.server = ProjectServer(Projects(f"p-{number}" for number in range(clusters)))

    @asynccontextmanager
    async def listening(self, *members: str) -> AsyncIterator[list[ShippedDaemon]]:
        """Serve the clusters to members of these names."""
        async with self.server.listening():
            settings = self.server.settings(self._site.directory / "plain")
            settings["sharding"] = sharding(self._kubeconfig)
            yield [self._site.daemon(name, **settings) for name in members]

    def annotations(self, name: str) -> dict[str, str]:
        found = self.store.find(LEASES, f"default/{name}")
        assert found is not None
        annotations: dict[str, str] = found.document()["metadata"]["annotations"]
        return annotations

    def annotate(self, name: str, annotations: Mapping[str, str]) -> None:
        def changed(lease: Document) -> Document:
            return {**lease, "metadata": {**lease["metadata"], "annotations": {**annotations}}}

        self.store.modify(LEASES, name, changed, namespace="default")
