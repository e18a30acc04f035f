"""Garbage collection of dependents in a project's control plane."""

from typing import Any

import pytest

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import Client
from tests.integration.sandbox.widgets import CONFIG_MAPS, WIDGETS, behind, create, define, owned_by, widget


@pytest.fixture
async def owner(client: Client, sandbox: Sandbox) -> dict[str, Any]:
    sandbox.projects.create("alpha")
    await define(client)
    return await create(client, WIDGETS, widget())


async def dependent(client: Client, name: str, *references: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    document = {"metadata": {"name": name, "ownerReferences": list(references), **metadata}}
    return await create(client, CONFIG_MAPS, document)


async def names(client: Client) -> list[str]:
    return (await client.get(behind(CONFIG_MAPS))).names


async def delete_owner(client: Client, policy: str = "", name: str = "one") -> None:
    body = {"propagationPolicy": policy} if policy else None
    assert (await client.call("DELETE", behind(f"{WIDGETS}/{name}"), body)).status == 200


async def test_dependents_are_deleted_with_their_owner(client: Client, owner: dict[str, Any]) -> None:
    child = await dependent(client, "child", owned_by(owner))
    await dependent(client, "grandchild", owned_by(child | {"apiVersion": "v1", "kind": "ConfigMap"}))
    await dependent(client, "unrelated")
    assert await names(client) == ["child", "grandchild", "unrelated"]
    await delete_owner(client)
    assert await names(client) == ["unrelated"]


async def test_dependent_with_two_owners_loses_only_the_reference_to_the_deleted_one(
    client: Client, owner: dict[str, Any]
) -> None:
    second = await create(client, WIDGETS, widget("two"))
    await dependent(client, "shared", owned_by(owner), owned_by(second))
    await delete_owner(client)
    (kept,) = (await client.get(behind(CONFIG_MAPS))).json["items"]
    assert [reference["name"] for reference in kept["metadata"]["ownerReferences"]] == ["two"]
    await delete_owner(client, name="two")
    assert await names(client) == []


async def test_object_with_two_controllers_is_rejected(client: Client, owner: dict[str, Any]) -> None:
    second = await create(client, WIDGETS, widget("two"))
    both = [owned_by(reference) | {"controller": True} for reference in (owner, second)]
    document = {"metadata": {"name": "shared", "ownerReferences": both}}
    answer = await client.call("POST", behind(CONFIG_MAPS), document)
    assert answer.status == 422
    assert answer.json["message"].endswith(
        'Only one reference can have Controller set to true. Found "true" in references for Widget/one and Widget/two'
    )
    for references in ("none", ["none"]):
        document = {"metadata": {"name": "shared", "ownerReferences": references}}
        assert (await client.call("POST", behind(CONFIG_MAPS), document)).status == 422


async def test_dependent_is_deleted_only_after_its_owner_is_removed(client: Client, owner: dict[str, Any]) -> None:
    await client.call("PATCH", behind(f"{WIDGETS}/one"), {"metadata": {"finalizers": ["example.com/hold"]}})
    await dependent(client, "child", owned_by(owner))
    await delete_owner(client)
    assert await names(client) == ["child"]
    await client.call("PATCH", behind(f"{WIDGETS}/one"), {"metadata": {"finalizers": None}})
    assert await names(client) == []


@pytest.mark.parametrize("change", [{"uid": "0"}, {"name": "another"}, {"kind": "Gadget"}])
async def test_dependent_of_a_nonexistent_owner_is_deleted(
    client: Client, owner: dict[str, Any], change: dict[str, str]
) -> None:
    await dependent(client, "lost", owned_by(owner) | change)
    assert await names(client) == []


async def test_dependent_with_finalizer_is_marked_as_terminating(client: Client, owner: dict[str, Any]) -> None:
    await dependent(client, "held", owned_by(owner), finalizers=["example.com/hold"])
    await delete_owner(client)
    assert (await client.get(behind(f"{CONFIG_MAPS}/held"))).json["metadata"]["deletionTimestamp"]


async def test_foreground_deletion_waits_for_blocking_dependents(client: Client, owner: dict[str, Any]) -> None:
    await dependent(client, "held", owned_by(owner, blocks=True), finalizers=["example.com/hold"])
    await dependent(client, "free", owned_by(owner))
    await delete_owner(client, "Foreground")
    assert await names(client) == ["held"]
    waiting = await client.get(behind(f"{WIDGETS}/one"))
    assert waiting.json["metadata"]["finalizers"] == ["foregroundDeletion"]
    await client.call("PATCH", behind(f"{CONFIG_MAPS}/held"), {"metadata": {"finalizers": None}})
    assert (await client.get(behind(f"{WIDGETS}/one"))).status == 404


async def test_orphaned_dependents_are_not_deleted(client: Client, owner: dict[str, Any]) -> None:
    await dependent(client, "child", owned_by(owner))
    await delete_owner(client, "Orphan")
    (kept,) = (await client.get(behind(CONFIG_MAPS))).json["items"]
    assert "ownerReferences" not in kept["metadata"]
    assert (await client.get(behind(f"{WIDGETS}/one"))).status == 404
