"""The shipped source definition of Gardener, with its API server."""

from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient
from tests.end_to_end.real import gardener
from tests.end_to_end.real.certificates import ClientAuthority
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.handing_out import kubeconfig_of
from tests.end_to_end.real.kubectl import kubectl, user_of
from tests.end_to_end.real.platforms import CLUSTER
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi
from tests.end_to_end.real.test_definitions import following, until

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

NAME = f"{NAMESPACE}.{CLUSTER}"


async def test_shoot_is_engaged_with_a_kubeconfig_that_gardeners_api_server_issues(
    built: Programs, directory: Path
) -> None:
    platform, workload = (InfrastructureApi(built, directory / name) for name in ("platform", "workload"))
    clients = ClientAuthority("clients")
    workload.trust_clients(clients.pem)
    try:
        await platform.start()
        await workload.start()
        async with (
            platform.api() as api,
            workload.api() as inside,
            gardener.api_server(platform, directory) as (own, garden),
        ):
            await api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            await gardener.bind_admins(inside)
            path = await gardener.create_shoot(garden, api, workload, clients)
            async with following(None, "gardener", directory, discovery_kubeconfig=str(own)) as watch:
                await until(watch, lambda seen: NAME in seen.clusters)
                assert watch.clusters[NAME].endpoint == workload.url
                async with DiscoveryClient(f"unix://{directory}/d.sock") as client:
                    kubeconfig = await kubeconfig_of(client, NAME, directory)
                assert await user_of(kubeconfig) == "gardener.cloud:admin:admin"
                assert "namespace/default" in await kubectl(kubeconfig, "get", "namespaces", "-o", "name")
                await garden.call("DELETE", path)
                await until(watch, lambda seen: not seen.clusters)
    finally:
        await workload.close()
        await platform.close()
