"""Values that a tenant writes, or that another API server copies, give no access to another cluster."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient, DiscoveryError
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import ConfigError
from milo_sandbox import Sandbox
from milo_sandbox.milo import PROJECT_UID_LABEL
from milo_sandbox.resources import NAMESPACES, SECRETS
from tests.integration.app.test_daemon import serving
from tests.support.eventually import eventually

CLAIMED = "is also claimed by another object"


class Workspace:
    """Two sandboxes: the tenant of `us` attacks a project of `eu`."""

    def __init__(self, directory: Path, eu: Sandbox, us: Sandbox) -> None:
        self.directory = directory
        self.eu, self.us = eu, us
        for name, sandbox in (("eu", eu), ("us", us)):
            sandbox.write_kubeconfig(directory / name)
        (directory / "infrastructure").write_text(json.dumps(eu.infrastructure_kubeconfig()))

    def source(self, name: str, kind: str, of: str = "", **settings: Any) -> dict[str, Any]:
        return {"name": name, "kind": kind, "discovery_kubeconfig": str(self.directory / (of or name)), **settings}

    def daemon(self, sources: list[dict[str, Any]], issuer: dict[str, Any], *, stores: bool = False) -> Daemon:
        state = {"state_directory": str(self.directory / "state")} if stores else {}
        settings = {
            "sources": sources,
            "kubeconfigs": {"issuers": [{"name": "all", "sources": [source["name"] for source in sources], **issuer}]},
            "connectivity": {"interval": "off"},
            "listen": f"unix://{self.directory}/d.sock",
            "http_listen": "127.0.0.1:0",
            **state,
        }
        file = self.directory / "settings.json"
        file.write_text(json.dumps(settings))
        return Daemon(load({}, {}, file))

    def client(self) -> DiscoveryClient:
        return DiscoveryClient(f"unix://{self.directory}/d.sock")


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    async with AsyncExitStack() as stack:
        eu, us = [await stack.enter_async_context(Sandbox(seed=seed)) for seed in (1, 2)]
        yield Workspace(tmp_path, eu, us)


async def tokens(client: DiscoveryClient, *names: str) -> dict[str, str]:
    """Return the token in each cluster's kubeconfig, or the cluster's engagement message if none is issued."""
    found = {}
    for name in names:
        try:
            issued = await client.issue_kubeconfig(name)
            found[name] = yaml.safe_load(issued.kubeconfig)["users"][0]["user"]["token"]
        except DiscoveryError:
            found[name] = (await client.get(name)).engagement.message
    return found


class ControlPlanes:
    """Two sources of ProjectControlPlanes with one issuer, which reads Secrets of `eu`'s infrastructure cluster."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        workspace.eu.milo.found("bank", "acme", {})
        workspace.eu.milo.provision("bank")
        self.uid = workspace.eu.projects.read("bank")["metadata"]["uid"]
        store, token = workspace.eu.infrastructure.api.store, workspace.eu.token("bank", life=600)
        self.token = token
        user = {"token": token}
        document = {"users": [{"name": "u", "user": user}], "contexts": [{"name": "c", "context": {"user": "u"}}]}
        config = yaml.safe_dump({**document, "current-context": "c", "clusters": []})
        store.create(NAMESPACES, {"metadata": {"name": f"project-{self.uid}"}})
        data = {"kubeconfig": base64.b64encode(config.encode()).decode()}
        store.create(SECRETS, {"metadata": {"name": "kubeconfig"}, "data": data}, namespace=f"project-{self.uid}")

    def forge(self, source: str) -> None:
        """Write the bank's project UID into a label, as a tenant of that source."""
        getattr(self.workspace, source).control_planes.create("thief", labels={PROJECT_UID_LABEL: self.uid}, ready=True)

    def daemon(self, *names: str, stores: bool = True) -> Daemon:
        sources = [self.workspace.source(name, "project-control-plane") for name in names]
        issuer = {"type": "kubeconfig-secret", "kubeconfig": str(self.workspace.directory / "infrastructure")}
        return self.workspace.daemon(sources, issuer, stores=stores)


@asynccontextmanager
async def attacked(make: Callable[[], Daemon], attack: Callable[[], None], *, restarts: bool) -> AsyncIterator[Daemon]:
    """Attack a daemon after its first lists, or while it is down. Yield it once it has received the changes."""
    daemon = make()
    async with serving(daemon):
        await eventually(lambda: daemon._fleet.synced)
        if not restarts:
            before = daemon._fleet.log.head, sum(1 for _ in daemon._fleet.items())
            attack()
            await eventually(lambda: (daemon._fleet.log.head, sum(1 for _ in daemon._fleet.items())) != before)
            yield daemon
            return
    attack()
    daemon = make()
    async with serving(daemon):
        await eventually(lambda: all(not source.is_restored and source.synced for source in daemon._fleet.sources))
        yield daemon


FORMS = pytest.mark.parametrize(
    ("names", "restarts"),
    [(("eu",), False), (("eu", "us"), False), (("eu",), True), (("eu", "us"), True)],
    ids=["one source", "two sources", "one source, restarted", "two sources, restarted"],
)


@FORMS
async def test_object_with_forged_project_uid_gets_no_token_of_that_project(
    workspace: Workspace, names: tuple[str, ...], restarts: bool
) -> None:
    planes, thief = ControlPlanes(workspace), names[-1]
    async with (
        attacked(lambda: planes.daemon(*names), lambda: planes.forge(thief), restarts=restarts),
        workspace.client() as client,
    ):
        found = await tokens(client, "eu#bank", f"{thief}#thief")
    assert found["eu#bank"] == planes.token, "the earlier claim did not win"
    assert CLAIMED in found[f"{thief}#thief"]


