"""Field ownership and server-side apply.

Owners are tracked per field as in the API server; for lists, according to `x-kubernetes-list-type`. Not supported: a
client's own changes of `managedFields`, and objects in several versions.
"""

from copy import deepcopy
from typing import Any

import msgspec

from milo_sandbox import field_sets, refusals
from milo_sandbox.admission import Part
from milo_sandbox.field_sets import Fields, Path
from milo_sandbox.resources import Cause, Document, ResourceDefinition

APPLY = "Apply"
UPDATE = "Update"
_MISSING = object()


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """A field manager and its operation."""

    name: str
    operation: str = UPDATE
    subresource: str = ""


Owners = dict[Writer, Fields]


def owners_of(document: Document) -> Owners:
    """Return the owners of an object's fields."""
    return {
        Writer(
            name=entry["manager"], operation=entry["operation"], subresource=entry.get("subresource", "")
        ): frozenset(field_sets.from_document(entry["fieldsV1"]))
        for entry in document["metadata"].get("managedFields", ())
    }


def _with_owners(resource: ResourceDefinition, document: Document, owners: Owners, now: str) -> Document:
    """Return the object with `managedFields`. An entry that is unchanged keeps its time."""
    before = owners_of(document)
    times = {
        writer: entry["time"]
        for writer, entry in zip(before, document["metadata"].get("managedFields", ()), strict=True)
        if owners.get(writer) == before[writer]
    }
    entries = [
        {
            "manager": writer.name,
            "operation": writer.operation,
            "apiVersion": resource.api_version,
            "time": times.get(writer, now),
            "fieldsType": "FieldsV1",
            "fieldsV1": field_sets.to_document(fields),
            **({"subresource": writer.subresource} if writer.subresource else {}),
        }
        for writer, fields in owners.items()
        if fields
    ]
    metadata = {key: value for key, value in document["metadata"].items() if key != "managedFields"}
    return document | {"metadata": metadata | ({"managedFields": entries} if entries else {})}


def create(resource: ResourceDefinition, born: Document, given: Document, writer: Writer, now: str) -> Document:
    """Return a new object with its owner: the writer owns the fields that it set."""
    fields = frozenset(field_sets.values_at(_owned(given), _schema(resource)))
    return _with_owners(resource, born, {writer: fields}, now)


def update(resource: ResourceDefinition, before: Document, after: Document, writer: Writer, now: str) -> Document:
    """Return an object with its owners after a write other than apply: the writer owns the fields that it changed."""
    schema = _schema(resource)
    old = field_sets.values_at(_owned(before), schema)
    new = field_sets.values_at(_owned(after), schema)
    changed = {path for path, value in new.items() if old.get(path, _MISSING) != value}
    removed = old.keys() - new.keys()
    owners = {
        owner: fields - removed - (frozenset() if owner == writer else changed)
        for owner, fields in owners_of(before).items()
    }
    owners[writer] = frozenset((owners.get(writer, frozenset()) | changed) - removed)
    return _with_owners(resource, after, owners, now)


def apply(
    resource: ResourceDefinition,
    live: Document,
    applied: Document,
    writer: Writer,
    *,
    part: Part,
    force: bool,
    now: str,
) -> Document:
    """Return the live object with the applied fields and its owners. Without `force`, conflicts are refused."""
    schema = _schema(resource)
    wanted = _part_of(resource, applied, part)
    current = _owned(live)
    values = field_sets.values_at(wanted, schema) if wanted else {}
    fields = frozenset(values)
    owners = owners_of(live)
    held = field_sets.values_at(current, schema)
    conflicts = {
        other: {path for path in owned & fields if held.get(path, _MISSING) != values[path]}
        for other, owned in owners.items()
        if other != writer
    }
    if any(conflicts.values()) and not force:
        raise _conflict(conflicts)
    others = {other: owned - conflicts[other] for other, owned in owners.items() if other != writer}
    result = _merge(current, wanted, schema)
    still_owned = frozenset().union(*others.values()) | fields
    given_up = owners.get(writer, frozenset()) - fields
    for path in sorted(given_up, key=len):
        # A field is kept while any manager owns it, or a part of it.
        if not any(owned_path[: len(path)] == path for owned_path in still_owned):
            _remove(result, path, schema)
    metadata = {
        key: value for key, value in live["metadata"].items() if key not in field_sets.METADATA_SCHEMA["properties"]
    }
    identity = {key: value for key, value in applied["metadata"].items() if key in {"uid", "resourceVersion"}}
    envelope = {"apiVersion": live["apiVersion"], "kind": live["kind"]}
    result["metadata"] = metadata | result.get("metadata", {}) | identity
    return _with_owners(resource, envelope | result, {**others, writer: fields}, now)


def _schema(resource: ResourceDefinition) -> Document:
    properties = {**resource.schema.get("properties", {}), "metadata": field_sets.METADATA_SCHEMA}
    return {**resource.schema, "properties": properties}


def _owned(document: Document) -> Document:
    """Return the part of an object whose fields can have owners."""
    kept = field_sets.METADATA_SCHEMA["properties"]
    metadata = {key: value for key, value in document.get("metadata", {}).items() if key in kept and value}
    rest = {key: value for key, value in document.items() if key not in {"apiVersion", "kind", "metadata"}}
    return deepcopy(rest | ({"metadata": metadata} if metadata else {}))


def _part_of(resource: ResourceDefinition, applied: Document, part: Part) -> Document:
    owned = _owned(applied)
    if part is Part.STATUS:
        return {"status": owned["status"]} if "status" in owned else {}
    return {key: value for key, value in owned.items() if key != "status" or not resource.has_status}


def _merge(live: Any, applied: Any, schema: Document) -> Any:
    if not field_sets.is_granular(applied, schema) or type(live) is not type(applied):
        return deepcopy(applied)
    if isinstance(applied, dict):
        merged = {
            name: _merge(live[name], value, field_sets.child(schema, name)) if name in live else deepcopy(value)
            for name, value in applied.items()
        }
        return live | merged
    result = list(live)
    places = {field_sets.list_step(entry, schema): i for i, entry in enumerate(result)}
    for step, entry, its_schema in field_sets.entries(applied, schema):
        if step in places:
            result[places[step]] = _merge(result[places[step]], entry, its_schema)
        else:
            result.append(deepcopy(entry))
    return result


def _remove(value: Any, path: Path, schema: Document) -> None:
    """Remove a field, and the parents that are empty afterwards."""
    step, rest = path[0], path[1:]
    if isinstance(value, dict):
        name = step.removeprefix("f:")
        if name not in value:
            return
        if rest:
            _remove(value[name], rest, field_sets.child(schema, name))
        if not rest or value[name] in ({}, []):
            del value[name]
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            if field_sets.list_step(entry, schema) == step:
                if not rest:
                    del value[i]
                elif rest[0].removeprefix("f:") not in schema.get("x-kubernetes-list-map-keys", ()):
                    _remove(entry, rest, schema.get("items", {}))
                return


def _conflict(conflicts: dict[Writer, set[Path]]) -> refusals.RefusalError:
    causes = [
        Cause(reason="FieldManagerConflict", message=f'conflict with "{other.name}"', field=field_sets.pretty(path))
        for other, paths in conflicts.items()
        for path in sorted(paths)
    ]
    return refusals.apply_conflict(causes)
