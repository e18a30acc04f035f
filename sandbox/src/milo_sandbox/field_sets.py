"""Sets of an object's fields, in the form of `managedFields`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from milo_sandbox.records import decode, encode
from milo_sandbox.resources import Document

Path = tuple[str, ...]
"""The path of a field: steps of the form `f:NAME`, `k:{KEYS OF A LIST ENTRY}` or `v:VALUE OF A LIST ENTRY`."""
Fields = frozenset[Path]

ITSELF = "."
METADATA_SCHEMA: Document = {
    "type": "object",
    "properties": {
        "labels": {"type": "object"},
        "annotations": {"type": "object"},
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set"},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object", "x-kubernetes-map-type": "atomic"},
        },
    },
}


def child(schema: Document, name: str) -> Document:
    """Return the schema of an object's field."""
    values = schema.get("additionalProperties")
    known: Document = schema.get("properties", {}).get(name, values if isinstance(values, dict) else {})
    return known


def is_granular(value: Any, schema: Document) -> bool:
    """Return whether the parts of a value are owned separately."""
    if isinstance(value, dict):
        return schema.get("x-kubernetes-map-type") != "atomic"
    return isinstance(value, list) and schema.get("x-kubernetes-list-type") in {"map", "set"}


def entries(value: Any, schema: Document) -> Iterator[tuple[str, Any, Document]]:
    """Return the parts of a granular value: the step to each, the part, and its schema."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield f"f:{name}", part, child(schema, name)
        return
    items = schema.get("items", {})
    for part in value:
        yield list_step(part, schema), part, items


def list_step(entry: Any, schema: Document) -> str:
    """Return the step to an entry of a list."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys is None or not isinstance(entry, dict):
        return f"v:{encode(entry).decode()}"
    defaults = schema.get("items", {}).get("properties", {})
    named = {key: entry.get(key, defaults.get(key, {}).get("default")) for key in sorted(keys)}
    return f"k:{encode(named).decode()}"


def values_at(value: Any, schema: Document) -> dict[Path, Any]:
    """Return the fields that can have owners, with their values: scalars, atomic values, empty maps and list entries.

    The value of an entry of a set is None: the step to the entry contains it. The value of a map in a list is None too,
    and its fields are listed separately, unless the map is atomic.
    """
    return dict(_values(value, schema, ())) if value != {} else {}


def _values(value: Any, schema: Document, path: Path) -> Iterator[tuple[Path, Any]]:
    if not is_granular(value, schema) or value == {}:
        yield path, value
        return
    for step, part, its_schema in entries(value, schema):
        inner = (*path, step)
        if step.startswith("v:"):
            yield inner, None
            continue
        if step.startswith("k:"):
            yield inner, None if is_granular(part, its_schema) else part
        if is_granular(part, its_schema) or step.startswith("f:"):
            yield from _values(part, its_schema, inner)


def to_document(fields: Iterable[Path]) -> Document:
    """Return a set of fields in the form `fieldsV1`."""
    document: Document = {}
    for path in sorted(fields):
        at = document
        for step in path:
            at = at.setdefault(step, {})
        if path[-1].startswith("k:"):
            at.setdefault(ITSELF, {})
    return document


def from_document(document: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Yield the fields of a set in the form `fieldsV1`."""
    for step, below in document.items():
        if step == ITSELF:
            yield path
        elif below:
            yield from from_document(below, (*path, step))
        else:
            yield (*path, step)


def pretty(path: Path) -> str:
    """Format a field as in error messages: `.spec.ports[port=80].name`."""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += (
                "[" + ",".join(f"{key}={encode(value).decode()}" for key, value in decode(rest.encode()).items()) + "]"
            )
        else:
            text += f"[={rest}]"
    return text
