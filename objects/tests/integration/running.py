"""Objects of control planes of the sandbox, in the fleet of a FakeDiscovery."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from milo_discovery import DiscoveryClient
from milo_discovery.testing import ControlPlane, FakeDiscovery
from milo_objects import (
    CacheLimits,
    Change,
    FleetChanged,
    FollowedFleet,
    IndexFunction,
    Kind,
    ObjectChanged,
    ObjectGone,
    Objects,
    ProjectedObject,
    Synced,
)

NAMESPACES = "v1/namespaces"
CONFIG_MAPS = "v1/configmaps"
names = (f"objects-{number}" for number in itertools.count())


def by_uid(found: ProjectedObject) -> list[str]:
    return [found.uid]


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


class Running:
    """Objects that are kept current, and the changes that a reader received."""

    def __init__(
        self,
        *planes: ControlPlane,
        kinds: tuple[Kind, ...],
        limits: CacheLimits = CacheLimits(),  # noqa: B008  (immutable)
        indexes: dict[str, IndexFunction] | None = None,
    ) -> None:
        self.discovery = FakeDiscovery(*planes)
        client = cast(DiscoveryClient, self.discovery)
        self.source = FollowedFleet(client, limits=limits)
        self.objects = Objects(self.source, kinds, indexes={"uid": by_uid} if indexes is None else indexes)
        self.changes: list[Change] = []

    async def read(self) -> None:
        async for change in self.objects.changes():
            self.changes.append(change)

    @property
    def discoveries(self) -> int:
        """The number of times that all engaged clusters were known, for the first time or again."""
        return sum(isinstance(change, FleetChanged) and isinstance(change.state, Synced) for change in self.changes)

    def of(self, name: str) -> list[str]:
        """Return what the reader received of an object: its fields, or why it is gone."""
        return [
            change.object.content.decode() if isinstance(change, ObjectChanged) else change.reason.name
            for change in self.changes
            if isinstance(change, ObjectChanged | ObjectGone) and change.object.name == name
        ]


@asynccontextmanager
async def running(
    *planes: ControlPlane, kinds: tuple[Kind, ...] = (Kind(NAMESPACES, ["metadata.labels"]),), **options: Any
) -> AsyncIterator[Running]:
    found = Running(*planes, kinds=kinds, **options)
    async with found.objects, asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(found.read())
        try:
            yield found
        finally:
            reader.cancel()
