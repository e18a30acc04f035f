"""The shipped source definitions of ten platforms, with the platforms' own CRDs on a real kube-apiserver.

A second real API server is the cluster: its credential is issued by the daemon and used by kubectl. After the run, a
table of the platforms is printed.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient
from tests.end_to_end.real.api import Api
from tests.end_to_end.real.builds import UnobtainableError
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.handing_out import kubeconfig_of
from tests.end_to_end.real.kubectl import kubectl, user_of
from tests.end_to_end.real.platforms import CLUSTER, PLATFORMS, Platform, Workload, encoded
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.test_definitions import following, until

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


async def put(api: Api, platform: Platform, workload: Workload) -> str:
    """Create the objects of one ready cluster, and return the path of the object that represents it."""
    secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    if platform.secret is not None:
        data = {key: encoded(value) for key, value in platform.secret(workload).items()}
        metadata = {"name": f"{CLUSTER}-access", **platform.metadata}
        await api.ensure(secrets, {"metadata": metadata, "type": platform.secret_type, "data": data})
    if platform.definition is None:
        return f"{secrets}/{CLUSTER}-access"
    definition = platform.definition()
    await api.define(definition)
    of, version = definition["spec"], definition["spec"]["versions"][0]["name"]
    scope = f"namespaces/{NAMESPACE}/" if of["scope"] == "Namespaced" else ""
    path = f"/apis/{of['group']}/{version}/{scope}{of['names']['plural']}"
    kind = {"apiVersion": f"{of['group']}/{version}", "kind": of["names"]["kind"], "metadata": {"name": CLUSTER}}
    await api.ensure(path, {**kind, "spec": platform.spec(workload)})
    await api.call("PATCH", f"{path}/{CLUSTER}/status", {"status": platform.status(workload)})
    return f"{path}/{CLUSTER}"


@pytest.mark.parametrize("tried", PLATFORMS, ids=lambda platform: platform.name)
async def test_source_definition_for_a_platform_engages_its_cluster_with_a_usable_credential(
    platform: RealApi,
    workload: RealApi,
    directory: Path,
    tried: Platform,
    record_property: Callable[[str, object], None],
) -> None:
    cluster = Workload(workload, directory / "plugin")
    cluster.write_plugin()
    row = dict.fromkeys(("engaged", "credential", "kubectl get"), "no")
    record_property("platform", (tried.name, row))
    async with platform.api() as api:
        try:
            path = await put(api, tried, cluster)
        except UnobtainableError as error:
            pytest.skip(str(error))
        try:
            async with following(platform, tried.name, directory, **tried.changes(cluster)) as watch:
                await until(watch, lambda seen: tried.cluster in seen.clusters)
                row["engaged"] = "yes"
                assert watch.clusters[tried.cluster].endpoint == workload.url
                async with DiscoveryClient(f"unix://{directory}/d.sock") as client:
                    kubeconfig = await kubeconfig_of(client, tried.cluster, directory)
                row["credential"] = await user_of(kubeconfig)
                assert row["credential"] == tried.user
                assert "namespace/default" in await kubectl(kubeconfig, "get", "namespaces", "-o", "name")
                row["kubectl get"] = "yes"
                await api.call("DELETE", path)
                await until(watch, lambda seen: not seen.clusters)
        finally:
            await api.forget(path)
            await api.forget(f"/api/v1/namespaces/{NAMESPACE}/secrets/{CLUSTER}-access")
