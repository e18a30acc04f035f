"""The shipped source definitions, with the platforms' own CRDs on a real kube-apiserver.

A second real API server is the cluster: its kubeconfig is issued by the daemon and used by kubectl.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from milo_discovery import DiscoveryClient, Watch
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import adapted, is_reachable, until
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.builds import GoProgram, source_directory
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.handing_out import kubeconfig_of
from tests.end_to_end.real.kubectl import user_of
from tests.end_to_end.real.platforms import cluster_api
from tests.end_to_end.real.programs import OWN_DEFINITIONS
from tests.end_to_end.real.servers import RealApi

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

INVENTORY_API = ("sigs.k8s.io/cluster-inventory-api", "v0.1.2", "multicluster.x-k8s.io_clusterprofiles.yaml")
PROJECTS = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/{}/control-plane"
_WITHIN_S = 90.0

Document = dict[str, Any]


async def define(api: Api, module: tuple[str, str, str]) -> None:
    """Install a CustomResourceDefinition from a published Go module."""
    name, version, file = module
    program = GoProgram(name=name, version=version, module=name, package=".", definition=Path(__file__))
    await api.define(yaml.safe_load((source_directory(program) / "config/crd/bases" / file).read_text()))


@asynccontextmanager
async def following(platform: RealApi | None, definition: str, directory: Path, **changes: Any) -> AsyncIterator[Watch]:
    """Watch a daemon with a shipped definition, adapted where it says `yours`."""
    config = adapted(definition, **changes)
    if "sources" in changes:
        del config["mode"]
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "http_listen": "off", "connectivity": {"interval": "1s"}}))
    address = f"unix://{directory}/d.sock"
    watched = () if platform is None else ("--discovery-kubeconfig", str(platform.kubeconfig))
    arguments = ("--config", str(file), *watched, "--listen", address)
    async with DaemonProcess(address, *arguments) as daemon:
        await daemon.start()
        async with DiscoveryClient(address) as client, client.watch() as watch:
            yield watch


async def expect_usable(watch: Watch, directory: Path, name: str, user: str) -> None:
    """Check that the cluster is engaged and reachable, and that kubectl works with its kubeconfig."""
    await until(watch, lambda seen: is_reachable(seen, name))
    async with DiscoveryClient(f"unix://{directory}/d.sock") as client:
        assert await user_of(await kubeconfig_of(client, name, directory)) == user


def initialized(is_so: bool) -> Document:
    return {"status": {"initialization": {"controlPlaneInitialized": is_so}}}


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def test_cluster_api_source_engages_clusters_with_their_kubeconfig_secrets(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    clusters = f"/apis/cluster.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/clusters"
    host, port = workload.url.removeprefix("https://").split(":")
    cluster = {
        "apiVersion": "cluster.x-k8s.io/v1beta2",
        "kind": "Cluster",
        "metadata": {"name": "alpha", "labels": {"env": "prod"}},
        "spec": {"controlPlaneEndpoint": {"host": host, "port": int(port)}},
    }
    secret = {"metadata": {"name": "alpha-kubeconfig"}, "data": {"value": encoded(workload.kubeconfig_as("capi"))}}
    async with platform.api() as api:
        await api.define(cluster_api())
        await api.ensure(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)
        async with following(platform, "cluster-api", directory) as watch:
            await watch.synced()
            await api.ensure(clusters, cluster)
            await api.call("PATCH", f"{clusters}/alpha/status", initialized(True))
            await expect_usable(watch, directory, f"{NAMESPACE}.alpha", "capi")
            assert watch.clusters[f"{NAMESPACE}.alpha"].labels == {"env": "prod"}
            await api.call("PATCH", f"{clusters}/alpha/status", initialized(False))
            await until(watch, lambda seen: not seen.clusters)
            await api.call("DELETE", f"{clusters}/alpha")


async def test_cluster_api_source_reads_endpoints_from_kubeconfig_secrets(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    """Clusters and their Secrets are created in either order. Servers change, Secrets are lost, and the daemon is
    restarted."""
    clusters = f"/apis/cluster.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/clusters"
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    changes: dict[str, Any] = {
        "settings__endpoint": {"secret_key": "value"},
        "settings__secret": {
            "name": "{metadata.name}-kubeconfig",
            "label_selector": "cluster.x-k8s.io/cluster-name",
            "field_selector": "type=cluster.x-k8s.io/secret",
        },
        "state_directory": str(directory / "state"),
        "not_ready_grace": "0s",
    }
    north, south = f"{NAMESPACE}.north", f"{NAMESPACE}.south"

    async with platform.api() as api:
        await api.define(cluster_api())

        async def put(name: str) -> None:
            """Create a Cluster without an endpoint of its own."""
            kind = {"apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster"}
            await api.ensure(clusters, {**kind, "metadata": {"name": name}, "spec": {"paused": False}})
            await api.call("PATCH", f"{clusters}/{name}/status", initialized(True))

        async def put_secret(name: str, server: RealApi, user: str) -> None:
            """Create the Secrets of a Cluster, as Cluster API does: one with the kubeconfig, and another one."""
            labels = {"cluster.x-k8s.io/cluster-name": name}
            for purpose, data in (
                ("ca", {"tls.crt": "eA==", "tls.key": "eA=="}),
                ("kubeconfig", {"value": encoded(server.kubeconfig_as(user))}),
            ):
                metadata = {"name": f"{name}-{purpose}", "labels": labels}
                await api.ensure(secrets, {"metadata": metadata, "type": "cluster.x-k8s.io/secret", "data": data})

        async with following(platform, "cluster-api", directory, **changes) as watch:
            await watch.synced()
            await put("north")
            await put_secret("south", workload, "of-south")
            await put("south")
            await expect_usable(watch, directory, south, "of-south")
            assert set(watch.clusters) == {south}
            async with DiscoveryClient(f"unix://{directory}/d.sock") as client:
                waiting = (await client.get(north)).engagement.message
                assert f"no kubeconfig under the key 'value' of Secret {NAMESPACE}/north-kubeconfig" in waiting
            # Of two objects with one address, only the earlier is engaged.
            await put_secret("north", platform, "of-north")
            await expect_usable(watch, directory, north, "of-north")
            before = watch.clusters[north]
            assert before.endpoint == platform.url
            await api.call("DELETE", f"{secrets}/south-kubeconfig")
            await until(watch, lambda seen: set(seen.clusters) == {north})
            await api.call("DELETE", f"{clusters}/south")  # until then, the address belongs to south
            moved = {"data": {"value": encoded(workload.kubeconfig_as("moved"))}}
            await api.call("PATCH", f"{secrets}/north-kubeconfig", moved)
            await until(watch, lambda seen: seen.clusters[north].endpoint == workload.url)
            assert watch.clusters[north].incarnation == before.incarnation
            await expect_usable(watch, directory, north, "moved")
        await api.call(
            "PATCH", f"{secrets}/north-kubeconfig", {"data": {"value": encoded(platform.kubeconfig_as("back"))}}
        )
        async with following(platform, "cluster-api", directory, **changes) as watch:
            await until(watch, lambda seen: north in seen.clusters and seen.clusters[north].endpoint == platform.url)
            await expect_usable(watch, directory, north, "back")
            await put("south")
            await put_secret("south", workload, "of-south")
            await expect_usable(watch, directory, south, "of-south")
            for name in ("north", "south"):
                await api.call("DELETE", f"{clusters}/{name}")
            await until(watch, lambda seen: not seen.clusters)


async def test_kubeconfig_secrets_source_engages_a_cluster_per_labeled_secret(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    secret = {
        "metadata": {"name": "beta", "labels": {"sigs.k8s.io/multicluster-runtime-kubeconfig": "true"}},
        "data": {"kubeconfig": encoded(workload.kubeconfig_as("by-secret"))},
    }
    async with platform.api() as api, following(platform, "kubeconfig-secrets", directory) as watch:
        await watch.synced()
        await api.ensure(secrets, {**secret, "metadata": {"name": "no-cluster"}})
        await api.ensure(secrets, secret)
        await expect_usable(watch, directory, "beta", "by-secret")
        assert list(watch.clusters) == ["beta"]
        await api.call("DELETE", f"{secrets}/beta")
        await until(watch, lambda seen: not seen.clusters)


async def test_cluster_profile_source_engages_healthy_profiles_with_exec_credentials(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    profiles = f"/apis/multicluster.x-k8s.io/v1alpha1/namespaces/{NAMESPACE}/clusterprofiles"
    profile = {
        "apiVersion": "multicluster.x-k8s.io/v1alpha1",
        "kind": "ClusterProfile",
        "metadata": {"name": "gamma"},
        "spec": {"clusterManager": {"name": "fleet"}},
    }
    condition = {
        "type": "ControlPlaneHealthy",
        "status": "True",
        "reason": "Tested",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    access = {"server": workload.url, "certificate-authority-data": base64.b64encode(workload.authority.pem).decode()}
    status = {"conditions": [condition], "accessProviders": [{"name": "fleet", "cluster": access}]}
    plugin = directory / "plugin"
    user = yaml.safe_load(workload.kubeconfig.read_text())["users"][0]["user"]
    ends = datetime.now(UTC) + timedelta(minutes=30)
    answer = {"token": user["token"], "expirationTimestamp": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": answer}
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(credential)}\nEND\n")
    plugin.chmod(0o755)
    changes = {
        "settings__endpoint__hosts": ["127.0.0.1"],
        "kubeconfigs__issuers__0__command": str(plugin),
    }
    async with platform.api() as api:
        await define(api, INVENTORY_API)
        async with following(platform, "cluster-profile", directory, **changes) as watch:
            await watch.synced()
            await api.ensure(profiles, profile)
            await api.call("PATCH", f"{profiles}/gamma/status", {"status": status})
            await expect_usable(watch, directory, f"{NAMESPACE}.gamma", "admin")
            assert watch.clusters[f"{NAMESPACE}.gamma"].endpoint == workload.url
            condition["status"] = "False"
            await api.call("PATCH", f"{profiles}/gamma/status", {"status": {"conditions": [condition]}})
            await until(watch, lambda seen: not seen.clusters)
            await api.call("DELETE", f"{profiles}/gamma")


async def test_declarative_source_uses_the_kubeconfig_secrets_that_objects_reference(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    members = "/apis/fleet.example.com/v1/members"
    first = {"name": "first", "namespace": NAMESPACE}
    settings = {
        "mode": "declarative",
        "settings": {
            "resource": {"group": "fleet.example.com", "version": "v1", "plural": "members"},
            "endpoint": {"field": "spec.url"},
            "secret": {"name": "{spec.secretRef.name}", "namespace": "{spec.secretRef.namespace}"},
        },
        "kubeconfigs": {
            "issuers": [
                {
                    "name": "members",
                    "type": "kubeconfig-secret",
                    "secret": "{secret}",
                    "namespace_template": "{secret_namespace}",
                    "allow_long_lived": True,
                }
            ]
        },
        "connectivity": {"interval": "1s"},
        "http_listen": "off",
    }
    file, address = directory / "config.yaml", f"unix://{directory}/d.sock"
    file.write_text(yaml.safe_dump(settings))
    arguments = ("--config", str(file), "--discovery-kubeconfig", str(platform.kubeconfig), "--listen", address)
    async with platform.api() as api:
        await api.define(yaml.safe_load((Path(__file__).parent / "crds/members.yaml").read_text()))
        for name, life in ("first", timedelta(seconds=40)), ("second", timedelta(days=1)):
            data = {"kubeconfig": encoded(workload.kubeconfig_as(f"by-{name}", lifetime=life))}
            await api.ensure(f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": name}, "data": data})
        spec = {"url": workload.url, "secretRef": first}
        member = {"apiVersion": "fleet.example.com/v1", "kind": "Member", "metadata": {"name": "alpha"}, "spec": spec}
        await api.ensure(members, member)
        async with DaemonProcess(address, *arguments) as daemon:
            await daemon.start()
            async with DiscoveryClient(address) as client, client.watch() as watch:
                await expect_usable(watch, directory, "alpha", "by-first")
                await api.call("PATCH", f"{members}/alpha", {"spec": {"secretRef": {"name": "second"}}})
                users = {"by-first"}
                async with asyncio.timeout(_WITHIN_S):
                    while "by-second" not in users:
                        users.add(await user_of(await kubeconfig_of(client, "alpha", directory)))
                assert users == {"by-first", "by-second"}
                assert watch.clusters["alpha"].endpoint == workload.url
        await api.call("DELETE", f"{members}/alpha")


async def test_kubeconfig_directory_source_follows_added_renewed_and_deleted_files(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    clusters = directory / "clusters"
    clusters.mkdir()
    (clusters / "one.kubeconfig").write_bytes(platform.kubeconfig_as("of-one").read_bytes())
    async with following(None, "kubeconfig-directory", directory, sources__0__settings__path=str(clusters)) as watch:
        await watch.synced()
        await expect_usable(watch, directory, "files#one", "of-one")
        (clusters / "two").write_bytes(workload.kubeconfig_as("of-two").read_bytes())
        await expect_usable(watch, directory, "files#two", "of-two")
        assert watch.clusters["files#two"].endpoint == workload.url
        (clusters / "two").write_bytes(workload.kubeconfig_as("renewed").read_bytes())
        async with asyncio.timeout(_WITHIN_S), DiscoveryClient(f"unix://{directory}/d.sock") as client:
            while await user_of(await kubeconfig_of(client, "files#two", directory)) != "renewed":
                pass
        (clusters / "one.kubeconfig").unlink()
        await until(watch, lambda seen: set(seen.clusters) == {"files#two"})


async def test_kind_source_follows_added_and_deleted_clusters(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    merged: Document = {"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": [], "users": []}
    file = directory / "kind.kubeconfig"

    def add(name: str, server: RealApi) -> None:
        config = yaml.safe_load(server.kubeconfig_as(f"admin-of-{name}").read_text())
        context = f"kind-{name}"
        merged["clusters"].append({**config["clusters"][0], "name": context})
        merged["users"].append({**config["users"][0], "name": context})
        merged["contexts"].append({"name": context, "context": {"cluster": context, "user": context}})
        file.write_text(yaml.safe_dump({**merged, "current-context": context}))

    add("one", platform)
    source = [{"name": "kind", "kind": "kind", "settings": {"path": str(file)}}]
    async with following(None, "kind", directory, sources=source) as watch:
        await watch.synced()
        await expect_usable(watch, directory, "kind#one", "admin-of-one")
        add("two", workload)
        await expect_usable(watch, directory, "kind#two", "admin-of-two")
        merged["contexts"].pop(0)
        file.write_text(yaml.safe_dump(merged))
        await until(watch, lambda seen: set(seen.clusters) == {"kind#two"})


@asynccontextmanager
async def context_of_a_project(platform: RealApi, directory: Path) -> AsyncIterator[Path]:
    """Yield a kubeconfig whose server URL has a project's path prefix, as on Milo.

    A proxy removes the prefix, which a plain kube-apiserver does not serve.
    """
    prefix = PROJECTS.format("dns")
    config = yaml.safe_load(platform.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    address = urlsplit(cluster["server"])
    trusted = ssl.create_default_context(cadata=platform.authority.pem.decode())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*platform.authority.server("context"))

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(address.hostname, address.port, ssl=trusted)

        async def send_requests() -> None:
            while line := await reader.readline():  # the source's requests have no bodies
                requests.write(line.replace(prefix.encode(), b"", 1) if line.startswith(b"GET ") else line)
            requests.close()

        async def send_answers() -> None:
            while data := await answers.read(1 << 16):
                writer.write(data)
            writer.close()

        await asyncio.gather(send_requests(), send_answers(), return_exceptions=True)

    async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=serving) as server:
        cluster["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}{prefix}"
        kubeconfig = directory / "context"
        kubeconfig.write_text(yaml.safe_dump(config))
        kubeconfig.chmod(0o600)
        yield kubeconfig


async def test_service_consumer_source_engages_suspends_and_drains_projects(
    platform: RealApi, workload: RealApi, directory: Path
) -> None:
    consumers = "/apis/services.miloapis.com/v1alpha1/serviceconsumers"
    source = {
        "name": "dns",
        "kind": "service-consumer",
        "discovery_kubeconfig": str(directory / "context"),
        "project_kubeconfig": str(workload.kubeconfig),
        "settings": {"services": ["dns.example.com"], "drain": "5m"},
    }
    file, address = directory / "config.yaml", f"unix://{directory}/d.sock"
    settings = {"sources": [source], "http_listen": "off", "connectivity": {"interval": "off"}, "listen": [address]}
    file.write_text(yaml.safe_dump(settings))

    async def is_now(api: Api, name: str, **status: Any) -> None:
        await api.call("PATCH", f"{consumers}/{name}/status", {"status": {"serviceName": "dns.example.com", **status}})

    async with platform.api() as api, context_of_a_project(platform, directory):
        await api.define(yaml.safe_load((OWN_DEFINITIONS / "serviceconsumers.yaml").read_text()))
        for name in ("first", "second"):
            spec = {"serviceRef": {"name": "svc-1"}, "consumerProjectRef": {"name": "shop"}}
            kind = {"apiVersion": "services.miloapis.com/v1alpha1", "kind": "ServiceConsumer"}
            await api.ensure(consumers, {**kind, "metadata": {"name": name}, "spec": spec})
        async with DaemonProcess(address, "--config", str(file)) as daemon:
            await daemon.start()
            async with DiscoveryClient(address) as client, client.watch(confirm_releases=True) as watch:
                await watch.synced()
                assert not watch.clusters
                for name in ("first", "second"):
                    await is_now(api, name, phase="Active")
                await until(watch, lambda seen: "dns#shop" in seen.clusters)
                assert watch.clusters["dns#shop"].endpoint == workload.url + PROJECTS.format("shop")
                condition = {
                    "type": "Suspended",
                    "status": "True",
                    "reason": "Billing",
                    "message": "",
                    "lastTransitionTime": "2026-11-20T08:00:00Z",
                }
                await is_now(api, "first", phase="Active", conditions=[condition])
                await api.call("DELETE", f"{consumers}/second")
                await until(watch, lambda seen: seen.clusters["dns#shop"].suspended)
                assert [suspension.reason for suspension in watch.clusters["dns#shop"].suspensions] == ["Billing"]
                await is_now(api, "first", phase="Denied")
                await until(watch, lambda seen: seen.clusters["dns#shop"].draining is not None)
                await watch.release(watch.clusters["dns#shop"])
                await until(watch, lambda seen: not seen.clusters)
                assert (await client.get("dns#shop")).engagement.reason.name == "REMOVED"
