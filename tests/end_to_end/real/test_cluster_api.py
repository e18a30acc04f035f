"""The shipped source definition of Cluster API, with its controllers."""

import base64
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from milo_discovery import DiscoveryClient
from tests.end_to_end.real import cluster_api
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.handing_out import kubeconfig_of
from tests.end_to_end.real.kubectl import kubectl
from tests.end_to_end.real.platforms import CLUSTER
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi
from tests.end_to_end.real.test_definitions import following, until

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

NAME = f"{NAMESPACE}.{CLUSTER}"


async def test_cluster_that_cluster_api_creates_is_engaged_with_the_kubeconfig_that_it_writes(
    built: Programs, directory: Path
) -> None:
    platform = InfrastructureApi(built, directory / "platform")
    try:
        await platform.start()
        async with platform.api() as api, cluster_api.controllers(platform, directory):
            await api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            async with following(platform, "cluster-api", directory) as watch:
                for collection, document in cluster_api.objects():
                    await api.ensure(collection, document)
                    path = f"{collection}/{CLUSTER}"
                await until(watch, lambda seen: NAME in seen.clusters)
                endpoint = (await api.call("GET", path))["spec"]["controlPlaneEndpoint"]
                assert watch.clusters[NAME].endpoint == f"https://{endpoint['host']}:{endpoint['port']}"
                async with DiscoveryClient(f"unix://{directory}/d.sock") as client:
                    kubeconfig = await kubeconfig_of(client, NAME, directory)
                assert user_in(kubeconfig) == "kubernetes-admin"
                assert CLUSTER in await kubectl(kubeconfig, "get", "nodes", "-o", "name")
                await api.call("DELETE", path)
                await until(watch, lambda seen: not seen.clusters)
    finally:
        await platform.close()


def user_in(kubeconfig: Path) -> str:
    """Return the user of the client certificate in a kubeconfig."""
    [user] = yaml.safe_load(kubeconfig.read_text())["users"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(user["user"]["client-certificate-data"]))
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)
