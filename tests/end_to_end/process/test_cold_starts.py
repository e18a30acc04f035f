"""Cold starts under load: several daemons start at once, each with a subscriber that requests kubeconfigs.

The first use of a type in two threads crashed the process in some starts: see docs/reviewers/upstream.md.
Each night runs them with `--starts=200`.
"""

import asyncio
import json
import signal
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient
from milo_discoveryd.sources.kind import KINDS
from milo_sandbox.kubeconfigs import write
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.service_provider import SERVICE, ServiceProvider
from tests.support.platforms import SHOOTS, Garden

AT_ONCE = 4
CLUSTERS = 12
WITHIN_S = 120.0

Source = dict[str, Any]


def project(workspace: Workspace) -> Source:
    return {"kind": "project", "discovery_kubeconfig": str(workspace.kubeconfig)}


def project_control_plane(workspace: Workspace) -> Source:
    for name in names():
        workspace.sandbox.control_planes.create(name, ready=True)
    return {"kind": "project-control-plane", "discovery_kubeconfig": str(workspace.kubeconfig)}


def service_consumer(workspace: Workspace) -> Source:
    provider, file = ServiceProvider(workspace), workspace.directory / "provider"
    for name in names():
        provider.activate(name)
    file.write_bytes(provider.kubeconfig)
    return {
        "kind": "service-consumer",
        "discovery_kubeconfig": str(file),
        "project_kubeconfig": str(workspace.kubeconfig),
        "settings": {"services": [SERVICE]},
    }


def declarative(workspace: Workspace) -> Source:
    file, garden = workspace.directory / "garden", Garden(workspace.sandbox)
    file.write_text(json.dumps(garden.kubeconfig()))
    for name in names():
        garden.create("garden-team", name)
    return {
        "kind": "declarative",
        "discovery_kubeconfig": str(file),
        "project_kubeconfig": str(workspace.kubeconfig),
        "settings": {
            "resource": {"group": SHOOTS.group, "version": SHOOTS.version, "plural": SHOOTS.plural, "namespaced": True},
            "ready": {"condition": "APIServerAvailable"},
            "endpoint": {
                "template": "https://{metadata.name}.example.com",
                "hosts": [f"{name}.example.com" for name in names()],
            },
        },
    }


def kubeconfig_directory(workspace: Workspace) -> Source:
    directory = workspace.directory / "clusters"
    directory.mkdir()
    for name in names():
        write(directory / name, workspace.sandbox.kubeconfig(project=name))
    return {"kind": "kubeconfig-directory", "settings": {"path": str(directory)}}


def kind_file(workspace: Workspace) -> Source:
    configs = {f"kind-{name}": workspace.sandbox.kubeconfig(project=name) for name in names()}
    merged: dict[str, Any] = {"apiVersion": "v1", "kind": "Config"}
    for part in ("clusters", "users"):
        merged[part] = [{**config[part][0], "name": name} for name, config in configs.items()]
    merged["contexts"] = [{"name": name, "context": {"cluster": name, "user": name}} for name in configs]
    write(file := workspace.directory / "config", merged)
    return {"kind": "kind", "settings": {"path": str(file)}}


def single(workspace: Workspace) -> Source:
    return {"kind": "single", "project_kubeconfig": str(workspace.kubeconfig)}


SOURCES = {
    "project": project,
    "project-control-plane": project_control_plane,
    "service-consumer": service_consumer,
    "declarative": declarative,
    "kubeconfig-directory": kubeconfig_directory,
    "kind": kind_file,
    "single": single,
}


def names() -> list[str]:
    return [f"p-{number:02}" for number in range(CLUSTERS)]


def test_cold_start_tests_cover_every_kind_of_source() -> None:
    assert SOURCES.keys() == KINDS.built_in.keys()


@pytest.mark.parametrize("kind", SOURCES)
async def test_concurrently_started_daemons_issue_a_kubeconfig_for_every_cluster(
    workspace: Workspace, kind: str, request: pytest.FixtureRequest
) -> None:
    for name in names():
        workspace.sandbox.projects.create(name, ready=True)
    source = {"name": "all", **SOURCES[kind](workspace)}
    token = workspace.directory / "operators.token"
    token.write_text(workspace.sandbox.token())
    issuer = {"name": "all", "type": "token-file", "path": str(token)}
    if kind in {"kubeconfig-directory", "kind"}:
        issuer = {"name": "all", "type": "kubeconfig-file", "sources": ["all"]}

    clusters = 1 if kind == "single" else CLUSTERS

    async def start(number: int) -> None:
        address = f"unix://{workspace.directory}/{number}.sock"
        file = workspace.directory / f"{number}.yaml"
        config = {
            "sources": [source],
            "kubeconfigs": {"issuers": [issuer]},
            "listen": [address],
            "http_listen": "off",
            "connectivity": {"interval": "off"},
        }
        file.write_text(yaml.safe_dump(config))
        async with DaemonProcess(address, "--config", str(file)) as daemon:
            await daemon.start()
            issued: set[str] = set()
            async with DiscoveryClient(address) as client, client.watch(include_kubeconfigs=True) as watch:
                while len(issued) < clusters:
                    event = await daemon.during(anext(watch))  # type: ignore[arg-type]
                    if event.kubeconfig is not None:
                        issued.add(event.cluster.name)
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0, daemon.tail()

    starts = int(request.config.getoption("--starts"))
    for first in range(0, starts, AT_ONCE):
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
            for number in range(first, min(starts, first + AT_ONCE)):
                tasks.create_task(start(number))
