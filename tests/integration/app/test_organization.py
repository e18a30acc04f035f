"""A daemon in the context of an organization engages the projects of that organization only."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient, EngagementReason
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_sandbox import Sandbox, selectors
from milo_sandbox.api import Features
from tests.integration.app.test_daemon import Look, serving
from tests.support.eventually import eventually

BEHAVIORS = [
    pytest.param(Features(organization_watches=watches, streaming_lists=lists), id=f"{version}, {how}")
    for watches, version in ((False, "Milo"), (True, "limited watches"))
    for lists, how in ((True, "streaming lists"), (False, "pages"))
]


def found(sandbox: Sandbox, name: str, organization: str) -> None:
    sandbox.milo.found(name, organization, {})
    sandbox.milo.provision(name)


@asynccontextmanager
async def following(sandbox: Sandbox, directory: Path) -> AsyncIterator[tuple[DiscoveryClient, Look]]:
    for number in range(12):
        found(sandbox, f"p{number}", f"org-{number % 4}")
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(sandbox.kubeconfig(organization="org-1")))
    address = f"unix://{directory}/d.sock"
    flags = {"discovery_kubeconfig": str(kubeconfig), "listen": (address,), "http_listen": "127.0.0.1:0"}
    daemon = Daemon(load(flags, {}, None))
    async with serving(daemon) as get, DiscoveryClient(address) as client:
        await eventually(lambda: daemon._fleet.synced)
        yield client, get


async def engaged(client: DiscoveryClient) -> list[str]:
    return sorted(cluster.name for cluster in (await client.list()).clusters)


@pytest.mark.parametrize("features", BEHAVIORS)
async def test_only_projects_of_the_organization_are_engaged(features: Features, tmp_path: Path) -> None:
    async with Sandbox(features=features) as sandbox, following(sandbox, tmp_path) as (client, get):
        assert await engaged(client) == ["p1", "p5", "p9"]
        found(sandbox, "foreign", "org-2")
        found(sandbox, "own", "org-1")
        sandbox.drop_watches()
        async with client.watch() as events:
            # The project of the other organization was created first, so its event would have arrived first.
            async for event in events:
                if event.cluster.name == "own":
                    break
        assert await engaged(client) == ["own", "p1", "p5", "p9"]
        info = await client.server_info()
        assert (info.context, info.counts.engaged, info.counts.refused) == ("organization org-1", 4, 0)
        assert json.loads((await get("/?json"))[1])["context"] == "organization org-1"


async def test_projects_outside_the_organization_of_the_context_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selectors, "parse", lambda *_, **__: selectors.EVERYTHING)
    async with Sandbox() as sandbox, following(sandbox, tmp_path) as (client, get):
        assert await engaged(client) == ["p1", "p5", "p9"]
        assert (await client.server_info()).counts.refused == 9
        refused = (await client.get("p2")).engagement
        assert refused.reason is EngagementReason.REFUSED
        assert refused.message == (
            "it belongs to the organization org-2, and the daemon's context is the organization org-1"
        )
        assert 'milo_discoveryd_known_clusters{state="refused"} 9.0' in (await get("/metrics"))[1]
        assert json.loads((await get("/?json"))[1])["counts"]["refused"] == 9
