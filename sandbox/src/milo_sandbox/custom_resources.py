"""The resource CustomResourceDefinition, with some of an API server's validation."""

import json
from collections.abc import Iterator

from milo_sandbox.resources import OPEN, Cause, Column, Document, ResourceDefinition


def _violations(definition: Document) -> Iterator[Cause]:
    """Return the violations of a definition that its schema does not detect."""
    spec = definition["spec"]
    name = definition["metadata"].get("name", "")
    if name != f"{spec['names']['plural']}.{spec['group']}":
        yield _invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    if sum(1 for version in spec["versions"] if version["storage"]) != 1:
        names = [version["name"] for version in spec["versions"]]
        yield _invalid("spec.versions", names, "must have exactly one version marked as storage version")
    for i, version in enumerate(spec["versions"]):
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if not isinstance(schema, dict):
            field = f"spec.versions[{i}].schema.openAPIV3Schema"
            yield Cause(reason="FieldValueRequired", message="Required value: schemas are required", field=field)


def _invalid(field: str, value: object, why: str) -> Cause:
    return Cause(reason="FieldValueInvalid", message=f"Invalid value: {json.dumps(value)}: {why}", field=field)


CUSTOM_RESOURCE_DEFINITIONS = ResourceDefinition(
    group="apiextensions.k8s.io",
    version="v1",
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
    singular="customresourcedefinition",
    short_names=("crd", "crds"),
    has_status=True,
    counts_generations=True,
    schema={
        "type": "object",
        "description": "A kind of objects that the server stores.",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["group", "names", "scope", "versions"],
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {
                    "group": {"type": "string", "minLength": 1},
                    "scope": {"type": "string", "enum": ["Cluster", "Namespaced"]},
                    "names": {
                        "type": "object",
                        "required": ["kind", "plural"],
                        "x-kubernetes-preserve-unknown-fields": True,
                        "properties": {"kind": {"type": "string"}, "plural": {"type": "string"}},
                    },
                    "versions": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "served", "storage"],
                            "x-kubernetes-preserve-unknown-fields": True,
                            "properties": {
                                "name": {"type": "string"},
                                "served": {"type": "boolean"},
                                "storage": {"type": "boolean"},
                            },
                        },
                    },
                },
            },
            "status": OPEN,
        },
    },
    columns=(
        Column(name="Name", path=("metadata", "name")),
        Column(name="Created At", path=("metadata", "creationTimestamp")),
    ),
    violations=_violations,
)
