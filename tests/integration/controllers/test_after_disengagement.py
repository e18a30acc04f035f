"""No request reaches a project after it was disengaged: Milo answers under every name, and stores what is written."""

from datetime import timedelta
from pathlib import Path
from random import Random

from milo_discovery.controllers import Request, Result
from milo_discovery.testing import ControlPlane, eventually
from milo_discovery.testing.http import SandboxHttp
from milo_sandbox import Sandbox
from tests.integration.controllers.widgets import Running

PROJECTS = [f"project-{number}" for number in range(6)]
ROUNDS = 2
MAPS = "v1/configmaps"


async def test_no_request_reaches_a_project_after_its_disengagement(tmp_path: Path) -> None:
    async with Sandbox(seed=1) as sandbox:
        http = SandboxHttp(sandbox.write_kubeconfig(tmp_path / "kubeconfig"))
        planes = {}
        for name in PROJECTS:
            sandbox.projects.create(name, ready=True)
            planes[name] = ControlPlane(http, name, sandbox.control_plane_url(name).removeprefix(sandbox.url))
        running, random = Running(), Random(1)
        runs = 0

        @running.controllers.reconcile("v1/namespaces", owns=[MAPS])
        async def reconcile(request: Request) -> Result:
            nonlocal runs
            made = {"kind": "ConfigMap", "metadata": {"name": "made", "namespace": request.name}}
            await request.apply(MAPS, made, owned=True)
            await request.event("Made", "made a ConfigMap")
            runs += 1
            return Result(requeue_after=timedelta(milliseconds=5))

        async with running.controllers:
            for _ in range(ROUNDS):
                for plane in planes.values():
                    running.discovery.engage(plane)
                await eventually(lambda: len(running.controllers.view.names()) == len(PROJECTS))
                ended = random.sample(PROJECTS, len(PROJECTS) // 2)
                seen = runs
                await eventually(lambda: runs > seen + 30)  # noqa: B023  (awaited in this iteration)
                for name in ended:
                    running.discovery.disengage(name)
                await eventually(lambda: not set(running.controllers.view.names()) & set(ended))  # noqa: B023
                seen = runs
                # What was sent before has arrived after some requests to other projects.
                await eventually(lambda: runs > seen + 10)  # noqa: B023
                counts = {name: sandbox.requests_of(name) for name in ended}
                await eventually(lambda: runs > seen + 60)  # noqa: B023
                assert {name: sandbox.requests_of(name) for name in ended} == counts
                for name in set(PROJECTS) - set(ended):
                    running.discovery.disengage(name)
                await eventually(lambda: not running.controllers.view.names())
