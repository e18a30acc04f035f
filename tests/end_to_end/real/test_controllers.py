"""Controllers on real kube-apiservers, with the daemon killed, API servers killed, and credentials of 20 seconds.

Drift is repaired, no reconcile is lost, and none runs twice at the same time. In mode `project` the clusters are paths
of one host, each with a kube-apiserver of its own behind it; in mode `project-control-plane`, addresses of one server.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Kind, QueuePolicy, Request, SingleCluster
from milo_controllers.informer import Informer
from milo_discovery import DiscoveryClient, Fleet
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real import kubeconfig
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.bearers import await_bearer
from tests.end_to_end.real.certificates import INSIDE
from tests.end_to_end.real.issuer import AUDIENCE, Issuer
from tests.end_to_end.real.prefixes import serving_projects
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import Mode
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIFE_S = 20
CLUSTERS = ("alpha", "beta")
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
BINDING = {
    "metadata": {"name": "controllers"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "account:operator"}],
}


class Greeter:
    """Copies each labeled ConfigMap, for each cluster, and records its reconciles."""

    def __init__(self) -> None:
        self.running: set[tuple[str, str]] = set()
        self.overlaps: list[tuple[str, str]] = []
        self.reconciled: dict[tuple[str, str], str | None] = {}
        """The version of each object that was last reconciled successfully."""

    async def reconcile(self, request: Request) -> None:
        place = request.cluster.name, request.name
        if place in self.running:
            self.overlaps.append(place)
        self.running.add(place)
        try:
            found = await request.get()
            version = None if found is None else found["metadata"]["resourceVersion"]
            if found is not None and not found["metadata"].get("deletionTimestamp"):
                name = f"{request.name}.{request.cluster.name}"
                metadata = {"name": name, "ownerReferences": [await request.owner_reference(controller=False)]}
                copy = {"kind": "ConfigMap", "metadata": metadata, "data": found.get("data", {})}
                await request.apply("v1/configmaps", copy)
            self.reconciled[place] = version
        finally:
            self.running.discard(place)


@pytest.fixture
def names_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the names of the cluster's own DNS to this host."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name.endswith(INSIDE) and not options.get("flags"):
            host = "127.0.0.1"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest_asyncio.fixture(loop_scope="session")
async def planes(
    server: RealApi, servers: RealServers, mode: Mode, tmp_path: Path
) -> AsyncIterator[dict[str, RealApi]]:
    """The server that stores the objects of each cluster."""
    if mode == "project-control-plane":
        yield dict.fromkeys(CLUSTERS, server)
        return
    async with servers.acquire(mode, tmp_path) as other:
        yield dict(zip(CLUSTERS, (server, other), strict=True))


@asynccontextmanager
async def configured(
    server: RealApi, planes: dict[str, RealApi], directory: Path, issuer: Issuer
) -> AsyncIterator[Path]:
    """Write the daemon's settings, and run the servers that they refer to."""
    key = directory / "key.json"
    key.write_text(json.dumps(issuer.register("operator")))
    source = {
        "name": "accounts", "type": "datum-service-account", "key_file": str(key), "ca_file": str(issuer.ca_file),
        "audiences": [AUDIENCE],
    }  # fmt: skip
    settings = {
        "mode": server.mode,
        "discovery_kubeconfig": str(server.kubeconfig),
        "connectivity": {"interval": "off"},
        "listen": [f"unix://{directory}/d.sock"],
        "http_listen": "off",
        "kubeconfigs": {"issuers": [source]},
    }
    file = directory / "config.yaml"
    async with AsyncExitStack() as stack:
        if server.mode == "project":
            url = await stack.enter_async_context(serving_projects(planes, server.authority))
            path = kubeconfig.write(
                directory / "projects.kubeconfig", server=url, authority=server.authority.pem, user={"token": "unused"}
            )
            settings["project_kubeconfig"] = str(path)
        else:
            settings["internal_address_template"] = f"project-{{uid}}.{INSIDE}:{server.url.rpartition(':')[2]}"
        file.write_text(json.dumps(settings))
        yield file


async def put(api: Api, name: str, content: str) -> None:
    body = {"metadata": {"name": name, "labels": {"greet": "yes"}}, "data": {"content": content}}
    if await api.status(f"{CONFIG_MAPS}/{name}") == 404:
        await api.call("POST", CONFIG_MAPS, body)
    else:
        await api.call("PUT", f"{CONFIG_MAPS}/{name}", body)


async def put_everywhere(planes: dict[str, RealApi], name: str, content: str) -> None:
    for plane in set(planes.values()):
        async with plane.api() as api:
            await put(api, name, content)


async def delete(plane: RealApi, name: str) -> None:
    async with plane.api() as api:
        await api.call("DELETE", f"{CONFIG_MAPS}/{name}")


async def restart(planes: dict[str, RealApi]) -> None:
    """Kill every API server, and start it again."""
    for plane in set(planes.values()):
        await plane.stop()
    for plane in set(planes.values()):
        await plane.start()


