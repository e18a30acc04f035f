"""`milo-discovery publish` against a real kube-apiserver: what it writes, and what it leaves unchanged."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from milo_sandbox import Sandbox
from tests.end_to_end.kubeconfigs.workspace import COMMANDS, Workspace, open_workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.kubectl import kubectl
from tests.end_to_end.real.publishing import (
    Document,
    Holds,
    Publication,
    Publishing,
    condition,
    is_complete,
    publication_namespace,
    publish_once,
    versions,
)
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios.servers import RealServers

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROFILES, ARGOCD, FLUX = "cluster-profiles", "argocd-clusters", "flux-kubeconfigs"
SUFFIXES = {PROFILES: "", ARGOCD: "-argocd-cluster", FLUX: "-kubeconfig", "flux-configmaps": "-kubeconfig"}
"""The suffix of the names of published objects, by form."""


@pytest_asyncio.fixture(loop_scope="session")
async def inventory(servers: RealServers, directory: Path) -> AsyncIterator[RealApi]:
    """The API server of published objects."""
    (directory / "inventory").mkdir()
    async with servers.acquire("project-control-plane", directory / "inventory") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def workspace(directory: Path) -> AsyncIterator[Workspace]:
    (directory / "state").mkdir(mode=0o700)
    async with open_workspace(
        directory, connectivity={"interval": "1s", "per": "cluster"}, state_directory=str(directory / "state")
    ) as workspace:
        yield workspace


@pytest_asyncio.fixture(loop_scope="session")
async def profiles(inventory: RealApi) -> AsyncIterator[Publication]:
    async with publication_namespace(inventory, PROFILES) as publication:
        yield publication


def healthy(name: str) -> Holds:
    """Return the condition that a profile is published completely, and healthy."""
    return lambda found: name in found and is_complete(found[name]) and condition(found[name])[1] == "True"


async def test_cluster_profile_has_the_health_and_the_access_of_its_cluster(
    workspace: Workspace, profiles: Publication
) -> None:
    workspace.sandbox.projects.label("alpha", {"env": "prod", "tier": "gold"})
    async with Publishing.running(workspace, profiles, "--copy-label", "env"):
        found = await profiles.until(
            lambda found: healthy("alpha")(found) and "env" in found["alpha"]["metadata"]["labels"]
        )
    profile = found["alpha"]
    assert profile["spec"] == {"displayName": "alpha", "clusterManager": {"name": "milo"}}
    assert profile["metadata"]["labels"]["x-k8s.io/cluster-manager"] == "milo"
    assert "tier" not in profile["metadata"]["labels"]
    [provider] = profile["status"]["accessProviders"]
    assert (provider["name"], provider["cluster"]["server"]) == ("milo", workspace.sandbox.control_plane_url("alpha"))
    assert base64.b64decode(provider["cluster"]["certificate-authority-data"]) == workspace.sandbox.ca_pem
    [extension] = provider["cluster"]["extensions"]
    assert extension == {"name": "client.authentication.k8s.io/exec", "extension": {"clusterName": "alpha"}}
    managers = {(entry["manager"], entry.get("subresource")) for entry in profile["metadata"]["managedFields"]}
    assert managers == {("milo-discovery", None), ("milo-discovery", "status")}


async def test_cluster_profiles_follow_engagements_and_are_deleted_with_them(
    workspace: Workspace, profiles: Publication
) -> None:
    async with Publishing.running(workspace, profiles):
        first = (await profiles.until_named("alpha"))["alpha"]
        workspace.sandbox.projects.create("beta", ready=True)
        await profiles.until_named("alpha", "beta")
        workspace.sandbox.projects.delete("beta")
        await profiles.until_named("alpha")
        workspace.sandbox.projects.delete("alpha")
        workspace.sandbox.projects.create("alpha", ready=True)
        again = await profiles.until(lambda found: "alpha" in found and _uid(found["alpha"]) != _uid(first))
    annotations = again["alpha"]["metadata"]["annotations"]
    assert annotations["discovery.miloapis.com/cluster-uid"] != _annotation(first, "cluster-uid"), (
        "the profile still has the UID of the deleted cluster"
    )


async def test_publisher_does_not_write_unchanged_objects(workspace: Workspace, profiles: Publication) -> None:
    workspace.sandbox.projects.create("beta", ready=True)
    async with Publishing.running(workspace, profiles):
        await profiles.until(healthy("alpha"))
        before = versions(await profiles.until(healthy("beta")))
    await publish_once(workspace, profiles)
    async with Publishing.running(workspace, profiles):
        workspace.sandbox.projects.create(
            "gamma", ready=True
        )  # once gamma is published, earlier changes have been processed
        found = await profiles.until(healthy("gamma"))
    assert {name: version for name, version in versions(found).items() if name != "gamma"} == before


async def test_publisher_reverts_changes_to_its_fields_and_keeps_fields_of_other_managers(
    workspace: Workspace, profiles: Publication
) -> None:
    async with Publishing.running(workspace, profiles):
        await profiles.until(healthy("alpha"))
        others = {"labels": {"x-k8s.io/cluster-manager": "other", "team": "blue"}}
        await profiles.call("PATCH", "alpha", {"metadata": others, "spec": {"displayName": "other"}})
        found = await profiles.until(lambda found: found["alpha"]["spec"]["displayName"] == "alpha")
        assert found["alpha"]["metadata"]["labels"]["x-k8s.io/cluster-manager"] == "milo"
        assert found["alpha"]["metadata"]["labels"]["team"] == "blue"
        await profiles.call("DELETE", "alpha")
        await profiles.until_named("alpha")


async def test_publisher_removes_labels_that_are_no_longer_copied(workspace: Workspace, profiles: Publication) -> None:
    workspace.sandbox.projects.label("alpha", {"env": "prod"})
    await publish_once(workspace, profiles, "--copy-label", "env")
    assert (await profiles.objects())["alpha"]["metadata"]["labels"]["env"] == "prod"
    await publish_once(workspace, profiles)
    assert "env" not in (await profiles.objects())["alpha"]["metadata"]["labels"]


async def test_publisher_reports_a_foreign_object_of_the_same_name_and_does_not_change_it(
    workspace: Workspace, profiles: Publication
) -> None:
    foreign = {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1",
        "kind": "ClusterProfile",
        "metadata": {"name": "alpha"},
        "spec": {"clusterManager": {"name": "another"}},
    }
    created = await profiles.call("POST", body=foreign)
    workspace.sandbox.projects.create("beta", ready=True)
    async with Publishing.running(workspace, profiles) as publishing:
        await publishing.says("alpha: an object with this name exists, and was not created by this command")
        found = await profiles.until(healthy("beta"))
        assert found["alpha"] == created | {"apiVersion": found["alpha"]["apiVersion"]}
        workspace.sandbox.projects.delete("alpha")
        await profiles.call("DELETE", "alpha")
        await profiles.until_named("beta")


async def test_publisher_catches_up_after_an_outage_of_the_api_server(
    workspace: Workspace, profiles: Publication
) -> None:
    workspace.sandbox.projects.create("beta", ready=True)
    async with Publishing.running(workspace, profiles) as publishing:
        await profiles.until_named("alpha", "beta")
        await profiles.server.stop()
        workspace.sandbox.projects.create("gamma", ready=True)
        workspace.sandbox.projects.delete("beta")
        await publishing.says("publishing is interrupted")
        await profiles.server.start()
        await publishing.says("publishing continues")
        await profiles.until_named("alpha", "gamma")


async def test_publisher_deletes_nothing_while_the_daemon_restarts_or_is_stale(
    workspace: Workspace, profiles: Publication
) -> None:
    """A daemon that starts without Milo serves the clusters of its state file, which may be older than the objects."""
    state = workspace.directory / "state"
    await workspace.daemon.terminate()
    shutil.copytree(state, older := workspace.directory / "older")
    await workspace.daemon.start()
    workspace.sandbox.projects.create("beta", ready=True)
    async with Publishing.running(workspace, profiles) as publishing:
        before = await profiles.until_named("alpha", "beta")
        await workspace.daemon.kill()
        await publishing.says("connection lost")
        await publishing.kill()
    await workspace.sandbox.stop()
    shutil.rmtree(state)
    shutil.copytree(older, state)
    await workspace.daemon.start()
    async with Publishing.running(workspace, profiles) as publishing:
        await publishing.says("synced: 1 cluster")
        workspace.sandbox.projects.create("gamma", ready=True)
        await workspace.sandbox.start()
        found = await profiles.until_named("alpha", "beta", "gamma")
        assert _uid(found["beta"]) == _uid(before["beta"]), "the object was deleted and created again"
        workspace.sandbox.projects.delete("beta")
        await profiles.until_named("alpha", "gamma")


async def test_publishers_share_a_namespace_and_keep_their_own_objects(
    workspace: Workspace, profiles: Publication
) -> None:
    workspace.sandbox.projects.create("beta", ready=True)
    workspace.sandbox.projects.label("beta", {"shard": "two"})
    await publish_once(workspace, profiles, "--publisher", "two", "-l", "shard=two")
    await publish_once(workspace, profiles, "--publisher", "one", "-l", "shard!=two")
    expected = {"alpha": "one", "beta": "two"}
    assert publishers(await profiles.until_named("alpha", "beta")) == expected
    async with Publishing.running(workspace, profiles, "--publisher", "one") as publishing:
        await publishing.says(
            "ClusterProfile alpha: the object of publisher 'one' was written with the filter `-l shard!=two`"
        )
        assert await publishing.process.wait() == 1
    async with Publishing.running(workspace, profiles, "--publisher", "one", "--accept-removals") as publishing:
        await publishing.says("beta: the object of this name belongs to publisher 'two'")
        await profiles.until(lambda found: _annotation(found["alpha"], "filter") == "")
    assert publishers(await profiles.objects()) == expected


async def test_publisher_neither_changes_nor_deletes_objects_of_another_fleet(
    directory: Path, workspace: Workspace, profiles: Publication
) -> None:
    workspace.sandbox.projects.create("beta", ready=True)
    await publish_once(workspace, profiles)
    before = versions(await profiles.until_named("alpha", "beta"))
    (directory / "other").mkdir(mode=0o700)
    async with open_workspace(directory / "other") as other:
        other.sandbox.projects.delete("alpha")
        other.sandbox.projects.create("gamma", ready=True)
        await other.daemon.wait_for_output('"gamma"')
        async with Publishing.running(other, profiles, "--once") as publishing:
            await publishing.says("nothing is written")
            assert await publishing.process.wait() == 1
    assert versions(await profiles.objects()) == before


@pytest.mark.parametrize(("form", "suffix"), SUFFIXES.items())
async def test_replicas_of_a_shard_group_publish_as_one_owner(
    directory: Path, inventory: RealApi, form: str, suffix: str
) -> None:
    names = {f"p-{number:02}" for number in range(12)}
    # In each pod the daemon has the same address.
    arguments = ("--plugin-env", "MILO_DISCOVERY_ADDRESS=unix:///run/discovery.sock") if form == ARGOCD else ()

    def is_published(name: str) -> Holds:
        if form == PROFILES:
            return healthy(name)
        return lambda found: name + suffix in found and is_complete(found[name + suffix])

    async with AsyncExitStack() as stack:
        objects = await stack.enter_async_context(publication_namespace(inventory, form))
        sandbox = await stack.enter_async_context(Sandbox(seed=1))
        sandbox.write_kubeconfig(directory / "upstream")
        for name in names:
            sandbox.projects.create(name, ready=True)
        one, two = [
            await stack.enter_async_context(replica(name, form, directory, sandbox, inventory)) for name in "12"
        ]
        first, second = [
            await stack.enter_async_context(Publishing.running(daemon, objects, *arguments)) for daemon in (one, two)
        ]
        share = await share_of_settled_group(two, members=2)
        assert set() < share < names
        published = await objects.until(
            lambda found: len(found) == len(names) and all(is_published(name)(found) for name in names)
        )
        sandbox.projects.create("new", ready=True)
        after = versions(await objects.until(is_published("new")))
        assert {name: after[name] for name in published} == versions(published)

        await second.kill()
        await two.daemon.terminate()
        left = min(share)
        sandbox.projects.delete(left)
        found = await objects.until(lambda found: left + suffix not in found)
        others = published.keys() - {left + suffix}
        assert {name: _uid(found[name]) for name in others} == {name: _uid(published[name]) for name in others}
        assert first.process.returncode is None


@asynccontextmanager
async def replica(
    name: str, group: str, directory: Path, sandbox: Sandbox, leases: RealApi
) -> AsyncIterator[Workspace]:
    """Run a daemon of a shard group."""
    address, config = f"unix://{directory}/{name}.sock", directory / f"{name}.json"
    issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
    settings = {
        "kubeconfigs": {"issuers": [issuer]},
        "discovery_kubeconfig": str(directory / "upstream"),
        "sharding": {"group": group, "kubeconfig": str(leases.kubeconfig)},
        "connectivity": {"interval": "1s", "per": "cluster"},
        "listen": [address],
        "http_listen": "off",
    }
    config.write_text(json.dumps(settings))
    environ = {"POD_NAME": f"replica-{name}", "POD_NAMESPACE": "default", "POD_UID": f"uid-{name}"}
    async with DaemonProcess(address, "--config", str(config), environ=environ) as daemon:
        await daemon.start()
        yield Workspace(directory, sandbox, daemon, refused=[])


async def share_of_settled_group(of: Workspace, *, members: int) -> set[str]:
    """Return the clusters of a replica, once the group agrees on its members."""
    async with of.client() as client, asyncio.timeout(120):
        while True:
            found = (await client.server_info()).sharding
            if found is not None and found.settled and sum(member.in_view for member in found.members) == members:
                return {cluster.name for cluster in await client.list()}
            await asyncio.sleep(0.2)


def publishers(found: dict[str, Document]) -> dict[str, str]:
    return {name: _label(found, name, "publisher") for name in found}


async def test_argocd_cluster_secret_connects_with_its_exec_provider(workspace: Workspace, inventory: RealApi) -> None:
    async with publication_namespace(inventory, ARGOCD) as secrets:
        plugin = str(COMMANDS / "milo-discovery")
        await publish_once(workspace, secrets, "--plugin-command", plugin, "--argocd-project", "tenants")
        secret = (await secrets.until_named("alpha-argocd-cluster"))["alpha-argocd-cluster"]
    assert secret["metadata"]["labels"]["argocd.argoproj.io/secret-type"] == "cluster"
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    config = json.loads(data.pop("config"))
    assert data == {"name": "alpha", "server": workspace.sandbox.control_plane_url("alpha"), "project": "tenants"}
    plugin_config, tls = config["execProviderConfig"], config["tlsClientConfig"]
    assert tls["insecure"] is False
    user = {
        **plugin_config,
        "interactiveMode": "Never",
        "env": [{"name": name, "value": value} for name, value in plugin_config["env"].items()],
    }
    cluster = {"server": data["server"], "certificate-authority-data": tls["caData"]}
    kubeconfig = _kubeconfig(workspace.directory / "argocd", cluster, {"exec": user})
    assert "namespace/default" in await kubectl(kubeconfig, "get", "namespaces", "-o", "name")


async def test_flux_kubeconfig_secret_is_renewed_before_its_credential_expires(
    directory: Path, inventory: RealApi
) -> None:
    async with (
        open_workspace(directory, token_life=8.0) as workspace,
        publication_namespace(inventory, FLUX) as secrets,
    ):
        async with Publishing.running(workspace, secrets):
            seen: list[str] = []
            for _ in range(3):
                found = await secrets.until(lambda found: _value(found) not in ("", *seen))
                seen.append(_value(found))
                kubeconfig = directory / "flux"
                kubeconfig.write_text(seen[-1])
                assert "namespace/default" in await kubectl(kubeconfig, "get", "namespaces", "-o", "name")
            workspace.sandbox.projects.delete("alpha")
            await secrets.until_named()
        assert workspace.refused == []


async def test_shipped_role_of_the_publisher_is_sufficient_and_grants_no_other_verbs(
    workspace: Workspace, inventory: RealApi
) -> None:
    """The granted verbs are exactly those that the publisher uses."""
    async with publication_namespace(inventory, PROFILES) as profiles:
        await publish_once(workspace, profiles)
        used = {("clusterprofiles", verb) for verb in ("create", "patch", "list")}
        async with Publishing.running(workspace, profiles) as publishing:
            await publishing.says("synced: 1 cluster")  # before that, the removal of the only object is held
            workspace.sandbox.projects.delete("alpha")
            await profiles.until_named()
        used |= {("clusterprofiles", "delete"), ("clusterprofiles/status", "patch"), ("clusterprofiles", "get")}
        async with inventory.api() as api:
            path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{profiles.namespace}/roles"
            [role] = (await api.call("GET", path))["items"]
    granted = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == used


def _kubeconfig(path: Path, cluster: object, user: object) -> Path:
    path.touch(mode=0o600)
    named = {"clusters": ("cluster", cluster), "users": ("user", user)}
    lists = {kind: [{"name": "it", key: value}] for kind, (key, value) in named.items()}
    context = {"name": "it", "context": {"cluster": "it", "user": "it"}}
    document = {"apiVersion": "v1", "kind": "Config", **lists, "contexts": [context], "current-context": "it"}
    path.write_text(json.dumps(document))
    return path


def _uid(document: Document) -> str:
    return str(document["metadata"]["uid"])


def _annotation(document: Document, name: str) -> str:
    return str(document["metadata"]["annotations"][f"discovery.miloapis.com/{name}"])


def _label(found: dict[str, Document], name: str, label: str) -> str:
    return str(found[name]["metadata"]["labels"][f"discovery.miloapis.com/{label}"])


def _value(found: dict[str, Document]) -> str:
    secret = found.get("alpha-kubeconfig", {})
    return base64.b64decode(secret.get("data", {}).get("value", "")).decode()
