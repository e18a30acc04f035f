"""Controllers on a real kube-apiserver, with the daemon killed, the API server killed, and credentials of 20 seconds.

Drift is repaired, no reconcile is lost, and none runs twice at the same time. The clusters are addresses of one server.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.controllers import Controllers, QueuePolicy, Request
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.bearers import await_bearer
from tests.end_to_end.real.certificates import INSIDE
from tests.end_to_end.real.issuer import AUDIENCE, Issuer
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.support.eventually import eventually

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
                metadata = {"name": name, "ownerReferences": [request.owner_reference(controller=False)]}
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
        if isinstance(host, str) and host.endswith(INSIDE) and not options.get("flags"):
            host = "127.0.0.1"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def configured(server: RealApi, folder: Path, issuer: Issuer) -> Path:
    key = folder / "key.json"
    key.write_text(json.dumps(issuer.register("operator")))
    port = server.url.rpartition(":")[2]
    source = {
        "name": "accounts", "type": "datum-service-account", "key_file": str(key), "ca_file": str(issuer.ca_file),
        "audiences": [AUDIENCE],
    }  # fmt: skip
    settings = {
        "mode": server.mode,
        "discovery_kubeconfig": str(server.kubeconfig),
        "internal_address_template": f"project-{{uid}}.{INSIDE}:{port}",
        "connectivity": {"interval": "off"},
        "listen": [f"unix://{folder}/d.sock"],
        "http_listen": "off",
        "kubeconfigs": {"sources": [source]},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(settings))
    return file


async def put(api: Api, name: str, content: str) -> None:
    body = {"metadata": {"name": name, "labels": {"greet": "yes"}}, "data": {"content": content}}
    if await api.status(f"{CONFIG_MAPS}/{name}") == 404:
        await api.call("POST", CONFIG_MAPS, body)
    else:
        await api.call("PUT", f"{CONFIG_MAPS}/{name}", body)


async def copies(api: Api, name: str) -> dict[str, str | None]:
    """Return the content of each cluster's copy."""
    found = {item["metadata"]["name"]: item for item in (await api.call("GET", CONFIG_MAPS))["items"]}
    return {cluster: found.get(f"{name}.{cluster}", {}).get("data", {}).get("content") for cluster in CLUSTERS}


async def until_copied(server: RealApi, name: str, content: str) -> None:
    async with server.api() as api, asyncio.timeout(120):
        while await copies(api, name) != dict.fromkeys(CLUSTERS, content):  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.1)


async def versions(api: Api) -> dict[tuple[str, str], str]:
    items = (await api.call("GET", f"{CONFIG_MAPS}?labelSelector=greet%3Dyes"))["items"]
    return {
        (cluster, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
        for item in items
        for cluster in CLUSTERS
    }


@pytest.mark.parametrize("mode", ["project-control-plane"])
@pytest.mark.usefixtures("names_inside")
async def test_drift_is_repaired_whatever_is_killed(server: RealApi, folder: Path) -> None:
    greeter = Greeter()
    async with Issuer(folder, life_s=LIFE_S) as issuer:
        server.trust(issuer.trusted())
        await await_bearer(server, issuer.token("operator"), "account:operator")
        async with server.api() as api:
            await api.forget(f"{BINDINGS}/controllers")
            await api.call("POST", BINDINGS, BINDING)
            await put(api, "first", "one")
        await create_ready(server, *CLUSTERS)
        file = configured(server, folder, issuer)
        address = f"unix://{folder}/d.sock"
        async with DaemonProcess(address, "--config", str(file)) as daemon, DiscoveryClient(address) as client:
            await daemon.start()
            controllers = Controllers(Fleet(client, include_kubeconfigs=True), registry=CollectorRegistry())
            queue = QueuePolicy(max_delay_s=2.0)
            controllers.reconcile("v1/configmaps", owns=["v1/configmaps"], selector="greet=yes", queue=queue)(
                greeter.reconcile
            )
            async with controllers:
                await until_copied(server, "first", "one")
                given = issuer.given

                await daemon.kill()
                async with server.api() as api:
                    await api.call("DELETE", f"{CONFIG_MAPS}/first.alpha")
                    await put(api, "second", "two")
                await until_copied(server, "first", "one")
                await until_copied(server, "second", "two")
                await daemon.start()

                await server.stop()
                await server.start()
                async with server.api() as api:
                    await put(api, "first", "three")
                    await api.call("DELETE", f"{CONFIG_MAPS}/second.beta")
                await until_copied(server, "first", "three")
                await until_copied(server, "second", "two")

                # The first credentials have expired by now, or soon will.
                await eventually(lambda: issuer.given >= given + 2, within_s=4 * LIFE_S)
                async with server.api() as api:
                    await put(api, "first", "four")
                    await api.call("DELETE", f"{CONFIG_MAPS}/second")
                await until_copied(server, "first", "four")
                async with server.api() as api:
                    newest = await versions(api)
                await eventually(is_reconciled(greeter, newest), within_s=60)
        server.trust()
    assert greeter.overlaps == []


def is_reconciled(greeter: Greeter, newest: dict[tuple[str, str], str]) -> Callable[[], bool]:
    deleted: dict[tuple[str, str], str | None] = {(cluster, "second"): None for cluster in CLUSTERS}
    return lambda: greeter.reconciled == {**newest, **deleted}