async def copy_in(plane: RealApi, cluster: str, name: str) -> str | None:
    """Return the content of a cluster's copy; None if there is no copy."""
    async with plane.api() as api:
        found = {item["metadata"]["name"]: item for item in (await api.call("GET", CONFIG_MAPS))["items"]}
    content: str | None = found.get(f"{name}.{cluster}", {}).get("data", {}).get("content")
    return content


async def until_copied(planes: dict[str, RealApi], name: str, content: str) -> None:
    async with asyncio.timeout(120):
        for cluster, plane in planes.items():
            while await copy_in(plane, cluster, name) != content:  # noqa: ASYNC110 - the server has no event
                await asyncio.sleep(0.1)


async def versions(planes: dict[str, RealApi]) -> dict[tuple[str, str], str]:
    found = {}
    for cluster, plane in planes.items():
        async with plane.api() as api:
            items = (await api.call("GET", f"{CONFIG_MAPS}?labelSelector=greet%3Dyes"))["items"]
        found |= {(cluster, item["metadata"]["name"]): item["metadata"]["resourceVersion"] for item in items}
    return found


async def admit(plane: RealApi, issuer: Issuer) -> None:
    """Grant all rights to the operator's credential."""
    plane.trust(issuer.trusted())
    await await_bearer(plane, issuer.token("operator"), "account:operator")
    async with plane.api() as api:
        await api.forget(f"{BINDINGS}/controllers")
        await api.call("POST", BINDINGS, BINDING)


@pytest.mark.usefixtures("names_inside")
async def test_controllers_repair_drift_after_restarts_of_daemon_and_api_servers(
    server: RealApi, planes: dict[str, RealApi], directory: Path
) -> None:
    greeter = Greeter()
    alpha, beta = (planes[cluster] for cluster in CLUSTERS)
    async with Issuer(directory, life_s=LIFE_S) as issuer:
        for plane in set(planes.values()):
            await admit(plane, issuer)
        await put_everywhere(planes, "first", "one")
        await create_ready(server, *CLUSTERS)
        address = f"unix://{directory}/d.sock"
        async with (
            configured(server, planes, directory, issuer) as file,
            DaemonProcess(address, "--config", str(file)) as daemon,
            DiscoveryClient(address) as client,
        ):
            await daemon.start()
            controllers = Controllers(Fleet(client, include_kubeconfigs=True), registry=CollectorRegistry())
            queue = QueuePolicy(max_delay_s=2.0)
            controllers.reconcile(Kind("v1/configmaps", selector="greet=yes"), owns=["v1/configmaps"], queue=queue)(
                greeter.reconcile
            )
            async with controllers:
                await until_copied(planes, "first", "one")
                given = issuer.given

                await daemon.kill()
                await delete(alpha, "first.alpha")
                await put_everywhere(planes, "second", "two")
                await until_copied(planes, "first", "one")
                await until_copied(planes, "second", "two")
                await daemon.start()

                await restart(planes)
                await put_everywhere(planes, "first", "three")
                await delete(beta, "second.beta")
                await until_copied(planes, "first", "three")
                await until_copied(planes, "second", "two")

                # The first credentials have expired by now, or will soon.
                await eventually(lambda: issuer.given >= given + 2, within_s=4 * LIFE_S)
                await put_everywhere(planes, "first", "four")
                for plane in set(planes.values()):
                    await delete(plane, "second")
                await until_copied(planes, "first", "four")
                newest = await versions(planes)
                await eventually(is_reconciled(greeter, newest), within_s=60)
        for plane in set(planes.values()):
            plane.trust()
    assert greeter.overlaps == []


def is_reconciled(greeter: Greeter, newest: dict[tuple[str, str], str]) -> Callable[[], bool]:
    deleted: dict[tuple[str, str], str | None] = {(cluster, "second"): None for cluster in CLUSTERS}
    return lambda: greeter.reconciled == {**newest, **deleted}


WATCHES = 300
"""More watches than a server allows as streams of one connection."""


async def test_informer_watches_share_connections_and_resume_after_connection_resets(
    server: RealApi, directory: Path
) -> None:
    found: dict[str, Any] = yaml.safe_load(server.kubeconfig.read_text())
    cluster = found["clusters"][0]["cluster"]
    proxy = TcpProxy()
    try:
        proxy.open(int(cluster["server"].rpartition(":")[2]))
        cluster["server"] = f"https://127.0.0.1:{proxy.port}"
        path = directory / "proxied.kubeconfig"
        path.write_text(yaml.safe_dump(found))
        controllers = Controllers(SingleCluster(path), registry=CollectorRegistry())
        reconciled: set[tuple[str, str]] = set()

        async def reconcile(request: Request) -> None:
            if (config_map := await request.get()) is not None:
                reconciled.add((request.name, config_map["data"]["content"]))

        for number in range(WATCHES):
            kind = Kind("v1/configmaps", selector=f"watch=w{number}")
            controllers.reconcile(kind, name=f"c{number}", workers=1)(reconcile)

        def everywhere(content: str) -> set[tuple[str, str]]:
            return {(f"watched-{number}", content) for number in range(WATCHES)}

        async with controllers:
            await put_watched(server, "one")
            await eventually(lambda: reconciled == everywhere("one"), within_s=120)
            # Until the first connection is open, a few are opened concurrently.
            assert proxy.accepted <= 6

            before, listed = proxy.accepted, await lists(server)
            await proxy.cut()
            await put_watched(server, "two")
            await eventually(lambda: reconciled == everywhere("one") | everywhere("two"), within_s=120)
            assert proxy.accepted - before <= 6
            assert await lists(server) == listed
    finally:
        await proxy.close()
        async with server.api() as api:
            await api.call("DELETE", f"{CONFIG_MAPS}?labelSelector=watch")


