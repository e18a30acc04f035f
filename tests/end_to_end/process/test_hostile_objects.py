"""Hostile values in objects, written by tenants of two sources: they are not used, but logged and audited."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from milo_discovery import DiscoveryClient
from milo_discoveryd.sources.project_control_plane import OWNER_ANNOTATION
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import following, until

ENDPOINT = "endpoint"
GOOD = "https://good.example.com:6443"
HOSTILE = {
    "line-feed": "https://good.example.com:6443\n",
    "carriage-return": "https://good.example.com\r:6443",
    "tab": "https://good.exam\tple.com:6443",
    "leading-control": "\x01https://good.example.com:6443",
    "short-address": "https://10.0.5:6443",
    "metadata-service": "https://169.254.169.254",
    "another-host": "https://evil.example.net",
}
OUTSIDE = {"metadata-service", "another-host"}
WRITES = 100
AUDITED = 25
"""More than the log lines about an object that is refused in half of the writes: 20, and one more for each second."""


class Tenants:
    """A declarative source and one of ProjectControlPlanes, with a tenant in each."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.audit = workspace.directory / "audit"
        self.planes = workspace.sandbox.control_planes

    def daemon(self) -> DaemonProcess:
        declared = {
            "resource": {"group": "resourcemanager.miloapis.com", "version": "v1alpha1", "plural": "projects"},
            "ready": {"condition": "Ready"},
            "endpoint": {
                "field": f"metadata.annotations[{ENDPOINT}]",
                "hosts": ["good.example.com", "10.0.0.0/8"],
            },
        }
        kubeconfig = str(self.workspace.kubeconfig)
        sources: list[dict[str, Any]] = [
            {"name": "declared", "kind": "declarative", "discovery_kubeconfig": kubeconfig, "settings": declared},
            {"name": "planes", "kind": "project-control-plane", "discovery_kubeconfig": kubeconfig},
        ]
        audit = {"file": str(self.audit)}
        return self.workspace.daemon(sources=sources, discovery_kubeconfig=None, audit=audit)

    def declare(self, name: str, endpoint: str) -> None:
        self.workspace.sandbox.projects.create(name, annotations={ENDPOINT: endpoint}, ready=True)

    def point(self, name: str, endpoint: str) -> None:
        self.workspace.sandbox.projects.annotate(name, {ENDPOINT: endpoint})


@pytest.fixture
def tenants(workspace: Workspace) -> Tenants:
    tenants = Tenants(workspace)
    tenants.declare("good", GOOD)
    tenants.planes.create("plane", ready=True)
    return tenants


def refused(lines: list[dict[str, Any]]) -> Counter[str]:
    """Return the number of lines about each refused cluster; lines beyond the rate limit are not written."""
    return Counter(line["cluster"] for line in lines if line["event"] == "object refused")


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_objects_with_hostile_endpoints_are_logged_and_audited_and_not_engaged(tenants: Tenants) -> None:
    for name in ("line-feed", "metadata-service"):
        tenants.declare(f"listed-{name}", HOSTILE[name])
    async with following(daemon := tenants.daemon()) as (client, watch):
        for name, endpoint in HOSTILE.items():
            tenants.declare(name, endpoint)
        tenants.declare("later", "https://good.example.com:7443")
        tenants.planes.create("later", ready=True)
        await until(watch, lambda seen: {"declared#later", "planes#later"} <= set(seen.clusters))
        assert set(watch.clusters) == {"declared#good", "declared#later", "planes#plane", "planes#later"}
        for name in HOSTILE:
            problem = "not among endpoint.hosts" if name in OUTSIDE else "is not of the form https://HOST"
            assert problem in await why_not(client, f"declared#{name}")
    expected = {f"declared#{name}": 1 for name in (*HOSTILE, "listed-line-feed", "listed-metadata-service")}
    assert refused(written(tenants.audit)) == expected
    logged = [line for line in daemon.events("object refused") if line["logger"] == "audit"]
    assert Counter(line["cluster"] for line in logged) == expected


async def why_not(client: DiscoveryClient, name: str) -> str:
    report = await client.get(name)
    assert not report.engagement.engaged
    return report.engagement.message


async def test_few_log_lines_are_written_for_repeatedly_refused_objects(tenants: Tenants) -> None:
    """Each tenant makes an engaged cluster unusable and usable repeatedly; the cluster stays as last known."""
    async with following(daemon := tenants.daemon()) as (_, watch):
        for number in range(WRITES):
            is_hostile = number % 2 == 0
            tenants.point("good", HOSTILE["metadata-service"] if is_hostile else GOOD)
            tenants.planes.annotate("plane", {OWNER_ANNOTATION: 300 * "x" if is_hostile else "acme"})
            tenants.declare(f"n-{number}", GOOD.replace("6443", str(7000 + number)))
            tenants.planes.create(f"n-{number}", ready=True)
            for source in ("declared", "planes"):
                await until(watch, lambda seen, name=f"{source}#n-{number}": name in seen.clusters)
        assert {"declared#good", "planes#plane"} <= set(watch.clusters)
        assert watch.clusters["declared#good"].endpoint == GOOD
    lines = written(tenants.audit)
    counted = refused(lines)
    assert set(counted) == {"declared#good", "planes#plane"}
    assert all(19 < count < AUDITED for count in counted.values()), counted
    assert len(daemon.events("object refused")) == counted.total()
