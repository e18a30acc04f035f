"""Events in a project of a Milo with the feature gate EventsProxy."""

import json
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Request, SingleCluster
from milo_discovery.testing import eventually
from milo_sandbox import Features, Sandbox
from milo_sandbox.resources import CONFIG_MAPS, PROJECTS, PROXIED_EVENTS


async def test_events_become_series_behind_the_events_proxy(tmp_path: Path) -> None:
    async with Sandbox(projects=1, features=Features(events_proxy=True)) as sandbox:
        [name] = [record.name for record in sandbox.store[PROJECTS]]
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(sandbox.kubeconfig(project=name)))
        store = sandbox.control_plane(name)
        store.create(CONFIG_MAPS, {"metadata": {"name": "one"}}, namespace="default")
        controllers = Controllers(SingleCluster(kubeconfig), registry=CollectorRegistry())

        @controllers.reconcile("v1/configmaps")
        async def reconcile(request: Request) -> None:
            for _ in range(2):
                await request.event("Created", "made it")
            await request.event("Applied", "applied it")

        def recorded() -> dict[str, Any]:
            events = [record.document() for record in store[PROXIED_EVENTS]]
            return {event["reason"]: event.get("series", {}).get("count", 1) for event in events}

        async with controllers:
            await eventually(lambda: recorded() == {"Created": 2, "Applied": 1})
