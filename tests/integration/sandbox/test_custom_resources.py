"""Kinds that a CustomResourceDefinition adds to a project's control plane."""

import pytest

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import Client
from tests.integration.sandbox.widgets import (
    CONDITION,
    CONFIG_MAPS,
    DEFINITIONS,
    WIDGETS,
    behind,
    create,
    define,
    definition,
    widget,
)


@pytest.fixture(autouse=True)
def project(sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")


async def test_crd_deletion_deletes_objects_and_ends_watches(client: Client) -> None:
    await define(client)
    await create(client, WIDGETS, widget("held", finalizers=["example.com/hold"]))
    await create(client, WIDGETS, widget("one"))
    version = (await client.get(behind(WIDGETS))).version
    async with client.watch(behind(WIDGETS), resourceVersion=version) as stream:
        await client.call("DELETE", behind(f"{DEFINITIONS}/widgets.example.com"))
        assert sorted(await stream.take(2)) == [("DELETED", "one"), ("MODIFIED", "held")]
        terminating = await client.get(behind(f"{DEFINITIONS}/widgets.example.com"))
        assert terminating.json["metadata"]["deletionTimestamp"]
        await client.call("PATCH", behind(f"{WIDGETS}/held"), {"metadata": {"finalizers": None}})
        assert [line["type"] for line in await stream.rest()] == ["DELETED"]
    assert (await client.get(behind(f"{DEFINITIONS}/widgets.example.com"))).status == 404
    assert (await client.get(behind(WIDGETS))).status == 404


async def test_crd_change_ends_watches_and_validates_by_the_new_schema(client: Client) -> None:
    await define(client)
    await create(client, WIDGETS, widget())
    version = (await client.get(behind(WIDGETS))).version
    changed = definition()
    changed["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": {"type": "object"}}
    async with client.watch(behind(WIDGETS), resourceVersion=version) as stream:
        patched = await client.call("PATCH", behind(f"{DEFINITIONS}/widgets.example.com"), {"spec": changed["spec"]})
        assert patched.status == 200
        assert await stream.rest() == []
    async with client.watch(behind(WIDGETS), resourceVersion=version) as stream:
        assert (await stream.next())["object"]["code"] == 410
    assert (await client.get(behind(WIDGETS))).names == ["one"]
    assert "spec" not in await create(client, WIDGETS, widget("two"))


async def test_invalid_crd_is_rejected(client: Client) -> None:
    wrong = definition() | {"metadata": {"name": "gadgets.example.com"}}
    refused = await client.call("POST", behind(DEFINITIONS), wrong)
    assert (refused.status, refused.json["details"]["causes"][0]["field"]) == (422, "metadata.name")
    refused = await client.call("POST", behind(DEFINITIONS), definition(storage=False))
    assert (refused.status, refused.json["details"]["causes"][0]["field"]) == (422, "spec.versions")
    refused = await client.call("POST", behind(DEFINITIONS), definition(schema={}))
    assert refused.json["details"]["causes"][0]["field"] == "spec.versions[0].schema.openAPIV3Schema"


async def test_table_has_the_printer_columns_of_the_crd(client: Client) -> None:
    await define(client)
    await create(client, WIDGETS, widget(spec={"size": 7}))
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = (await client.get(behind(WIDGETS), headers=accept)).json
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Size"]
    assert table["rows"][0]["cells"] == ["one", 7]


async def test_table_columns_can_show_each_field_of_a_condition(client: Client) -> None:
    condition = {"type": "Ready", "status": "True", "reason": "Done", "message": "all is made"}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    columns = [
        {"name": field, "type": type_, "jsonPath": f'.status.conditions[?(@.type=="Ready")].{field}'}
        for field, type_ in (("status", "string"), ("reason", "string"), ("message", "string"))
    ]
    since = {"name": "Since", "type": "date", "jsonPath": ".status.conditions[?(@.type=='Ready')].lastTransitionTime"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    await define(client, additionalPrinterColumns=[*columns, since], schema=schema)
    for name in ("one", "two"):
        await create(client, WIDGETS, widget(name))
    await client.call("PATCH", behind(f"{WIDGETS}/one/status"), {"status": {"conditions": [condition]}})
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = (await client.get(behind(WIDGETS), headers=accept)).json
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "status", "reason", "message", "Since"]
    [first, second] = [row["cells"] for row in table["rows"]]
    assert first[:4] == ["one", "True", "Done", "all is made"]
    assert first[4].endswith("d")
    assert second == ["two", None, None, None, "<unknown>"]


async def test_lists_and_watches_select_by_the_selectable_fields_of_the_crd(client: Client) -> None:
    await define(client, selectableFields=[{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.size"}])
    await create(client, WIDGETS, widget("one", {"size": 1, "color": "red"}))
    await create(client, WIDGETS, widget("two", {"size": 2}))
    assert (await client.get(behind(WIDGETS), fieldSelector="spec.color=red")).names == ["one"]
    assert (await client.get(behind(WIDGETS), fieldSelector="spec.color!=red,spec.size=2")).names == ["two"]
    assert (await client.get(behind(WIDGETS), fieldSelector="spec.port=1")).status == 400
    version = (await client.get(behind(WIDGETS))).version
    async with client.watch(behind(WIDGETS), resourceVersion=version, fieldSelector="spec.color=red") as stream:
        await client.call("PATCH", behind(f"{WIDGETS}/one"), {"spec": {"color": "blue"}})
        await client.call("PATCH", behind(f"{WIDGETS}/two"), {"spec": {"color": "red"}})
        assert await stream.take(2) == [("DELETED", "one"), ("ADDED", "two")]


async def test_terminating_namespace_waits_for_its_objects(client: Client) -> None:
    await create(client, "/api/v1/namespaces", {"metadata": {"name": "team"}})
    inside = CONFIG_MAPS.replace("default", "team")
    await create(client, inside, {"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})
    await create(client, inside, {"metadata": {"name": "free"}})
    deleted = await client.call("DELETE", behind("/api/v1/namespaces/team"))
    assert deleted.json["status"] == {"phase": "Terminating"}
    assert (await client.get(behind(inside))).names == ["held"]
    refused = await client.call("POST", behind(inside), {"metadata": {"name": "new"}})
    assert (refused.status, refused.json["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    await client.call("PATCH", behind(f"{inside}/held"), {"metadata": {"finalizers": None}})
    assert (await client.get(behind("/api/v1/namespaces/team"))).status == 404


async def test_secret_string_data_is_base64_encoded(client: Client) -> None:
    path = "/api/v1/namespaces/default/secrets"
    created = await create(client, path, {"metadata": {"name": "one"}, "stringData": {"key": "value"}})
    assert (created["data"], created["type"], "stringData" in created) == ({"key": "dmFsdWU="}, "Opaque", False)


async def test_events_are_served_only_in_the_core_group(client: Client) -> None:
    event = {"metadata": {"name": "one.1"}, "reason": "Greeted", "involvedObject": {"kind": "Widget", "name": "one"}}
    assert (await create(client, "/api/v1/namespaces/default/events", event))["reason"] == "Greeted"
    assert (await client.get(behind("/apis/events.k8s.io/v1/events"))).status == 404


async def test_lease_update_requires_its_current_resource_version(client: Client) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    created = await create(client, path, {"metadata": {"name": "leader"}, "spec": {"holderIdentity": "a"}})
    taken = created | {"spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}}
    assert (await client.call("PUT", behind(f"{path}/leader"), taken)).status == 200
    assert (await client.call("PUT", behind(f"{path}/leader"), taken)).status == 409


async def test_status_condition_is_stored(client: Client) -> None:
    await define(client)
    await create(client, WIDGETS, widget())
    patched = await client.call("PATCH", behind(f"{WIDGETS}/one/status"), {"status": {"conditions": [CONDITION]}})
    assert patched.json["status"]["conditions"] == [CONDITION]
