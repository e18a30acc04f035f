"""The API of a project's control plane."""

from collections.abc import Callable

import aiohttp
import pytest

from milo_sandbox import Features, Sandbox
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from tests.integration.sandbox.client import PROJECTS, Client
from tests.integration.sandbox.widgets import DEFINITIONS, WIDGETS, definition, widget


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
    of_milo = {"namespaces", "configmaps", "secrets", "events"}
    built_in = {"serviceaccounts", "pods", "services", "endpoints", "persistentvolumeclaims", "persistentvolumes"}
    built_in |= {"resourcequotas", "limitranges", "nodes"}
    assert {resource["name"] for resource in resources if "/" not in resource["name"]} == of_milo | built_in
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


async def test_names_of_roles_may_contain_colons(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", ready=True)
    roles = behind("alpha", "/apis/rbac.authorization.k8s.io/v1/clusterroles")
    answers = [
        (await client.call("POST", roles, {"metadata": {"name": name}, "rules": []})).status
        for name in ("system:auditor", "a/b", "..")
    ]
    assert answers == [201, 422, 422]
    assert (await client.get(f"{roles}/system:auditor")).json["metadata"]["name"] == "system:auditor"


async def test_crd_is_served_in_every_control_plane_and_at_the_root(client: Client, sandbox: Sandbox) -> None:
    for name in ("alpha", "beta"):
        sandbox.projects.create(name)
    assert (await client.get(behind("beta", WIDGETS))).status == 404
    assert (await client.call("POST", behind("alpha", DEFINITIONS), definition())).status == 201
    for path in (behind("beta", DEFINITIONS), DEFINITIONS):
        assert (await client.get(path)).names == ["widgets.example.com"]
    everywhere = "/apis/example.com/v1/widgets"
    for path in (behind("alpha", WIDGETS), behind("beta", WIDGETS), behind("later", everywhere), everywhere):
        assert (await client.get(path)).status == 200
    await client.call("POST", behind("beta", WIDGETS), widget(finalizers=["example.com/hold"]))
    await client.call("DELETE", behind("alpha", f"{DEFINITIONS}/widgets.example.com"))
    assert (await client.get(DEFINITIONS)).names == ["widgets.example.com"]
    await client.call("PATCH", behind("beta", f"{WIDGETS}/one"), {"metadata": {"finalizers": None}})
    for path in (behind("alpha", WIDGETS), behind("beta", WIDGETS), everywhere):
        assert (await client.get(path)).status == 404


async def test_crd_created_in_a_control_plane_is_served_at_the_root_and_in_all_control_planes(
    client: Client, sandbox: Sandbox
) -> None:
    for name in ("alpha", "beta"):
        sandbox.projects.create(name)
        sandbox.control_plane(name).create(CUSTOM_RESOURCE_DEFINITIONS, definition())
    assert (await client.get(DEFINITIONS)).names == ["widgets.example.com"]
    for path in (behind("alpha", WIDGETS), behind("beta", WIDGETS), "/apis/example.com/v1/widgets"):
        assert (await client.get(path)).status == 200
    sandbox.control_plane("alpha").discard(CUSTOM_RESOURCE_DEFINITIONS, "widgets.example.com")
    assert (await client.get(behind("beta", WIDGETS))).status == 200


async def test_control_plane_without_a_project_serves_and_stores_objects(client: Client, sandbox: Sandbox) -> None:
    assert (await client.get(behind("alpha", "/readyz"))).status == 200
    assert (await client.get(behind("alpha", "/api/v1/namespaces"))).names == []
    maps = "/api/v1/namespaces/tenant/configmaps"
    await client.call("POST", behind("alpha", "/api/v1/namespaces"), {"metadata": {"name": "tenant"}})
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


async def test_default_namespace_of_a_control_plane_cannot_be_deleted(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    refused = await client.call("DELETE", behind("alpha", "/api/v1/namespaces/default"))
    assert (refused.status, refused.json["reason"]) == (403, "Forbidden")
    assert refused.json["message"] == 'namespaces "default" is forbidden: this namespace may not be deleted'
    assert (await client.call("DELETE", behind("alpha", "/api/v1/namespaces/milo-system"))).status == 200


async def test_control_plane_serves_kinds_of_the_root_api_as_empty_lists(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    for path in (
        PROJECTS,
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        "/apis/iam.miloapis.com/v1alpha1/policybindings",
    ):
        assert (await client.get(behind("alpha", path))).names == []


async def test_unknown_fields_warn_unless_field_validation_is_ignore(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha")
    for name, wanted, warning in (
        ("one", "", '299 - "unknown field \\"dat\\""'),
        ("two", "?fieldValidation=Warn", '299 - "unknown field \\"dat\\""'),
        ("three", "?fieldValidation=Ignore", None),
    ):
        path = behind("alpha", f"{CONFIG_MAPS}{wanted}")
        answer = await client.call("POST", path, {"metadata": {"name": name}, "dat": {"a": "b"}})
        assert (answer.status, answer.headers.get("Warning")) == (201, warning)


async def test_refusal_for_a_suspended_project_names_the_object(client: Client, sandbox: Sandbox) -> None:
    sandbox.milo.found("alpha", "acme", {})
    await client.get(behind("alpha", CONFIG_MAPS))
    sandbox.milo.suspend("alpha", "Billing")
    refused = (await client.call("POST", behind("alpha", CONFIG_MAPS), {"metadata": {"name": "one"}})).json
    assert refused["message"].startswith('configmaps "one" is forbidden: project "alpha" is suspended')
    assert refused["details"]["name"] == "one"


async def test_conditions_have_the_observed_generation(client: Client, sandbox: Sandbox) -> None:
    sandbox.projects.create("alpha", ready=True)
    await client.call("PATCH", f"{PROJECTS}/alpha", {"spec": {"ownerRef": {"kind": "Organization", "name": "other"}}})
    sandbox.projects.set_condition("alpha", "False")
    project = (await client.get(f"{PROJECTS}/alpha")).json
    [condition] = project["status"]["conditions"]
    assert condition["observedGeneration"] == project["metadata"]["generation"]


async def test_events_proxy_serves_events_k8s_io_and_patches_no_event(connect: Callable[[Sandbox], Client]) -> None:
    async with Sandbox(features=Features(events_proxy=True), seed=1) as sandbox:
        client = connect(sandbox)
        sandbox.projects.create("alpha")
        for root in ("/api/v1", "/apis/events.k8s.io/v1"):
            path = behind("alpha", f"{root}/namespaces/default/events")
            event = {"metadata": {"name": "one"}, "reason": "Created"}
            assert (await client.call("POST", path, event)).status == 201
            assert (await client.call("PATCH", f"{path}/one", {"reason": "Patched"})).status == 404
            assert (await client.call("PUT", f"{path}/one", {**event, "reason": "Replaced"})).status == 200
            assert (await client.get(f"{path}/one")).json["reason"] == "Replaced"
            applied = {"Content-Type": "application/apply-patch+yaml"}
            with pytest.raises(aiohttp.ClientError):
                await client.call("PATCH", f"{path}/one", event, headers=applied, fieldManager="test")
