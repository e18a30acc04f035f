"""Published ClusterProfiles as multicluster-runtime consumes them: by our exec plugin, into a project's control plane.

The operator (inventory/main.go) is built twice: with multicluster-runtime's own provider for the Cluster Inventory API,
and with a small provider. Both call the library of KEP-4322 (sigs.k8s.io/cluster-inventory-api).
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.end_to_end.kubeconfigs.workspace import COMMANDS, Workspace, open_workspace
from tests.end_to_end.real.builds import GoProgram, UnobtainableError, obtain, say_to_stderr
from tests.end_to_end.real.publishing import Publication, Publishing, assembled, publication_namespace
from tests.end_to_end.scenarios.servers import RealServers

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(1800),
]  # it compiles Kubernetes libraries

PROVIDERS = {"library": "v0.23.3", "upstream": "v0.24.1"}
"""The providers, each with its version of multicluster-runtime."""
ANSWERED_WITHIN_S = 90.0


@pytest.fixture(params=PROVIDERS)
def operator(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    provider: str = request.param
    program = GoProgram(
        name=f"inventory-{provider}",
        version=PROVIDERS[provider],
        module="sigs.k8s.io/multicluster-runtime",
        package=".",
        definition=assembled(tmp_path, provider),
    )
    given = os.environ.get(f"INVENTORY_{provider.upper()}")  # an existing binary
    if given:
        return Path(given)
    try:
        return obtain(program, say_to_stderr)
    except UnobtainableError as error:
        pytest.skip(f"the operator with the provider {provider!r} could not be built here: {error}")


async def test_operator_reconciles_in_the_control_planes_of_published_profiles(
    operator: Path, servers: RealServers, directory: Path
) -> None:
    (directory / "inventory").mkdir()
    async with (
        servers.acquire("project-control-plane", directory / "inventory") as inventory,
        publication_namespace(inventory, "cluster-profiles") as profiles,
        open_workspace(directory, token_life=20.0, connectivity={"interval": "1s", "per": "cluster"}) as workspace,
        Publishing.running(workspace, profiles),
        operating(operator, workspace, profiles),
    ):
        alpha = await workspace.kubeconfig()
        await ask_and_await_answer(workspace, alpha, f"{profiles.namespace}/alpha")
        workspace.sandbox.projects.create("beta", ready=True)
        await profiles.until_named("alpha", "beta")
        beta = await workspace.kubeconfig(name="beta")
        await ask_and_await_answer(workspace, beta, f"{profiles.namespace}/beta")
        token = json.loads((await workspace.discovery("credential", "alpha")).out)["status"]["token"]
        while not workspace.has_ended(token):  # noqa: ASYNC110  (time passes)
            await asyncio.sleep(0.2)
        await kubectl(workspace, alpha, "delete", "configmap", "question")
        await ask_and_await_answer(workspace, alpha, f"{profiles.namespace}/alpha")
        assert workspace.refused == []


@asynccontextmanager
async def operating(operator: Path, workspace: Workspace, profiles: Publication) -> AsyncIterator[None]:
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(COMMANDS / "milo-discovery"),
        "args": ["credential"],
        "env": [{"name": "MILO_DISCOVERY_ADDRESS", "value": workspace.address}],
        "provideClusterInfo": True,
    }
    providers = workspace.directory / "providers.json"
    providers.write_text(json.dumps({"providers": [{"name": "milo", "execConfig": plugin}]}))
    arguments = (f"--inventory={profiles.server.kubeconfig}", f"--clusterprofile-provider-file={providers}")
    log = workspace.directory / "operator.log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            operator, *arguments, env={"HOME": str(workspace.directory)}, stdout=output, stderr=output
        )
    try:
        yield
    except BaseException as error:
        error.add_note(f"output of the operator:\n{log.read_text()[-4000:]}")
        raise
    finally:
        process.kill()
        await process.wait()


async def ask_and_await_answer(workspace: Workspace, kubeconfig: Path, answered_by: str) -> None:
    await kubectl(workspace, kubeconfig, "create", "configmap", "question", "--from-literal=of=the test")
    answer = ""
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        while answer != answered_by:
            answer = await kubectl(
                workspace, kubeconfig, "get", "configmap", "question", "-o", r"jsonpath={.data.answered-by}"
            )


async def kubectl(workspace: Workspace, kubeconfig: Path, *arguments: str) -> str:
    """Run kubectl with a kubeconfig that calls the plugin, which is in the PATH of the workspace."""
    outcome = await workspace.run("kubectl", f"--kubeconfig={kubeconfig}", *arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out
