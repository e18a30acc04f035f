"""CustomResourceDefinition, and the resource that one defines: its storage version, and no other."""

import re
from collections.abc import Iterator, Sequence

from milo_sandbox.refusals import Cause
from milo_sandbox.resources import OPEN, Column, Document, ResourceDefinition

_CONDITION_CELL = re.compile(r"""\.status\.conditions\[\?\(@\.type\s*==\s*["'](\w+)["']\)\]\.status""")
_PLAIN_PATH = re.compile(r"(\.[A-Za-z0-9_-]+)+")


def _violations(definition: Document) -> Iterator[Cause]:
    """Return the violations of a definition that its schema does not detect."""
    spec = definition["spec"]
    name = f"{spec['names']['plural']}.{spec['group']}"
    if definition["metadata"].get("name") != name:
        yield _invalid("metadata.name", f'must be spec.names.plural+"."+spec.group: {name}')
    if sum(1 for each in spec["versions"] if each["storage"]) != 1:
        yield _invalid("spec.versions", "must have exactly one version marked as storage version")
    for i, each in enumerate(spec["versions"]):
        schema = each.get("schema", {}).get("openAPIV3Schema")
        if not isinstance(schema, dict):
            field = f"spec.versions[{i}].schema.openAPIV3Schema"
            yield Cause(reason="FieldValueRequired", message="Required value: schemas are required", field=field)


def _invalid(field: str, why: str) -> Cause:
    return Cause(reason="FieldValueInvalid", message=f"Invalid value: {why}", field=field)


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


def resource_of(definition: Document) -> ResourceDefinition:
    """Return the resource of a valid definition."""
    spec = definition["spec"]
    names = spec["names"]
    version = next(each for each in spec["versions"] if each["storage"])
    return ResourceDefinition(
        group=spec["group"],
        version=version["name"],
        kind=names["kind"],
        plural=names["plural"],
        singular=names.get("singular") or names["kind"].lower(),
        short_names=tuple(names.get("shortNames") or ()),
        namespaced=spec["scope"] == "Namespaced",
        schema=version["schema"]["openAPIV3Schema"],
        has_status="status" in (version.get("subresources") or {}),
        counts_generations=True,
        columns=tuple(_columns(version.get("additionalPrinterColumns") or ())),
        selectable_fields=tuple(each["jsonPath"].removeprefix(".") for each in version.get("selectableFields") or ()),
    )


def _columns(given: Sequence[Document]) -> Iterator[Column]:
    yield Column(name="Name", path=("metadata", "name"))
    for each in given:
        path, wide = each["jsonPath"], bool(each.get("priority"))
        description = each.get("description", "")
        if found := _CONDITION_CELL.fullmatch(path):
            yield Column(name=each["name"], condition=found[1], wide=wide, description=description)
        elif _PLAIN_PATH.fullmatch(path):
            steps = tuple(path.split(".")[1:])
            yield Column(name=each["name"], path=steps, type=each["type"], wide=wide, description=description)
    if not given:
        yield Column(name="Age", path=("metadata", "creationTimestamp"), type="date")
