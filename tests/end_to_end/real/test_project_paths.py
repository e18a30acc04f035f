"""A project's control plane under its path in Milo's own API server, with an issued kubeconfig and real kubectl."""

import asyncio
import os
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.end_to_end.kubeconfigs.workspace import COMMANDS
from tests.end_to_end.real.handing_out import certificates, handing_out, kubeconfig_of
from tests.end_to_end.real.kubectl import kubectl
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode
from tests.support.eventually import LIMIT_S
from tests.support.forked_command import forked

pytestmark = pytest.mark.asyncio(loop_scope="session")

CORE: list[Mode] = ["project"]


@pytest.fixture
def _of_milo(built: Programs) -> None:
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")


@pytest.mark.usefixtures("_of_milo")
@pytest.mark.parametrize("mode", CORE)
async def test_projects_at_paths_of_one_server_have_separate_objects(server: RealApi, directory: Path) -> None:
    await create_ready(server, "alpha", "beta")
    async with handing_out(server, directory, certificates(server)) as client:
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


@pytest.mark.usefixtures("_of_milo")
@pytest.mark.parametrize("mode", CORE)
async def test_get_prints_and_follows_the_objects_of_all_projects(server: RealApi, directory: Path) -> None:
    await create_ready(server, "alpha", "beta")
    async with handing_out(server, directory, certificates(server)) as client:
        alpha, beta = [await kubeconfig_of(client, name, directory) for name in ("alpha", "beta")]
        for kubeconfig in (alpha, beta):
            await kubectl(kubeconfig, "create", "namespace", "fleet")
        environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": f"unix://{directory}/d.sock"}
        for use, words in {
            "ns": "alpha     fleet",
            "Namespace fleet -o yaml": "discovery.miloapis.com/cluster: beta",
            "ns,secrets -A": "namespace/fleet",
            "ns -o name": "alpha namespace/fleet",
        }.items():
            status, out, err = await forked("milo-discovery", ["get", *use.split()], environment)
            assert (status, words in out, err) == (0, True, ""), out + err
        status, out, err = await forked("milo-discovery", ["get", "podz"], environment)
        assert (status, out) == (3, "")
        assert "no cluster serves a resource 'podz'" in err

        process = await asyncio.create_subprocess_exec(
            *(COMMANDS / "milo-discovery", "get", "cm", "-A", "-w", "--no-headers"), env=environment, stdout=PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(LIMIT_S):
                await kubectl(beta, "-n", "fleet", "create", "configmap", "note", "--from-literal=of=beta")
                await line_of(process.stdout, "ADDED", "beta", "fleet", "note")
                await kubectl(beta, "-n", "fleet", "label", "configmap", "note", "a=b")
                await line_of(process.stdout, "MODIFIED", "beta", "fleet", "note")
                await kubectl(beta, "-n", "fleet", "delete", "configmap", "note")
                await line_of(process.stdout, "DELETED", "beta", "fleet", "note")
        finally:
            process.kill()
            await process.wait()


async def line_of(stream: asyncio.StreamReader, *words: str) -> None:
    """Read lines up to one that begins with these words."""
    while (line := await stream.readline()).decode().split()[: len(words)] != [*words]:
        assert line
