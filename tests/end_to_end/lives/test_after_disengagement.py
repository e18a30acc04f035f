"""No request reaches a project after it was disengaged, whatever happens in it, as counted at the API server."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from milo_discovery import DiscoveryClient, Unavailable
from milo_sandbox import Sandbox
from milo_sandbox.resources import Document
from tests.end_to_end.lives.world import OPERATORS, World
from tests.integration.sandbox_conformance.lives import Places

pytestmark = pytest.mark.timeout(900)  # the first build of the operator in Go compiles controller-runtime

PROJECTS = [f"project-{number}" for number in range(6)]
ROUNDS = 3
_WITHIN_S = 120.0


@pytest.mark.parametrize("operator", ["python", pytest.param("go", marks=pytest.mark.builds)])
async def test_no_request_reaches_a_project_after_its_disengagement(operator: str) -> None:
    if operator == "go" and shutil.which("go") is None:
        pytest.skip("no go command on this machine, which builds the operator")
    random = Random(1)
    with TemporaryDirectory(prefix="milo-") as name:
        directory = Path(name)
        async with Sandbox(seed=1) as sandbox:
            kubeconfig = sandbox.write_kubeconfig(directory / "kubeconfig")
            places = Places(kubeconfig, kubeconfig, kubeconfig)
            own = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
            settings = {
                "discovery_kubeconfig": str(kubeconfig),
                "kubeconfigs": {"issuers": [own]},
                "removals": {"hold_not_ready": False},
                "connectivity": {"interval": "off"},
            }
            for project in PROJECTS:
                sandbox.projects.create(project, ready=True)
            worlds = {project: World(places, project, OPERATORS[operator].finalizer) for project in PROJECTS}
            for world in worlds.values():
                world.exists = True
            address = f"unix://{directory / 'd.sock'}"
            async with OPERATORS[operator].run(directory, settings, places), DiscoveryClient(address) as client:
                for _ in range(ROUNDS):
                    await _engaged(client, PROJECTS)
                    await asyncio.gather(*(world.do("work") for world in worlds.values()))
                    ended = random.sample(PROJECTS, len(PROJECTS) // 2)
                    others = [project for project in PROJECTS if project not in ended]
                    for project in ended:
                        sandbox.projects.set_condition(project, "False")
                    await _engaged(client, others)
                    # Requests from before the disengagement have arrived once the operator has worked elsewhere.
                    for project in others:
                        await worlds[project].do("work")
                    counts = {project: sandbox.requests_of(project) for project in ended}
                    for project in others:
                        for other in ended:
                            _change(sandbox, other)
                        await worlds[project].do("work")
                    assert {project: sandbox.requests_of(project) for project in ended} == counts
                    for project in ended:
                        sandbox.projects.set_condition(project)


def _change(sandbox: Sandbox, project: str) -> None:
    """Delete an object that the operator holds, and change the others."""
    store = sandbox.control_plane(project)
    resource = next(resource for resource in store.resources if resource.plural == "greetings")

    def change(found: Document) -> Document:
        metadata = found["metadata"]
        return {**found, "metadata": {**metadata, "annotations": {"changed": str(store.version)}}}

    first, *rest = [record for record in store[resource] if record.name.startswith("object-")]
    store.discard(resource, first.key)
    for record in rest:
        store.modify(resource, record.name, change, namespace=record.namespace)


async def _engaged(client: DiscoveryClient, names: list[str]) -> None:
    found: list[str] = []
    async with asyncio.timeout(_WITHIN_S):
        while sorted(found) != sorted(names):
            with suppress(Unavailable):  # until the first list was read
                found = [cluster.name for cluster in await client.list()]
            await asyncio.sleep(0.05)
