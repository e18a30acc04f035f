"""The resources over HTTP: methods, media types, statuses, lists, pages, tables."""

import gzip
import re
from typing import Any

import pytest

from milo_sandbox import Rule, Sandbox
from tests.integration.sandbox.client import CONTROL_PLANES, PROJECTS, Client

TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


def reason(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["reason"]


async def test_body_with_fields_of_wrong_type_is_bad_request(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    assert reason(await client.call("DELETE", f"{PROJECTS}/alpha", {"preconditions": []})) == (400, "BadRequest")
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    for spec in ([], {"resourceAttributes": 1}):
        assert reason(await client.call("POST", reviews, {"spec": spec})) == (400, "BadRequest")


async def test_unknown_path_is_404_and_wrong_method_is_400_or_405(client: Client) -> None:
    for path in ("/apis/x/v1/projects", f"{PROJECTS}/a/b/c", "/nothing", "/api/v1/pods"):
        assert (await client.get(path)).body == b"404 page not found\n"
    assert reason(await client.get(f"{PROJECTS}/a/scale")) == (404, "NotFound")
    assert reason(await client.call("PUT", PROJECTS, {})) == (400, "BadRequest")
    assert reason(await client.call("POST", f"{PROJECTS}/a/status", {})) == (405, "MethodNotAllowed")


async def test_table_of_projects_has_the_printer_columns_of_milo(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", ready=True)
    sandbox.projects.create("beta")
    table = (await client.get(PROJECTS, headers=TABLE)).json
    columns = [(column["name"], column["type"], column["priority"]) for column in table["columnDefinitions"]]
    assert columns == [("Name", "string", 0), ("Ready", "string", 0), ("Age", "date", 0)]
    assert [row["cells"][:2] for row in table["rows"]] == [["alpha", "True"], ["beta", None]]
    assert all(re.fullmatch(r"\d+s", row["cells"][2]) for row in table["rows"])
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    one = (await client.get(f"{PROJECTS}/alpha", headers=TABLE, includeObject="Object")).json
    assert one["rows"][0]["object"]["kind"] == "Project"
    none = (await client.get(f"{PROJECTS}/alpha", headers=TABLE, includeObject="None")).json
    assert "object" not in none["rows"][0]


async def test_table_watch_sends_columns_once(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    async with client.watch(PROJECTS, headers=TABLE) as stream:
        first = await stream.next()
        sandbox.projects.set_condition("alpha")
        second = await stream.next()
        sandbox.projects.delete("alpha")
        third = await stream.next()
    assert [first["type"], second["type"], third["type"]] == ["ADDED", "MODIFIED", "DELETED"]
    assert first["object"]["columnDefinitions"]
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][:2] == ["alpha", "True"]


async def test_large_lists_are_compressed_if_the_client_accepts_gzip_but_watches_are_not(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.populate(1500)
    plain = await client.get(PROJECTS, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    squeezed = await client.get(PROJECTS, headers={"Accept-Encoding": "gzip"})
    assert squeezed.headers["Content-Encoding"] == "gzip"
    assert squeezed.body == plain.body  # the client has decompressed it
    assert len(gzip.compress(plain.body, 1)) < len(plain.body) / 5
    small = await client.get(PROJECTS, headers={"Accept-Encoding": "gzip"}, limit="10")
    assert "Content-Encoding" not in small.headers
    async with client.watch(PROJECTS, headers={"Accept-Encoding": "gzip"}, timeoutSeconds="1") as stream:
        assert "Content-Encoding" not in stream.headers
        assert (await stream.next())["type"] == "ADDED"


@pytest.mark.parametrize("token", [None, "", "junk", "a.b.c"])
async def test_unauthenticated_client_may_read_only_health_and_version(client: Client, token: str | None) -> None:
    client.token = token
    assert reason(await client.get(PROJECTS)) == (401, "Unauthorized")
    assert reason(await client.get("/apis")) == (401, "Unauthorized")
    client.token = None
    for path in ("/livez", "/readyz", "/healthz"):
        assert (await client.get(path)).body == b"ok"
    assert (await client.get("/version")).json["major"] == "1"


async def test_requests_beyond_the_permissions_of_a_token_are_forbidden(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    rule = Rule(verbs=frozenset({"get", "list"}), resources=frozenset({"projects"}))
    client.token = sandbox.token("reader", rules=[rule])
    assert (await client.get(PROJECTS)).names == ["alpha"]
    for refused in (
        await client.get(PROJECTS, watch="1"),
        await client.get(CONTROL_PLANES),
        await client.call("DELETE", f"{PROJECTS}/alpha"),
        await client.call("PATCH", f"{PROJECTS}/alpha/status", {}),
    ):
        assert reason(refused) == (403, "Forbidden")
        assert 'User "reader" cannot' in refused.json["message"]


async def test_access_reviews_are_answered(client: Client, sandbox: Sandbox) -> None:
    rule = Rule(verbs=frozenset({"list"}), resources=frozenset({"projects"}))
    client.token = sandbox.token("reader", rules=[rule])
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    for verb, allowed in (("list", True), ("delete", False)):
        attributes = {"verb": verb, "group": "resourcemanager.miloapis.com", "resource": "projects"}
        asked = await client.call("POST", reviews, {"spec": {"resourceAttributes": attributes}})
        assert (asked.status, asked.json["status"]["allowed"]) == (201, allowed)
    path = {"spec": {"nonResourceAttributes": {"path": "/metrics", "verb": "get"}}}
    assert (await client.call("POST", reviews, path)).json["status"]["allowed"] is False
    assert reason(await client.call("POST", reviews, {})) == (400, "BadRequest")
    assert reason(await client.get(reviews)) == (405, "MethodNotAllowed")
    rules = await client.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {})
    assert rules.json["status"]["resourceRules"] == [{"verbs": ["list"], "apiGroups": ["*"], "resources": ["projects"]}]
    who = await client.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    assert who.json["status"]["userInfo"]["username"] == "reader"


async def test_discovery_documents_list_resources_of_each_group(client: Client) -> None:
    assert (await client.get("/api")).json["versions"] == ["v1"]
    groups = {
        group["name"]: group["preferredVersion"]["groupVersion"] for group in (await client.get("/apis")).json["groups"]
    }
    assert groups["resourcemanager.miloapis.com"] == "resourcemanager.miloapis.com/v1alpha1"
    for name, group_version in groups.items():
        assert (await client.get(f"/apis/{name}")).json["name"] == name
        listed = (await client.get(f"/apis/{group_version}")).json["resources"]
        assert listed
    assert (await client.get("/apis/nothing")).status == 404


async def test_openapi_documents_describe_every_kind(client: Client) -> None:
    index = (await client.get("/openapi/v3")).json["paths"]
    kinds = set()
    for entry in index.values():
        path, _, query = entry["serverRelativeURL"].partition("?")
        document = (await client.get(path, hash=query.removeprefix("hash="))).json
        for schema in document["components"]["schemas"].values():
            kinds |= {kind["kind"] for kind in schema.get("x-kubernetes-group-version-kind", ())}
    milo = {"Project", "ProjectControlPlane", "ProjectSuspension", "CustomResourceDefinition"}
    assert kinds == milo | {"Namespace", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}
    assert (await client.get("/openapi/v2")).json["swagger"] == "2.0"
    assert (await client.get("/openapi/v3/apis/nothing/v1")).status == 404
