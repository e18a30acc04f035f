"""The schemas as OpenAPI documents, for `kubectl explain` and validation by kubectl."""

from collections.abc import Sequence
from hashlib import sha256

from milo_sandbox import refusals
from milo_sandbox.records import encode
from milo_sandbox.resources import Document, ResourceDefinition

_ACTIONS = {
    "items": (("get", "list"), ("post", "post"), ("delete", "deletecollection")),
    "item": (("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")),
}
_INFO = {"title": "milo sandbox", "version": "v1.35.0"}
_METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def document(segments: Sequence[str], resources: Sequence[ResourceDefinition]) -> Document:
    """Return the document of a path below /openapi. Raises PlainError for another path."""
    by_group_version = {
        _path(resource): [other for other in resources if _path(other) == _path(resource)] for resource in resources
    }
    match segments:
        case ("openapi", "v2"):
            return {
                "swagger": "2.0",
                "info": _INFO,
                "paths": _paths(resources),
                "definitions": _schemas(resources, "#/definitions/"),
            }
        case ("openapi", "v3"):
            return {
                "paths": {path: {"serverRelativeURL": _url(path, served)} for path, served in by_group_version.items()}
            }
        case ("openapi", "v3", *rest) if "/".join(rest) in by_group_version:
            return _v3(by_group_version["/".join(rest)])
    raise refusals.no_such_path()


def _path(resource: ResourceDefinition) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"


def _url(path: str, resources: Sequence[ResourceDefinition]) -> str:
    # Clients cache a document by its hash.
    return f"/openapi/v3/{path}?hash={sha256(encode(_v3(resources))).hexdigest()[:32].upper()}"


def _v3(resources: Sequence[ResourceDefinition]) -> Document:
    return {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": _paths(resources),
        "components": {"schemas": _schemas(resources, "#/components/schemas/")},
    }


def _paths(resources: Sequence[ResourceDefinition]) -> Document:
    paths: Document = {}
    for resource in resources:
        inside = "/namespaces/{namespace}" if resource.namespaced else ""
        items = f"/{_path(resource)}{inside}/{resource.plural}"
        paths[items] = _operations(resource, "items")
        paths[items + "/{name}"] = _operations(resource, "item")
        if resource.has_status:
            paths[items + "/{name}/status"] = _operations(resource, "item")
    return paths


def _operations(resource: ResourceDefinition, which: str) -> Document:
    return {
        method: {
            "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _parameters(action)],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _kind(resource),
        }
        for method, action in _ACTIONS[which]
    }


def _parameters(action: str) -> tuple[str, ...]:
    # kubectl requires these two for server-side validation.
    return ("dryRun", "fieldValidation") if action in {"post", "put", "patch"} else ()


def _schemas(resources: Sequence[ResourceDefinition], reference: str) -> Document:
    schemas: Document = {
        _METADATA: {
            "type": "object",
            "description": "The metadata of every object.",
            "properties": {
                **{
                    name: {"type": "string"} for name in ("name", "generateName", "namespace", "uid", "resourceVersion")
                },
                **{
                    name: {"type": "string", "format": "date-time"}
                    for name in ("creationTimestamp", "deletionTimestamp")
                },
                **{
                    name: {"type": "integer", "format": "int64"}
                    for name in ("generation", "deletionGracePeriodSeconds")
                },
                **{
                    name: {"type": "object", "additionalProperties": {"type": "string"}}
                    for name in ("labels", "annotations")
                },
                "finalizers": {"type": "array", "items": {"type": "string"}},
                "ownerReferences": {"type": "array", "items": {"type": "object"}},
                "managedFields": {"type": "array", "items": {"type": "object"}},
            },
        }
    }
    for resource in resources:
        envelope = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": reference + _METADATA},
        }
        reversed_group = ".".join(reversed(resource.group.split("."))) if resource.group else "io.k8s.api.core"
        schemas[f"{reversed_group}.{resource.version}.{resource.kind}"] = {
            **resource.schema,
            "properties": {**envelope, **resource.schema.get("properties", {})},
            "x-kubernetes-group-version-kind": [_kind(resource)],
        }
    return schemas


def _kind(resource: ResourceDefinition) -> Document:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}
