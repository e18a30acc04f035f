"""Namespaces of the projects of Milo's own API server, in one store: metadata lists, watches, and the server killed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from milo_discovery import DiscoveryClient
from milo_objects import (
    ClusterEnded,
    Kind,
    ObjectChanged,
    ObjectGone,
    Objects,
    ProjectedObject,
    ScopeEnded,
)
from tests.end_to_end.real.handing_out import certificates, handing_out
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

CORE: list[Mode] = ["project"]
PROJECTS = ("alpha", "beta", "gamma", "delta", "epsilon")
NAMESPACES, CONFIG_MAPS = "v1/namespaces", "v1/configmaps"
KINDS = (
    Kind(NAMESPACES, ["metadata.labels"]),
    Kind(CONFIG_MAPS, ["metadata.labels", "data.color"], label_selector="team=a"),
)


def by_uid(found: ProjectedObject) -> list[str]:
    return [found.uid]


class Tenant:
    """Objects of a project, written through Milo."""

    def __init__(self, server: RealApi, project: str) -> None:
        self._server = server
        self._root = f"{server.collection}/{project}/control-plane/api/v1"

    async def create(self, name: str, **labels: str) -> str:
        return await self._uid("POST", "/namespaces", {"metadata": {"name": name, "labels": labels}})

    async def put(self, name: str, team: str, **data: str) -> str:
        body = {"metadata": {"name": name, "labels": {"team": team}}, "data": data}
        path = "/namespaces/shop/configmaps"
        async with self._server.api() as api:
            exists = await api.status(f"{self._root}{path}/{name}") == 200
        return await self._uid("PUT" if exists else "POST", f"{path}/{name}" if exists else path, body)

    async def delete(self, path: str) -> None:
        await self._uid("DELETE", path)

    async def _uid(self, method: str, path: str, body: Any = None) -> str:
        async with self._server.api() as api:
            answer = await api.call(method, f"{self._root}{path}", body)
        return str(answer.get("metadata", {}).get("uid", ""))


@pytest.mark.parametrize("mode", CORE)
async def test_store_has_the_namespaces_of_all_projects_of_milo(
    server: RealApi, built: Programs, directory: Path
) -> None:
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")
    await create_ready(server, *PROJECTS)
    tenants = {project: Tenant(server, project) for project in PROJECTS}
    uids = {project: await tenant.create("shop", of=project) for project, tenant in tenants.items()}
    async with handing_out(server, directory, certificates(server)) as client:
        await _follow(client, server, tenants, uids)


async def _follow(client: DiscoveryClient, server: RealApi, tenants: dict[str, Tenant], uids: dict[str, str]) -> None:
    changes: list[Any] = []

    def of(name: str) -> list[str]:
        return [
            change.object.fields.get("data", {}).get("color", "")
            if isinstance(change, ObjectChanged)
            else change.reason.name
            for change in changes
            if isinstance(change, ObjectChanged | ObjectGone) and change.object.name == name
        ]

    async with Objects(client, KINDS, indexes={"uid": by_uid}) as objects, asyncio.TaskGroup() as tasks:

        async def read() -> None:
            async for change in objects.changes():
                changes.append(change)  # noqa: PERF401  (it is read meanwhile)

        reading = tasks.create_task(read())
        await eventually(lambda: all(objects.view(kind.resource).is_complete for kind in KINDS))
        assert objects.view(NAMESPACES).known == len(PROJECTS)
        for project, uid in uids.items():
            [hit] = objects.find("uid", uid)
            assert (hit.cluster.name, hit.object.fields["metadata"]["labels"]["of"]) == (project, project)

        await tenants["beta"].put("note", "a", color="red", size="1")
        await eventually(lambda: of("note") == ["red"])
        await tenants["beta"].put("note", "a", color="red", size="2")
        await tenants["beta"].put("note", "a", color="blue", size="2")
        await eventually(lambda: of("note") == ["red", "blue"])
        await tenants["beta"].put("note", "b", color="blue")
        await eventually(lambda: of("note") == ["red", "blue", "OUT_OF_SELECTOR"])

        await tenants["alpha"].put("other", "a", color="red")
        await eventually(lambda: of("other") == ["red"])
        await server.stop()
        await eventually(lambda: objects.view(CONFIG_MAPS).stale_since is not None)
        assert objects.view(CONFIG_MAPS).is_complete
        assert objects.get("alpha", CONFIG_MAPS, "other", "shop") is not None
        await server.start()
        await tenants["alpha"].delete("/namespaces/shop/configmaps/other")
        late = await tenants["gamma"].create("late")
        await eventually(lambda: [hit.cluster.name for hit in objects.find("uid", late)] == ["gamma"])
        await eventually(lambda: of("other")[1:] in (["OBJECT_DELETED"], ["MISSING"]))
        await eventually(lambda: objects.view(NAMESPACES).stale_since is None)
        assert not [change for change in changes if isinstance(change, ClusterEnded | ScopeEnded)]

        async with server.api() as api:
            await api.call("DELETE", f"{server.collection}/delta")
        await eventually(lambda: objects.find("uid", uids["delta"]) == [], within_s=120)
        assert [change.cluster.name for change in changes if isinstance(change, ClusterEnded)] == ["delta"]
        reading.cancel()
