"""The shipped source definitions of Gardener and kcp, against the sandbox serving the same resources."""

import json
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from milo_discovery import DiscoveryClient, Watch
from tests.end_to_end.process.api_calls import call, user_of
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.watching import adapted, following, is_reachable, until
from tests.support.platforms import SHOOT_ADMIN, Garden, Kcp


def following_definition(
    workspace: Workspace, definition: str, kubeconfig: dict[str, Any], **changes: Any
) -> AbstractAsyncContextManager[tuple[DiscoveryClient, Watch]]:
    """Watch a daemon with a shipped definition, adapted where it says `yours`."""
    workspace.kubeconfig.write_text(json.dumps(kubeconfig))
    return following(workspace.daemon(**{**adapted(definition, **changes), "connectivity": {"interval": "1s"}}))


async def test_gardener_shoots_are_clusters_with_requested_credentials(workspace: Workspace) -> None:
    sandbox, garden = workspace.sandbox, Garden(workspace.sandbox)
    for name in ("alpha", "beta"):
        sandbox.projects.create(name, ready=True)
    garden.create("garden-team", "alpha")
    garden.create("garden-team", "beta", is_available=False)
    async with following_definition(workspace, "gardener", garden.kubeconfig()) as (client, watch):
        assert set(watch.clusters) == {"garden-team.alpha"}
        assert watch.clusters["garden-team.alpha"].endpoint == sandbox.control_plane_url("alpha")
        report = await client.get("garden-team.alpha")
        assert report.engagement.message == "its condition APIServerAvailable is True"
        issued = await client.issue_kubeconfig("garden-team.alpha")
        await until(watch, lambda seen: is_reachable(seen, "garden-team.alpha"))
        assert garden.requested == 1
        assert issued.expires_at is not None
        assert 0 < (issued.expires_at - datetime.now(UTC)).total_seconds() <= 3600
        assert await user_of(issued.kubeconfig) == SHOOT_ADMIN
        status, _ = await call(issued.kubeconfig, "GET", "/api/v1/namespaces")
        assert status == 200
        garden.delete("garden-team", "alpha")
        await until(watch, lambda seen: not seen.clusters)
        assert (await client.get("garden-team.alpha")).engagement.reason.name == "DELETED"


async def test_kcp_workspaces_are_clusters_at_paths_of_one_host(workspace: Workspace) -> None:
    sandbox, kcp = workspace.sandbox, Kcp(workspace.sandbox)
    kcp.create("alpha")
    kcp.create("beta")
    kcp.create("gamma", phase="Initializing")
    token = workspace.directory / "token"
    token.write_text(sandbox.token())
    authorities = workspace.directory / "ca.pem"
    authorities.write_bytes(sandbox.ca_pem)
    changes: dict[str, Any] = {
        "settings__ca_file": str(authorities),
        "settings__endpoint__hosts": ["127.0.0.1"],
        "kubeconfigs__issuers__0__path": str(token),
    }
    async with following_definition(workspace, "kcp", kcp.kubeconfig(), **changes) as (client, watch):
        assert set(watch.clusters) == {"alpha", "beta"}
        assert watch.clusters["alpha"].endpoint == kcp.url_of("alpha")
        name = {"metadata": {"name": "made"}}
        for cluster in ("alpha", "beta"):
            issued = await client.issue_kubeconfig(cluster)
            status, found = await call(issued.kubeconfig, "GET", "/api/v1/namespaces")
            assert (status, found["items"]) == (200, [])
            assert (await call(issued.kubeconfig, "POST", "/api/v1/namespaces", name))[0] == 201
            await until(watch, lambda seen, cluster=cluster: is_reachable(seen, cluster))  # type: ignore[misc]
        kcp.delete("alpha")
        await until(watch, lambda seen: set(seen.clusters) == {"beta"})
