"""Clusters whose endpoints are in the Secrets that their objects reference: objects and Secrets of the sandbox."""

import asyncio
import json
import re
import sys
from base64 import b64encode
from typing import Any

import pytest

from milo_discovery import DiscoveryClient
from milo_discovery.testing import eventually
from milo_sandbox.resources import SECRETS
from milo_sandbox.rights import EVERYTHING, Rule
from tests.end_to_end.process.api_calls import user_of
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import following, until
from tests.support.platforms import SHOOTS, Garden

NAMESPACE = "garden-team"
_WITHIN_S = 60.0
SETTINGS: dict[str, Any] = {
    "mode": "declarative",
    "settings": {
        "resource": {"group": SHOOTS.group, "version": SHOOTS.version, "plural": SHOOTS.plural, "namespaced": True},
        "ready": {"condition": "APIServerAvailable"},
        "secret": {"name": "{metadata.name}-kubeconfig", "label_selector": "of=shoots"},
        "endpoint": {"secret_key": "value"},
    },
    "kubeconfigs": {
        "issuers": [
            {
                "name": "secrets",
                "type": "kubeconfig-secret",
                "secret": "{secret}",
                "namespace_template": "{secret_namespace}",
                "key": "value",
            }
        ]
    },
    "not_ready_grace": "0s",
}


class Fleet:
    """Shoots of the sandbox, and the Secrets that they reference."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.sandbox = workspace.sandbox
        self.garden = Garden(self.sandbox)
        self.store = self.garden.api.store
        self.kubeconfig = workspace.directory / "garden.kubeconfig"
        self.may(EVERYTHING)

    def may(self, *rules: Rule) -> None:
        """Replace the rights of the daemon."""
        token = self.sandbox.token("the-daemon", rules=rules)
        self.kubeconfig.write_text(json.dumps(self.garden.kubeconfig(token=token)))

    def put(self, name: str) -> None:
        self.garden.create(NAMESPACE, name)

    def put_secret(self, name: str, project: str = "", content: str | None = None) -> None:
        """Create or change the Secret of a Shoot: the kubeconfig of a project's control plane, or other content."""
        if content is None:
            project = project or name
            if project not in self.sandbox.projects:
                self.sandbox.projects.create(project, ready=True)
            config = self.sandbox.kubeconfig(project=project, token=self.sandbox.token("operator", rules=[EVERYTHING]))
            content = json.dumps(config)
        secret = f"{name}-kubeconfig"
        self.store.apply(
            SECRETS,
            secret,
            {
                "metadata": {"name": secret, "labels": {"of": "shoots"}},
                "data": {"value": b64encode(content.encode()).decode()},
            },
            manager="test",
            namespace=NAMESPACE,
        )

    def delete_secret(self, name: str) -> None:
        self.store.delete(SECRETS, f"{name}-kubeconfig", namespace=NAMESPACE)

    def daemon(self, **settings: Any) -> DaemonProcess:
        return self.workspace.daemon(**SETTINGS, discovery_kubeconfig=str(self.kubeconfig), **settings)

    def url(self, project: str) -> str:
        return self.sandbox.control_plane_url(project)


@pytest.fixture
def fleet(workspace: Workspace) -> Fleet:
    fleet = Fleet(workspace)
    for name in ("alpha", "beta"):
        fleet.put(name)
        fleet.put_secret(name)
    return fleet


async def explanation(client: DiscoveryClient, name: str, words: str) -> str:
    """Return the message of a cluster's report once it contains these words."""
    async with asyncio.timeout(_WITHIN_S):
        while words not in (message := (await client.get(name)).engagement.message):
            pass
    return message