OWNERS = 20


async def test_children_with_generated_names_are_created_once_despite_stale_caches(
    server: RealApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Informer._apply

    async def late(informer: Informer, events: Any) -> None:
        if informer.cache.synced:
            await asyncio.sleep(0.3)
        await apply(informer, events)

    monkeypatch.setattr(Informer, "_apply", late)
    owners = Kind("v1/configmaps", selector="role=owner")
    children = Kind("v1/configmaps", selector="role=child")
    kept = Kind("v1/configmaps", field_selector="metadata.name=owner-0", metadata_only=True)
    reconciles: dict[str, int] = {}

    async def reconcile(request: Request) -> None:
        if (owner := await request.get()) is None:
            return
        reconciles[request.name] = reconciles.get(request.name, 0) + 1
        assert [found["metadata"]["name"] for found in request.list(kept)] in (["owner-0"], [])
        found = list(request.list(children, owned=True))
        if not found:
            metadata = {"generateName": f"{request.name}-", "labels": {"role": "child"}}
            await request.create(children, {"kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}, owned=True)
        elif owner["data"].get("child") != found[0]["metadata"]["name"]:
            # Owned objects are cached whole.
            assert found[0]["data"] == {"a": "b"}
            await request.patch(owners, request.name, {"data": {"child": found[0]["metadata"]["name"]}})

    controllers = Controllers(SingleCluster(server.kubeconfig), registry=CollectorRegistry())
    controllers.cache(kept)
    controllers.reconcile(owners, owns=[children], per_cluster=16)(reconcile)
    try:
        async with controllers, server.api() as api:
            for number in range(OWNERS):
                metadata = {"name": f"owner-{number}", "labels": {"role": "owner"}}
                await api.ensure(CONFIG_MAPS, {"metadata": metadata, "data": {"of": "a test"}})
            await eventually(lambda: len(reconciles) == OWNERS and min(reconciles.values()) > 2, within_s=120)
            found = (await api.call("GET", f"{CONFIG_MAPS}?labelSelector=role=child"))["items"]
        names = sorted(obj["metadata"]["ownerReferences"][0]["name"] for obj in found)
        assert names == sorted(f"owner-{number}" for number in range(OWNERS))
    finally:
        async with server.api() as api:
            await api.call("DELETE", f"{CONFIG_MAPS}?labelSelector=role")


async def test_operator_without_permissions_reports_forbidden_and_works_once_they_are_granted(server: RealApi) -> None:
    controllers = Controllers(SingleCluster(server.kubeconfig_as("newcomer")), registry=CollectorRegistry())
    reconciled: list[str] = []

    @controllers.reconcile("v1/namespaces")
    async def reconcile(request: Request) -> None:
        reconciled.append(request.name)

    binding = BINDING | {
        "metadata": {"name": "newcomer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "newcomer"}],
    }
    async with server.api() as api:
        await api.forget(f"{BINDINGS}/newcomer")
        async with controllers:
            await eventually(lambda: [problem.state for problem in controllers.health().problems] == ["forbidden"])
            health = controllers.health()
            assert (health.ready, health.synced, reconciled) == (True, False, [])
            assert 'User "newcomer" cannot' in health.problems[0].problem
            await api.call("POST", BINDINGS, binding)
            await eventually(lambda: controllers.health().synced and "default" in reconciled, within_s=120)
        await api.forget(f"{BINDINGS}/newcomer")


async def put_watched(server: RealApi, content: str) -> None:
    """Write an object for each watch."""
    async with server.api() as api:
        for number in range(WATCHES):
            metadata = {"name": f"watched-{number}", "labels": {"watch": f"w{number}"}}
            body = {"metadata": metadata, "data": {"content": content}}
            await api.ensure(CONFIG_MAPS, body)
            await api.call("PUT", f"{CONFIG_MAPS}/{metadata['name']}", body)


async def lists(server: RealApi) -> float:
    """Return how many lists of ConfigMaps the server has answered."""
    async with server.api() as api, api.stream("/metrics") as metrics:
        content = (await metrics.read()).decode()
    counted = [line for line in content.splitlines() if line.startswith("apiserver_request_total{")]
    return sum(
        float(line.rpartition(" ")[2]) for line in counted if 'resource="configmaps"' in line and 'verb="LIST"' in line
    )
