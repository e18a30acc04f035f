"""A project's control plane under its path in Milo's own API server, with an issued kubeconfig and real kubectl."""

from pathlib import Path

import pytest

from tests.end_to_end.real.handing_out import handing_out, kubeconfig_of
from tests.end_to_end.real.kubectl import kubectl
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")

CORE: list[Mode] = ["project"]


@pytest.fixture
def _of_milo(built: Programs) -> None:
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")


@pytest.mark.usefixtures("_of_milo")
@pytest.mark.parametrize("mode", CORE)
async def test_projects_at_paths_of_one_server_have_separate_objects(server: RealApi, directory: Path) -> None:
    source = {
        "type": "client-certificate",
        "ca_certificate": str(server.authority.file),
        "ca_key": str(server.authority.key_file()),
        "common_name": "operator",
        "organizations": ["system:masters"],
    }
    await create_ready(server, "alpha", "beta")
    async with handing_out(server, directory, source) as client:
        alpha, beta = [await kubeconfig_of(client, name, directory) for name in ("alpha", "beta")]
    for kubeconfig in (alpha, beta):
        await kubectl(kubeconfig, "create", "namespace", "tenant")
        assert "namespace/tenant" in await kubectl(kubeconfig, "get", "namespaces", "-o", "name")

    await kubectl(alpha, "--namespace=tenant", "create", "configmap", "note", "--from-literal=of=alpha")

    listed = [
        await kubectl(kubeconfig, "--namespace=tenant", "get", "configmaps", "-o", "name")
        for kubeconfig in (alpha, beta)
    ]
    assert ["configmap/note" in names for names in listed] == [True, False]
