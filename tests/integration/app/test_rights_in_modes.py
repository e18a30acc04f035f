"""Authorization rules of a whole daemon, by labels and by organization, in every mode that watches objects."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from milo_discovery import ClusterNotFound, DiscoveryClient, EventType
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from milo_sandbox.admission import Part
from milo_sandbox.resources import SERVICE_CONSUMERS
from tests.integration.app.test_daemon import serving
from tests.support.eventually import LIMIT_S, eventually

PROVIDER = "provider"


class Mode(NamedTuple):
    name: str
    settings: Mapping[str, Any]
    """Settings of the daemon; for `service-consumer`, of its source."""
    create: Callable[[Sandbox, str, str, str], None]
    """Creates the objects that engage a cluster with this name, organization and label `env`."""
    relabel: Callable[[Sandbox, str, str], None]
    has_organizations: bool = True
    prefix: str = ""
    """The prefix of cluster keys."""


def create_project(sandbox: Sandbox, name: str, organization: str, env: str) -> None:
    sandbox.milo.found(name, organization, {"env": env})
    sandbox.milo.provision(name)


def relabel_project(sandbox: Sandbox, name: str, env: str) -> None:
    sandbox.milo.relabel(name, {"env": env})


def create_control_plane(sandbox: Sandbox, name: str, organization: str, env: str) -> None:
    create_project(sandbox, name, organization, env)
    relabel_control_plane(sandbox, name, env)


def relabel_control_plane(sandbox: Sandbox, name: str, env: str) -> None:
    """Label the control plane itself, as an installation may; Milo does not."""
    sandbox.control_planes.label(name, {"env": env})


def create_consumer(sandbox: Sandbox, name: str, organization: str, env: str) -> None:
    create_project(sandbox, name, organization, env)
    metadata = {"name": f"consumer-{name}", "labels": {"env": env}}
    document = {"metadata": metadata, "spec": {"serviceRef": {"name": "dns"}, "consumerProjectRef": {"name": name}}}
    store = sandbox.control_plane(PROVIDER)
    store.create(SERVICE_CONSUMERS, document)
    status = {"serviceName": "dns", "phase": "Active"}
    store.modify(SERVICE_CONSUMERS, f"consumer-{name}", lambda found: {**found, "status": status}, part=Part.STATUS)


def relabel_consumer(sandbox: Sandbox, name: str, env: str) -> None:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "metadata": {**found["metadata"], "labels": {"env": env}}}

    sandbox.control_plane(PROVIDER).modify(SERVICE_CONSUMERS, f"consumer-{name}", change)


DECLARATIVE = {
    "resource": {"group": "resourcemanager.miloapis.com", "version": "v1alpha1", "plural": "projects"},
    "ready": {"condition": "Ready"},
    "endpoint": {"template": "https://{metadata.name}.example.com", "hosts": ["*.example.com"]},
    "organization": "{spec.ownerRef.name}",
}
MODES = [
    Mode("project", {"mode": "project"}, create_project, relabel_project),
    Mode("project-control-plane", {"mode": "project-control-plane"}, create_control_plane, relabel_control_plane),
    Mode(
        "service-consumer",
        {"settings": {"services": ["dns"]}},
        create_consumer,
        relabel_consumer,
        prefix="dns#",
        has_organizations=False,
    ),
    Mode(
        "service-consumer",
        {"settings": {"services": ["dns"], "follow_projects": True}},
        create_consumer,
        relabel_consumer,
        prefix="dns#",
    ),
    Mode("declarative", {"mode": "declarative", "settings": DECLARATIVE}, create_project, relabel_project),
]


class Workspace:
    def __init__(self, directory: Path, sandbox: Sandbox, mode: Mode) -> None:
        self._directory = directory
        self.sandbox = sandbox
        self.mode = mode

    def daemon(self) -> Daemon:
        (self._directory / "milo").write_text(json.dumps(self.sandbox.kubeconfig()))
        (self._directory / "token").write_text(self.sandbox.token(life=600))
        scopes = {"all": "all", "prod": {"label_selector": "env=prod"}, "shop": {"organizations": ["shop"]}}
        settings = {
            **self._source(),
            "listen": [{"name": name, "address": self.address(name)} for name in scopes],
            "rights": [
                {"name": name, "who": {"listener": name}, "clusters": scope, "kubeconfigs": True}
                for name, scope in scopes.items()
            ],
            "kubeconfigs": {
                "issuers": [{"name": "file", "type": "token-file", "path": str(self._directory / "token")}]
            },
            "connectivity": {"interval": "off"},
            "http_listen": "off",
        }
        file = self._directory / "settings.json"
        file.write_text(json.dumps(settings))
        return Daemon(load({}, {}, file))

    def _source(self) -> dict[str, Any]:
        kubeconfigs = {f"{of}_kubeconfig": str(self._directory / "milo") for of in ("discovery", "project")}
        if self.mode.name != "service-consumer":
            return {**self.mode.settings, **kubeconfigs}
        provider = self._directory / PROVIDER
        provider.write_text(json.dumps(self.sandbox.kubeconfig(project=PROVIDER)))
        source = {"name": "dns", "kind": self.mode.name, **self.mode.settings, **kubeconfigs}
        return {"sources": [{**source, "discovery_kubeconfig": str(provider)}]}

    def address(self, name: str) -> str:
        return f"unix://{self._directory}/{name}.sock"

    def client(self, name: str) -> DiscoveryClient:
        return DiscoveryClient(self.address(name))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_rules_by_label_and_organization_apply_to_calls_and_streams(tmp_path: Path, mode: Mode) -> None:
    async with Sandbox() as sandbox:
        if mode.name == "service-consumer":
            sandbox.projects.create(PROVIDER, ready=True)
        mode.create(sandbox, "shop-1", "shop", "prod")
        mode.create(sandbox, "bank-1", "bank", "dev")
        workspace = Workspace(tmp_path, sandbox, mode)
        daemon = workspace.daemon()
        async with serving(daemon):
            await eventually(lambda: daemon._fleet.synced)
            async with workspace.client("all") as client:
                assert {cluster.name for cluster in await client.list()} == {
                    f"{mode.prefix}shop-1",
                    f"{mode.prefix}bank-1",
                }
            for caller in ("prod", "shop") if mode.has_organizations else ("prod",):
                await check_limited(workspace, caller)
            await check_stream(workspace)


async def check_limited(workspace: Workspace, caller: str) -> None:
    """Check that a list, counts, reports and kubeconfigs show a caller only the cluster `shop-1`."""
    shop, bank = (f"{workspace.mode.prefix}{name}-1" for name in ("shop", "bank"))
    async with workspace.client(caller) as client:
        listing = await client.list()
        assert [cluster.name for cluster in listing] == [shop]
        assert (await client.server_info()).counts.engaged == 1
        report = await client.get(shop)
        assert report.engagement.engaged
        assert report.transitions
        assert (await client.issue_kubeconfig(shop)).cluster == shop
        for name in (bank, "unknown"):
            with pytest.raises(ClusterNotFound):
                await client.get(name)
            with pytest.raises(ClusterNotFound):
                await client.issue_kubeconfig(name)


async def check_stream(workspace: Workspace) -> None:
    """Check that a changed label moves clusters out of a scope and into it."""
    shop, bank = (f"{workspace.mode.prefix}{name}-1" for name in ("shop", "bank"))
    async with workspace.client("prod") as client, asyncio.timeout(LIMIT_S):
        watch = client.watch()
        event = await anext(watch)
        assert (event.type, event.cluster.name) == (EventType.ENGAGED, shop)
        workspace.mode.relabel(workspace.sandbox, "shop-1", "dev")
        event = await anext(watch)
        assert (event.type, event.cluster.name) == (EventType.DISENGAGED, shop)
        assert event.reason is not None
        assert event.reason.name == "LABELS_CHANGED"
        with pytest.raises(ClusterNotFound):
            await client.get(shop)
        workspace.mode.relabel(workspace.sandbox, "bank-1", "prod")
        event = await anext(watch)
        assert (event.type, event.cluster.name) == (EventType.ENGAGED, bank)
        assert (await client.issue_kubeconfig(bank)).cluster == bank
