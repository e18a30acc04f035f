"""The API of a project's control plane."""

from milo_sandbox import Sandbox
from tests.integration.sandbox.client import PROJECTS, Client
from tests.integration.sandbox.widgets import DEFINITIONS, definition


def behind(project: str, path: str = "") -> str:
    return f"{PROJECTS}/{project}/control-plane{path}"


CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


async def test_control_plane_serves_health_and_discovery(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    for path in ("/livez", "/readyz"):
        assert (await client.get(behind("alpha", path))).body == b"ok"
    assert (await client.get(behind("alpha", "/version"))).json["gitVersion"]
    assert (await client.get(behind("alpha", "/api"))).json["versions"] == ["v1"]
    resources = (await client.get(behind("alpha", "/api/v1"))).json["resources"]
    assert {each["name"] for each in resources} == {"namespaces", "configmaps", "secrets", "events"}
    assert (await client.get(behind("alpha", "/api/v1/namespaces"))).names == ["default", "milo-system"]


async def test_control_plane_separates_namespaces(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    for namespace in ("default", "milo-system"):
        path = behind("alpha", f"/api/v1/namespaces/{namespace}/configmaps")
        await client.call("POST", path, {"metadata": {"name": f"in-{namespace}"}})
        assert (await client.get(path)).names == [f"in-{namespace}"]
    everywhere = await client.get(behind("alpha", "/api/v1/configmaps"))
    assert everywhere.names == ["in-default", "in-milo-system"]
    assert (await client.call("POST", behind("alpha", "/api/v1/configmaps"), {})).status == 405


async def test_control_plane_is_separate_per_project(client: Client, sandbox: Sandbox) -> None:
    for name in ("alpha", "beta"):
        sandbox.projects.create(name)
    await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "one"}})
    assert (await client.get(behind("beta", CONFIG_MAPS))).names == []


async def test_recreated_project_keeps_cluster_scoped_objects_and_its_default_namespace(
    client: Client, sandbox: Sandbox
) -> None:
    namespaces = behind("alpha", "/api/v1/namespaces")
    sandbox.projects.create("alpha")
    await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "one"}})
    await client.call("POST", behind("alpha", DEFINITIONS), definition())
    before = (await client.get(f"{namespaces}/default")).json["metadata"]["uid"]
    sandbox.projects.delete("alpha")
    assert (await client.get(behind("alpha", CONFIG_MAPS))).names == []
    assert (await client.get(namespaces)).names == ["default"]
    sandbox.projects.create("alpha")
    assert (await client.get(namespaces)).names == ["default"]
    assert (await client.get(f"{namespaces}/default")).json["metadata"]["uid"] == before
    assert (await client.get(behind("alpha", DEFINITIONS))).names == ["widgets.example.com"]


async def test_name_without_a_project_answers_and_stores(client: Client, sandbox: Sandbox) -> None:
    assert (await client.get(behind("alpha", "/readyz"))).status == 200
    assert (await client.get(behind("alpha", "/api/v1/namespaces"))).names == ["milo-system"]
    maps = "/api/v1/namespaces/milo-system/configmaps"
    assert (await client.call("POST", behind("alpha", maps), {"metadata": {"name": "early"}})).status == 201
    sandbox.projects.create("alpha")
    assert (await client.get(behind("alpha", maps))).names == ["early"]


async def test_suspended_project_refuses_to_create_and_to_change_objects(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "one"}})
    sandbox.milo.suspend("alpha", "Billing")
    assert (await client.get(behind("alpha", CONFIG_MAPS))).names == ["one"]
    refused = await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "two"}})
    assert (refused.status, refused.json["reason"]) == (403, "Forbidden")
    assert refused.json["details"]["causes"][0]["reason"] == "ProjectSuspended"
    for method in ("PUT", "PATCH"):
        assert (await client.call(method, behind("alpha", f"{CONFIG_MAPS}/one"), {"data": {}})).status == 403
    review = {"spec": {"resourceAttributes": {"verb": "get", "resource": "configmaps"}}}
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await client.call("POST", behind("alpha", reviews), review)).status == 201
    assert (await client.call("DELETE", behind("alpha", f"{CONFIG_MAPS}/one"))).status == 200
    sandbox.milo.reinstate("alpha")
    assert (await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "two"}})).status == 201


async def test_terminating_object_of_a_suspended_project_can_be_changed(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    one = {"metadata": {"name": "one", "finalizers": ["example.com/hold"]}}
    await client.call("POST", behind("alpha", CONFIG_MAPS), one)
    sandbox.milo.suspend("alpha", "Billing")
    await client.call("DELETE", behind("alpha", f"{CONFIG_MAPS}/one"))
    ended = await client.call("PATCH", behind("alpha", f"{CONFIG_MAPS}/one"), {"metadata": {"finalizers": None}})
    assert ended.status == 200
    assert (await client.get(behind("alpha", CONFIG_MAPS))).names == []


async def test_control_plane_of_a_terminating_project_still_answers(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", finalizers=["example.com/hold"])
    sandbox.projects.delete("alpha")
    assert (await client.get(behind("alpha", "/readyz"))).status == 200


async def test_control_plane_fault_affects_one_project(client: Client, sandbox: Sandbox) -> None:
    for name in ("alpha", "beta"):
        sandbox.projects.create(name)
    sandbox.faults.unreachable("alpha")
    assert (await client.get(behind("alpha", "/readyz"))).status == 503
    assert (await client.get(behind("beta", "/readyz"))).status == 200
    assert (await client.get(f"{PROJECTS}/alpha")).status == 200


async def test_control_plane_requires_a_token(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    client.token = None
    assert (await client.get(behind("alpha", CONFIG_MAPS))).status == 401
    assert (await client.get(behind("alpha", "/readyz"))).status == 200
