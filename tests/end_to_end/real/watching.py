"""Objects and watches of a real server's collection, without a client library."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.end_to_end.real.servers import RealApi
from tests.support.eventually import LIMIT_S

_KINDS = {"project": "Project", "project-control-plane": "ProjectControlPlane"}
_CONDITIONS = {"project": "Ready", "project-control-plane": "ControlPlaneReady"}
_SPECS = {"project": {"ownerRef": {"kind": "Organization", "name": "acme"}}, "project-control-plane": {}}

Event = dict[str, Any]


def thing(server: RealApi, name: str, **metadata: object) -> dict[str, object]:
    """Return the smallest object that the collection accepts."""
    group, version = server.collection.split("/")[2:4]
    return {
        "apiVersion": f"{group}/{version}",
        "kind": _KINDS[server.mode],
        "metadata": {"name": name, **metadata},
        "spec": _SPECS[server.mode],
    }


async def version_of(server: RealApi) -> str:
    async with server.api() as api:
        return str((await api.call("GET", server.collection))["metadata"]["resourceVersion"])


async def create(server: RealApi, name: str, **metadata: object) -> dict[str, Any]:
    async with server.api() as api:
        return await api.call("POST", server.collection, thing(server, name, **metadata))


@asynccontextmanager
async def watch(server: RealApi, query: str) -> AsyncIterator["Watch"]:
    """Open a watch through the proxy, as clients do."""
    async with server.client() as api, api.stream(f"{server.collection}?watch=1&{query}") as body:
        yield Watch(body)


class Watch:
    def __init__(self, body: aiohttp.StreamReader) -> None:
        self._body = body

    async def event(self) -> Event | None:
        """Return the next event, or None at the end of the watch."""
        async with asyncio.timeout(LIMIT_S):
            line = await self._body.readline()
        return json.loads(line) if line else None

    async def until(self, kind: str) -> list[Event]:
        """Return the events up to the first of this type."""
        events: list[Event] = []
        while not events or events[-1]["type"] != kind:
            event = await self.event()
            assert event is not None, f"the watch ended before {kind}: {events}"
            events.append(event)
        return events


async def set_ready(server: RealApi, name: str, ready: bool) -> None:
    """Set the readiness condition of the object's control plane, as its controller does."""
    ready_condition = condition(_CONDITIONS[server.mode], "True" if ready else "False", "Test")
    async with server.api() as api:
        await api.call("PATCH", f"{server.collection}/{name}/status", {"status": {"conditions": [ready_condition]}})


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


async def create_ready(server: RealApi, *names: str) -> None:
    for name in names:
        await create(server, name)
        await set_ready(server, name, True)


async def label(server: RealApi, name: str, **labels: str) -> None:
    async with server.api() as api:
        await api.call("PATCH", f"{server.collection}/{name}", {"metadata": {"labels": labels}})


async def delete(server: RealApi, name: str) -> None:
    async with server.api() as api:
        await api.call("DELETE", f"{server.collection}/{name}")
