"""Controllers of widgets, a custom resource in control planes of the sandbox."""

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

from prometheus_client import CollectorRegistry

from milo_controllers import (
    Controllers,
    Request,
    Result,
)
from milo_controllers.kinds import AnyKind
from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox

WIDGETS = "example.com/v1/widgets"
FINALIZER = "example.com/account"
DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}

Reconciler = Callable[[Request], Coroutine[Any, Any, Result | None]]
names = (f"plane-{number}" for number in itertools.count())


def widget(name: str, **spec: object) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def with_widgets(sandbox: MiloSandbox) -> ControlPlane:
    [made] = sandbox.create_control_planes(next(names))
    made.install(DEFINITION)
    return made


class Running:
    """Running controllers in the fleet of a FakeDiscovery."""

    def __init__(self, *planes: ControlPlane, confirm_releases: bool = False) -> None:
        self.discovery = FakeDiscovery(*planes)
        self.fleet = Fleet(cast(DiscoveryClient, self.discovery), confirm_releases=confirm_releases)
        self.registry = CollectorRegistry()
        self.controllers = Controllers(self.fleet, registry=self.registry)

    def metric(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, labels)


@asynccontextmanager
async def reconciling(
    reconciler: Reconciler, *planes: ControlPlane, kind: AnyKind = WIDGETS, **options: Any
) -> AsyncIterator[Running]:
    running = Running(*planes)
    running.controllers.reconcile(kind, **options)(reconciler)
    async with running.controllers:
        yield running


class Log:
    """A reconciler that records the objects that it receives."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []

    async def __call__(self, request: Request) -> Result | None:
        found = await request.get()
        self.seen.append((request.cluster.name, request.name, found and found.get("spec")))
        return None
