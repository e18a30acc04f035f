"""Controllers with the testing kit: a fleet in memory, control planes of the sandbox, a fake clock."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, Request, Result
from milo_controllers.controller import Controller
from milo_discovery import Fleet
from milo_discovery.testing import FakeDiscovery, MiloSandbox, eventually, fake_clock

CONFIG_MAPS = "v1/configmaps"


async def test_object_is_reconciled_once_it_is_due_by_a_fake_clock_that_begins_while_the_controllers_run(
    milo_sandbox: MiloSandbox, monkeypatch: pytest.MonkeyPatch
):
    pumps, pump = 0, Controller._pump

    def counted(controller: Controller) -> None:
        nonlocal pumps
        pumps += 1
        pump(controller)

    monkeypatch.setattr(Controller, "_pump", counted)
    [alpha] = milo_sandbox.create_control_planes("alpha")
    alpha.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}})
    controllers = Controllers(Fleet(FakeDiscovery(alpha)), registry=CollectorRegistry())
    reconciled: list[str] = []

    @controllers.reconcile(CONFIG_MAPS)
    async def reconcile(request: Request) -> Result:
        reconciled.append(request.name)
        return Result(requeue_after=timedelta(hours=1))

    async with controllers:
        await eventually(lambda: reconciled == ["one"])
        with fake_clock() as clock:
            clock.advance(timedelta(minutes=30))
            for _ in range(100):
                await asyncio.sleep(0)
            clock.advance(timedelta(minutes=30))
            await eventually(lambda: reconciled == ["one", "one"])
            assert pumps < 50
            alpha.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}})
            await eventually(lambda: reconciled == ["one", "one", "two"])


async def test_requeued_object_is_reconciled_when_fake_clock_advances(milo_sandbox: MiloSandbox):
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    discovery = FakeDiscovery(alpha)
    controllers = Controllers(Fleet(discovery), registry=CollectorRegistry())
    reconciled: list[str] = []

    @controllers.reconcile(CONFIG_MAPS)
    async def reconcile(request: Request) -> Result:
        reconciled.append(f"{request.cluster.name}/{request.name}")
        return Result(requeue_after=timedelta(hours=1))

    with fake_clock() as clock:
        async with controllers:
            alpha.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}})
            await eventually(lambda: reconciled == ["alpha/one"])
            clock.advance(timedelta(hours=1))
            await eventually(lambda: reconciled == ["alpha/one", "alpha/one"])
            beta.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}})
            discovery.engage(beta)
            await eventually(lambda: "beta/two" in reconciled)
            discovery.disengage("alpha")
            await eventually(lambda: controllers.view.names() == ("beta",))
