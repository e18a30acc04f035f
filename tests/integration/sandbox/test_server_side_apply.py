"""Server-side apply, and the managers of fields."""

from typing import Any

import pytest

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import Answer, Client
from tests.integration.sandbox.widgets import CONDITION, CONFIG_MAPS, WIDGETS, behind, define, widget

ONE = f"{CONFIG_MAPS}/one"


@pytest.fixture(autouse=True)
def project(sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")


async def apply(client: Client, path: str, document: dict[str, Any], manager: str = "first", **query: str) -> Answer:
    headers = {"Content-Type": "application/apply-patch+yaml"}
    given = {"fieldManager": manager, **query} if manager else query
    return await client.call("PATCH", behind(path), document, headers=headers, **given)


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": data}


def owners(answer: Answer) -> dict[tuple[str, str], Any]:
    return {
        (entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in answer.json["metadata"]["managedFields"]
    }


async def test_field_owned_by_two_managers_is_kept_until_both_remove_it(client: Client) -> None:
    await apply(client, ONE, config_map(a="1", b="2"))
    await apply(client, ONE, config_map(a="1"), "second")
    assert (await apply(client, ONE, config_map(b="2"))).json["data"] == {"a": "1", "b": "2"}
    assert (await apply(client, ONE, config_map(), "second")).json["data"] == {"b": "2"}


async def test_update_takes_ownership_of_the_fields_that_it_changes(client: Client) -> None:
    await apply(client, ONE, config_map(a="1", b="2"))
    await client.call("PATCH", behind(ONE), {"data": {"a": "edited"}}, fieldManager="editor")
    found = await client.get(behind(ONE))
    assert owners(found) == {
        ("first", "Apply"): {"f:data": {"f:b": {}}},
        ("editor", "Update"): {"f:data": {"f:a": {}}},
    }
    assert (await apply(client, ONE, config_map(a="1", b="2"))).status == 409


async def test_server_side_apply_of_a_condition_keeps_the_fields_of_its_other_managers(client: Client) -> None:
    await define(client)
    path = f"{WIDGETS}/one/status"
    assert (await apply(client, path, widget() | {"status": {}})).status == 404
    await apply(client, f"{WIDGETS}/one", widget())
    await client.call("PATCH", behind(path), {"status": {"conditions": [CONDITION]}}, fieldManager="editor")
    await apply(client, path, widget() | {"status": {"conditions": [{"type": "Ready"}]}})
    dropped = await apply(client, path, widget() | {"status": {"conditions": []}})
    assert dropped.json["status"]["conditions"] == [CONDITION]
