"""Milo's controllers in a sandbox: how projects begin and end, and how suspensions reach them."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import CONTROL_PLANES, PROJECTS, Client
from tests.integration.sandbox.conftest import QUICK
from tests.integration.sandbox.test_control_planes import CONFIG_MAPS, behind
from tests.integration.sandbox.widgets import DEFINITIONS, definition

SUSPENSIONS = "/apis/resourcemanager.miloapis.com/v1alpha1/projectsuspensions"
NAMESPACES = "/api/v1/namespaces"
WAITING = "Waiting for project resources to be removed"
HELD = {"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(features=QUICK, seed=1, controllers=True) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox, connect: Callable[[Sandbox], Client]) -> Client:
    client = connect(sandbox)
    await create(client, "alpha")
    return client


async def create(client: Client, name: str) -> None:
    spec = {"ownerRef": {"kind": "Organization", "name": "acme"}}
    assert (
        await client.call("POST", PROJECTS, {"kind": "Project", "metadata": {"name": name}, "spec": spec})
    ).status == 201


async def suspend(client: Client, name: str, project: str, reason: str = "Billing") -> None:
    spec = {"projectRef": {"name": project}, "reason": reason, "reinstateAuthority": "Consumer", "requestedBy": "test"}
    assert (
        await client.call("POST", SUSPENSIONS, {"kind": "ProjectSuspension", "metadata": {"name": name}, "spec": spec})
    ).status == 201


async def status_of(client: Client, name: str = "alpha") -> dict[str, Any]:
    project = (await client.get(f"{PROJECTS}/{name}")).json
    conditions = {
        condition["type"]: (condition["status"], condition["reason"], condition["message"])
        for condition in project["status"]["conditions"]
    }
    return conditions | {
        "suspensions": [suspension["reason"] for suspension in project["status"].get("suspensions", [])]
    }


async def test_created_project_becomes_ready_with_a_control_plane(client: Client) -> None:
    project = (await client.get(f"{PROJECTS}/alpha")).json
    assert project["metadata"]["finalizers"] == ["resourcemanager.miloapis.com/project-controller"]
    assert (await status_of(client))["Ready"][0] == "True"
    plane = (await client.get(f"{CONTROL_PLANES}/alpha")).json["metadata"]
    assert plane["labels"] == {
        "resourcemanager.miloapis.com/project-name": "alpha",
        "resourcemanager.miloapis.com/project-uid": project["metadata"]["uid"],
    }
    assert (await client.get(behind("alpha", NAMESPACES))).names == ["default", "milo-system"]


async def test_empty_project_is_deleted_at_once(client: Client) -> None:
    async with client.watch(CONTROL_PLANES, resourceVersion="0") as watch:
        await client.call("DELETE", f"{PROJECTS}/alpha")
        assert await watch.take(2) == [("ADDED", "alpha"), ("DELETED", "alpha")]
    assert (await client.get(f"{PROJECTS}/alpha")).status == 404


async def test_project_deletion_waits_for_remaining_objects_and_names_them(client: Client) -> None:
    await client.call("POST", behind("alpha", NAMESPACES), {"metadata": {"name": "tenant"}})
    for namespace in ("default", "tenant"):
        await client.call("POST", behind("alpha", f"{NAMESPACES}/{namespace}/configmaps"), HELD)
    await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "plain"}})
    await client.call("DELETE", f"{PROJECTS}/alpha")
    assert (await client.get(behind("alpha", CONFIG_MAPS))).names == ["held"]
    assert (await client.get(behind("alpha", NAMESPACES))).names == ["default", "tenant"]
    remains = (
        "Some resources are remaining: configmaps. has 1 resource instances; "
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    )
    assert (await status_of(client))["ResourceCleanup"] == (
        "True",
        "CleanupAwaitingCompletion",
        f'{WAITING}: configmaps "default/held" (finalizers: example.com/hold); '
        f'namespace "tenant" is still terminating ({remains})',
    )
    for namespace in ("default", "tenant"):
        assert (await client.get(f"{CONTROL_PLANES}/alpha")).status == 200
        held = behind("alpha", f"{NAMESPACES}/{namespace}/configmaps/held")
        await client.call("PATCH", held, {"metadata": {"finalizers": None}})
    for path in (PROJECTS, CONTROL_PLANES):
        assert (await client.get(f"{path}/alpha")).status == 404


async def test_deletion_purges_objects_that_were_created_after_the_first_purge(
    client: Client, sandbox: Sandbox
) -> None:
    await client.call("POST", behind("alpha", CONFIG_MAPS), HELD)
    await client.call("DELETE", f"{PROJECTS}/alpha")
    await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "late"}})
    await client.call("PATCH", behind("alpha", f"{CONFIG_MAPS}/held"), {"metadata": {"finalizers": None}})
    assert (await status_of(client))["ResourceCleanup"][2] == f'{WAITING}: configmaps "default/late"'
    assert sandbox.controllers is not None
    sandbox.controllers.purge()
    assert (await client.get(f"{PROJECTS}/alpha")).status == 404


async def test_recreated_project_keeps_cluster_scoped_objects_and_its_default_namespace(client: Client) -> None:
    namespaces = behind("alpha", NAMESPACES)
    cluster_scoped = definition()
    cluster_scoped["spec"]["scope"] = "Cluster"
    await client.call("POST", DEFINITIONS, cluster_scoped)
    one = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "one"}, "spec": {"size": 1}}
    await client.call("POST", behind("alpha", "/apis/example.com/v1/widgets"), one)
    before = (await client.get(f"{namespaces}/default")).json["metadata"]["uid"]
    await client.call("DELETE", f"{PROJECTS}/alpha")
    await create(client, "alpha")
    assert (await client.get(namespaces)).names == ["default"]
    assert (await client.get(f"{namespaces}/default")).json["metadata"]["uid"] == before
    assert (await client.get(behind("alpha", "/apis/example.com/v1/widgets"))).names == ["one"]


async def test_status_lists_all_suspensions_and_condition_message_names_only_active_ones(client: Client) -> None:
    await suspend(client, "s1", "alpha", "Fraud")
    await suspend(client, "s2", "alpha", "Billing")
    message = "Project is suspended due to active suspensions: s1, s2"
    assert await status_of(client) | {"Ready": ()} == {
        "Ready": (),
        "Suspended": ("True", "Suspended", message),
        "suspensions": ["Billing", "Fraud"],
    }
    await client.call("PATCH", f"{SUSPENSIONS}/s1/status", {"status": {"phase": "Lifted"}})
    status = await status_of(client)
    assert status["Suspended"][2] == "Project is suspended due to active suspensions: s2"
    assert status["suspensions"] == ["Billing", "Fraud"]
    await client.call("DELETE", f"{SUSPENSIONS}/s2")
    status = await status_of(client)
    assert status["Suspended"] == ("False", "Active", "Project is active")
    assert status["suspensions"] == ["Fraud"]


async def test_suspension_does_not_change_once_the_project_is_deleted(client: Client) -> None:
    await client.call("POST", behind("alpha", CONFIG_MAPS), HELD)
    await suspend(client, "s1", "alpha")
    await client.call("DELETE", f"{PROJECTS}/alpha")
    await client.call("DELETE", f"{SUSPENSIONS}/s1")
    assert (await status_of(client))["Suspended"][0] == "True"
    refused = await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "late"}})
    assert refused.status == 403
    await client.call("PATCH", behind("alpha", f"{CONFIG_MAPS}/held"), {"metadata": {"finalizers": None}})
    assert (await client.get(f"{PROJECTS}/alpha")).status == 404


async def test_remaining_suspension_suspends_a_recreated_project(client: Client) -> None:
    await suspend(client, "s1", "alpha")
    await client.call("DELETE", f"{PROJECTS}/alpha")
    await create(client, "alpha")
    assert (await status_of(client))["Suspended"][0] == "True"