async def test_clusters_follow_the_secrets_that_their_objects_reference(fleet: Fleet) -> None:
    async with following(fleet.daemon()) as (client, watch):
        assert set(watch.clusters) == {"alpha", "beta"}
        assert watch.clusters["alpha"].endpoint == fleet.url("alpha")
        assert await user_of((await client.issue_kubeconfig("alpha")).kubeconfig) == "operator"
        before = watch.clusters["alpha"]
        fleet.put_secret("alpha", "moved")
        await until(watch, lambda seen: seen.clusters["alpha"].endpoint == fleet.url("moved"))
        assert watch.clusters["alpha"].incarnation == before.incarnation
        fleet.put("gamma")
        await explanation(client, "gamma", "there is no kubeconfig under the key 'value' of Secret garden-team/gamma-")
        fleet.put_secret("delta")
        fleet.put_secret("gamma")
        await until(watch, lambda seen: "gamma" in seen.clusters)
        fleet.put("delta")
        await until(watch, lambda seen: "delta" in seen.clusters)


async def test_deleted_secret_disengages_its_cluster_but_an_unusable_secret_does_not(fleet: Fleet) -> None:
    async with following(fleet.daemon()) as (client, watch):
        fleet.put_secret("alpha", content="apiVersion: [")
        message = await explanation(client, "alpha", "the cluster stays as last known")
        assert re.search(r"the key 'value' of Secret garden-team/alpha-kubeconfig: line \d: is not YAML: ", message)
        fleet.delete_secret("beta")
        await until(watch, lambda seen: set(seen.clusters) == {"alpha"})
        report = await client.get("beta")
        assert report.engagement.reason.name == "NOT_READY"
        assert "Secret garden-team/beta-kubeconfig" in report.engagement.message
        fleet.put_secret("beta")
        await until(watch, lambda seen: set(seen.clusters) == {"alpha", "beta"})


async def test_secret_that_changed_while_the_daemon_was_down_updates_its_cluster(fleet: Fleet) -> None:
    stored = fleet.workspace.directory / "state"
    state = {"state_directory": str(stored)}
    async with following(fleet.daemon(**state)) as (_, watch):
        before = dict(watch.clusters)
        await eventually(lambda: list(stored.glob("*.state")), within_s=_WITHIN_S)
    fleet.put_secret("alpha", "moved")
    fleet.delete_secret("beta")
    async with following(fleet.daemon(**state)) as (_, watch):
        await until(watch, lambda seen: set(seen.clusters) == {"alpha"})
        await until(watch, lambda seen: seen.clusters["alpha"].endpoint == fleet.url("moved"))
        assert watch.clusters["alpha"].uid == before["alpha"].uid


async def test_removals_are_held_when_most_of_the_referenced_secrets_are_deleted(fleet: Fleet) -> None:
    names = [f"cluster-{number}" for number in range(30)]
    for name in names:
        fleet.put(name)
        fleet.put_secret(name)
    async with following(fleet.daemon()) as (client, watch):
        engaged = {"alpha", "beta", *names}
        assert set(watch.clusters) == engaged
        for name in names:
            fleet.delete_secret(name)
        fleet.store.compact()
        fleet.sandbox.drop_watches()
        async with asyncio.timeout(_WITHIN_S):
            while (await client.server_info()).source.reason != "RemovalsHeld":
                pass
        assert set(watch.clusters) == engaged
        for name in names:
            fleet.put_secret(name)
        async with asyncio.timeout(_WITHIN_S):
            while (await client.server_info()).source.reason == "RemovalsHeld":
                pass
        assert set(watch.clusters) == engaged


async def test_check_verifies_permissions_on_cluster_objects_and_referenced_secrets(fleet: Fleet) -> None:
    async def checked() -> str:
        fleet.daemon()  # write the configuration
        command = (
            sys.executable,
            "-m",
            "milo_discoveryd",
            "check",
            "--config",
            f"{fleet.workspace.directory}/config.yaml",
        )
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(_WITHIN_S):
            output, _ = await process.communicate()
        return output.decode()

    assert "get, list and watch of secrets allowed" in await checked()
    fleet.may(Rule(verbs=frozenset({"*"}), resources=frozenset({"shoots"})))
    found = await checked()
    assert "get, list and watch of shoots.core.gardener.cloud allowed" in found
    assert "get, list and watch of secrets denied" in found
    assert '{apiGroups: [""], resources: [secrets], verbs: [get, list, watch]}' in found
