"""Events in a project of Milo's own API server with the feature gate EventsProxy, stored by a kube-apiserver."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Request, SingleCluster
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import MiloApi, RealApi
from tests.end_to_end.real.watching import create_ready
from tests.support.eventually import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROJECT = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/alpha/control-plane"


class ProxyingMilo(MiloApi):
    """Milo's API server, which sends events to another one."""

    events: RealApi

    def _argv(self) -> list[str]:
        certificate, key = self.events.authority.client("milo", ("system:masters",))
        return [
            *super()._argv(),
            "--feature-gates=EventsProxy=true",
            f"--events-provider-url={self.events.url}",
            f"--events-provider-ca-file={self.events.authority.file}",
            f"--events-provider-client-cert={certificate}",
            f"--events-provider-client-key={key}",
        ]


async def test_events_become_series_behind_the_events_proxy(
    built: Programs, workload: RealApi, directory: Path
) -> None:
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")
    milo = ProxyingMilo(built, directory / "milo", proxied=False)
    milo.events = workload
    try:
        await milo.start()
        await create_ready(milo, "alpha")
        kubeconfig = yaml.safe_load(milo.kubeconfig.read_text())
        kubeconfig["clusters"][0]["cluster"]["server"] = f"{milo.url}{PROJECT}"
        (directory / "alpha").write_text(json.dumps(kubeconfig))
        controllers = Controllers(SingleCluster(directory / "alpha"), registry=CollectorRegistry())

        @controllers.reconcile("v1/configmaps")
        async def reconcile(request: Request) -> None:
            if request.name == "one":
                for _ in range(2):
                    await request.event("Created", "made it")
                await request.event("Applied", "applied it")

        async with controllers, milo.client() as api, workload.client() as storage:
            await eventually(partial(api.answers, f"{PROJECT}/api/v1/namespaces"))
            await api.call("POST", f"{PROJECT}/api/v1/namespaces", {"metadata": {"name": "default"}})
            await api.call("POST", f"{PROJECT}/api/v1/namespaces/default/configmaps", {"metadata": {"name": "one"}})

            async def are_recorded() -> bool:
                events = (await storage.call("GET", "/api/v1/namespaces/default/events"))["items"]
                return {event["reason"]: count(event) for event in events} == {"Created": 2, "Applied": 1}

            await eventually(are_recorded)
    finally:
        await milo.close()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - no event reports the state
            await asyncio.sleep(0.1)


def count(event: dict[str, Any]) -> int:
    return int((event.get("series") or {}).get("count", 1))
