"""A CustomResourceDefinition and its objects, in the control plane of a project."""

from typing import Any

from tests.integration.sandbox.client import PROJECTS, Answer, Client

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/default/widgets"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
CONDITION = {"type": "Ready", "status": "True"}


def behind(path: str, project: str = "alpha") -> str:
    return f"{PROJECTS}/{project}/control-plane{path}"


def definition(**version: Any) -> dict[str, Any]:
    conditions = {
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string"}, "status": {"type": "string"}},
        },
    }
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "color": {"type": "string", "default": "blue"},
            "port": {"x-kubernetes-int-or-string": True},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "maxItems": 3},
        },
    }
    status = {"type": "object", "properties": {"conditions": conditions, "note": {"type": "string"}}}
    served = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {"metadata": {"type": "object"}, "spec": spec, "status": status},
            }
        },
        **version,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "shortNames": ["wd"]},
            "versions": [served],
        },
    }


def widget(name: str = "one", spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": name, **metadata},
        "spec": spec or {"size": 1},
    }


def owned_by(owner: dict[str, Any], *, blocks: bool = False) -> dict[str, Any]:
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
    return reference | ({"blockOwnerDeletion": True} if blocks else {})


async def define(client: Client, **version: Any) -> Answer:
    return await client.call("POST", behind(DEFINITIONS), definition(**version))


async def create(client: Client, path: str, document: dict[str, Any]) -> dict[str, Any]:
    answer = await client.call("POST", behind(path), document)
    assert answer.status == 201, answer.body
    created: dict[str, Any] = answer.json
    return created
