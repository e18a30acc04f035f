"""The service catalog's contract of suspension for operators, fulfilled by an operator on milo_controllers.

Its harness, ConformanceSuspendResume, drives the condition Suspended of a ServiceConsumer to True and back to False. It
requires that the operator pauses, resumes, and reports that in the condition Paused, without changing the platform's
Suspended; and that no object which it maintains in the project is changed. These tests do the same to an operator
beside a daemon process, in a project whose API rejects writes while it is suspended.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Kind, ProjectSuspended, Request
from milo_discovery import DiscoveryClient, EventType, Fleet
from milo_sandbox.resources import CONFIG_MAPS
from milo_sandbox.store import Store
from tests.end_to_end.process.api_calls import call
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.service_provider import CONSUMERS, ServiceProvider
from tests.support.eventually import eventually

_WITHIN_S = 60.0


class Operator:
    """Keeps a copy of each ConfigMap that is labeled, and reports to the provider's project when it is paused."""

    def __init__(self, provider: ServiceProvider) -> None:
        self._provider = provider
        self.paused: list[bool] = []
        self.refused = 0

    async def reconcile(self, request: Request) -> None:
        found = await request.get()
        if found is None:
            return
        copy = {"kind": "ConfigMap", "metadata": {"name": f"{request.name}-copy"}, "data": found["data"]}
        try:
            await request.apply("v1/configmaps", copy)
        except ProjectSuspended:
            self.refused += 1
            raise

    async def report(self, client: DiscoveryClient) -> None:
        """Report each suspension and reinstatement in the condition Paused of the project's ServiceConsumer."""
        known: dict[str, bool] = {}
        async for event in client.watch():
            project, suspended = event.cluster.name.removeprefix("dns#"), event.cluster.suspended
            if event.type in (EventType.ENGAGED, EventType.UPDATED) and known.get(project, False) != suspended:
                known[project] = suspended
                await self._set_paused(project, paused=suspended)
                self.paused.append(suspended)

    async def _set_paused(self, project: str, *, paused: bool) -> None:
        path = f"{CONSUMERS}/sc-{project}"
        _, consumer = await call(self._provider.kubeconfig, "GET", path)
        others = [other for other in consumer["status"].get("conditions", ()) if other["type"] != "Paused"]
        condition = {
            "type": "Paused",
            "status": "True" if paused else "False",
            "reason": "Paused" if paused else "Active",
            "message": "",
            "lastTransitionTime": "2026-11-20T08:00:01Z",
        }
        body = {
            "metadata": {"resourceVersion": consumer["metadata"]["resourceVersion"]},
            "status": {"conditions": [*others, condition]},
        }
        status, answer = await call(
            self._provider.kubeconfig, "PATCH", f"{path}/status", body, "application/merge-patch+json"
        )
        assert status == 200, answer


def config_map(store: Store, name: str) -> dict[str, Any] | None:
    record = store[CONFIG_MAPS].get(name, "default")
    return None if record is None else record.document()


def put(store: Store, name: str, content: str) -> None:
    """Create or change a ConfigMap for which the operator keeps a copy."""
    document = {"metadata": {"name": name, "labels": {"copy": "yes"}}, "data": {"content": content}}
    if config_map(store, name) is None:
        store.create(CONFIG_MAPS, document, namespace="default")
    else:
        store.modify(CONFIG_MAPS, name, lambda found: {**found, "data": document["data"]}, namespace="default")


def content_of_copy(store: Store, name: str) -> str | None:
    found = config_map(store, f"{name}-copy")
    return None if found is None else str(found["data"]["content"])


async def explained(workspace: Workspace, project: str) -> str:
    """Return the output of `milo-discovery explain` for a cluster."""
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("milo-discovery"), "explain", project, "--address", workspace.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_operator_pauses_while_its_project_is_suspended_and_resumes_afterwards(workspace: Workspace) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    shop = sandbox.control_plane("shop")
    put(shop, "zone", "first")
    operator = Operator(provider)
    async with provider.daemon() as daemon, workspace.client() as client:
        await daemon.start()
        controllers = Controllers(Fleet(client), registry=CollectorRegistry())
        controllers.reconcile(Kind("v1/configmaps", selector="copy=yes"))(operator.reconcile)
        reporting = asyncio.create_task(operator.report(client))
        async with controllers:
            await eventually(lambda: content_of_copy(shop, "zone") == "first", within_s=_WITHIN_S)

            # Suspended: by the project, whose API then refuses writes, and by the signal on its ServiceConsumer.
            sandbox.milo.suspend("shop", "Billing")
            provider.signal("shop", suspended=True, reason="ConformanceSuspended")
            await eventually(lambda: operator.paused == [True], within_s=_WITHIN_S)
            conditions = provider.conditions("shop")
            assert conditions["Paused"]["status"] == "True"
            assert (conditions["Suspended"]["status"], conditions["Suspended"]["reason"]) == (
                "True",
                "ConformanceSuspended",
            )
            report = await client.get("dns#shop")
            assert report.engagement.engaged
            assert report.cluster is not None
            assert [suspension.reason for suspension in report.cluster.suspensions] == ["ConformanceSuspended"]
            assert "ConformanceSuspended" in await explained(workspace, "dns#shop")

            # What the operator keeps is not changed, although there is work for it.
            retained = config_map(shop, "zone-copy")
            put(shop, "zone", "second")
            await eventually(lambda: operator.refused, within_s=_WITHIN_S)
            assert config_map(shop, "zone-copy") == retained

            # Reinstated: the work that waited is done, and the platform's own condition is left alone.
            sandbox.milo.reinstate("shop")
            provider.signal("shop", suspended=False, reason="ConformanceActive")
            await eventually(lambda: operator.paused == [True, False], within_s=_WITHIN_S)
            await eventually(lambda: content_of_copy(shop, "zone") == "second", within_s=_WITHIN_S)
            conditions = provider.conditions("shop")
            assert conditions["Paused"]["status"] == "False"
            assert (conditions["Suspended"]["status"], conditions["Suspended"]["reason"]) == (
                "False",
                "ConformanceActive",
            )
            assert "ConformanceSuspended" not in await explained(workspace, "dns#shop")
        reporting.cancel()
        with suppress(asyncio.CancelledError):
            await reporting