async def test_claimants_of_one_project_uid_get_no_token_if_the_age_of_claims_is_unknown(
    workspace: Workspace,
) -> None:
    planes = ControlPlanes(workspace)
    planes.forge("us")
    daemon = planes.daemon("eu", "us", stores=False)
    async with serving(daemon), workspace.client() as client:
        await eventually(lambda: daemon._fleet.synced)
        found = await tokens(client, "eu#bank", "us#thief")
    assert CLAIMED in found["us#thief"]
    assert CLAIMED in found["eu#bank"], "want no token, since the age of the claims is unknown"


async def test_sources_that_follow_the_same_object_each_have_a_valid_token(workspace: Workspace) -> None:
    eu = workspace.eu
    eu.add_service_account("milo", "operators")
    names = [f"p{number}" for number in range(5)]
    for name in names:
        eu.projects.create(name, ready=True)
    issuer = {
        "type": "token-request",
        "kubeconfig": str(workspace.directory / "infrastructure"),
        "namespace": "milo",
        "service_account": "operators",
    }
    sources = [workspace.source("one", "project", "eu"), workspace.source("two", "project", "eu")]
    daemon = workspace.daemon(sources, issuer)
    async with serving(daemon), workspace.client() as client:
        await eventually(lambda: daemon._fleet.synced)
        keys = [f"{source}#{name}" for name in names for source in ("one", "two")]
        found = await tokens(client, *keys)
        assert {eu.tokens.subject(token) for token in found.values()} == {"system:serviceaccount:milo:operators"}
        assert len({*found.values()}) == 10
        eu.projects.set_condition("p0", "False")
        await eventually(lambda: len([*daemon._fleet.clusters()]) == 8)
        await eventually(lambda: len(eu.infrastructure.secret_names()) == 8)


@pytest.mark.parametrize("restarts", [False, True], ids=["at once", "restarted"])
async def test_object_with_copied_uid_neither_receives_nor_revokes_token_of_the_original_object(
    tmp_path: Path, restarts: bool
) -> None:
    async with Sandbox() as eu, Sandbox() as us:
        workspace = Workspace(tmp_path, eu, us)
        eu.add_service_account("milo", "operators")
        issuer = {
            "type": "token-request",
            "kubeconfig": str(tmp_path / "infrastructure"),
            "namespace": "milo",
            "service_account": "operators",
        }
        drawn = eu._random.getstate()
        eu.projects.create("bank", ready=True)

        def copy() -> None:
            us._random.setstate(drawn)
            us.projects.create("bank", ready=True)
            assert us.projects.read("bank")["metadata"]["uid"] == eu.projects.read("bank")["metadata"]["uid"]

        sources = [workspace.source(name, "project") for name in ("eu", "us")]
        async with (
            attacked(lambda: workspace.daemon(sources, issuer, stores=True), copy, restarts=restarts) as daemon,
            workspace.client() as client,
        ):
            found = await tokens(client, "eu#bank", "us#bank")
            assert found["us#bank"] != found["eu#bank"]
            us.projects.set_condition("bank", "False")
            await eventually(lambda: [cluster.target.name for cluster in daemon._fleet.clusters()] == ["eu#bank"])
            await eventually(lambda: len(eu.infrastructure.secret_names()) == 1)
            assert eu.tokens.subject(found["eu#bank"]) == "system:serviceaccount:milo:operators"


@FORMS
async def test_cluster_with_the_address_of_another_cluster_gets_no_token(
    workspace: Workspace, names: tuple[str, ...], restarts: bool
) -> None:
    """One credential is valid for all clusters, so callers that may see one of the two would have access to both."""
    token = workspace.eu.token(life=600)
    (workspace.directory / "token").write_text(token)
    settings = {
        "resource": {"group": "resourcemanager.miloapis.com", "version": "v1alpha1", "plural": "projects"},
        "ready": {"condition": "Ready"},
        "endpoint": {"template": "https://{metadata.labels[host]}.example.com:6443", "hosts": ["*.example.com"]},
    }
    sources = [workspace.source(name, "declarative", settings=settings) for name in names]
    issuer = {"type": "token-file", "path": str(workspace.directory / "token")}
    workspace.eu.projects.create("bank", labels={"host": "bank"}, ready=True)
    attacker = workspace.eu if names[-1] == "eu" else workspace.us

    def attack() -> None:
        attacker.projects.create("a-thief", labels={"host": "bank"}, ready=True)

    async with (
        attacked(lambda: workspace.daemon(sources, issuer, stores=True), attack, restarts=restarts),
        workspace.client() as client,
    ):
        found = await tokens(client, "eu#bank", f"{names[-1]}#a-thief")
    assert found["eu#bank"] == token
    assert f"address bank.example.com:6443 {CLAIMED}" in found[f"{names[-1]}#a-thief"]


async def test_issuer_that_identifies_clusters_of_two_sources_by_name_is_rejected(workspace: Workspace) -> None:
    sources = [workspace.source(name, "project-control-plane") for name in ("eu", "us")]
    issuer = {"type": "kubeconfig-secret", "namespace_template": "project-{name}"}
    by_name = {**issuer, "kubeconfig": str(workspace.directory / "infrastructure")}
    with pytest.raises(ConfigError, match="clusters that have the same name in different sources"):
        await workspace.daemon(sources, by_name).serve()
