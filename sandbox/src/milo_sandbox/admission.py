"""Admission of writes: validation, defaults and preconditions, before the store changes."""

from contextvars import ContextVar
from enum import Enum, auto

import msgspec

from milo_sandbox import metadata, refusals, schema
from milo_sandbox.records import SandboxRecord
from milo_sandbox.resources import Cause, Document, ResourceDefinition


class Part(Enum):
    """The part of an object that a write may change: the status, or everything else."""

    MAIN = auto()
    STATUS = auto()


class Preconditions(msgspec.Struct, frozen=True):
    """Preconditions of a deletion."""

    uid: str = ""
    version: str = ""


def enveloped(resource: ResourceDefinition, document: Document, namespace: str) -> Document:
    """Return a copy with this resource's apiVersion and kind, and metadata without nulls, or raise RefusalError."""
    given = document.get("metadata", {})
    if not isinstance(given, dict):
        raise refusals.bad_request("metadata must be a JSON object")
    kind = document.get("kind", resource.kind)
    if resource.is_custom and kind != resource.kind:
        cause = Cause(
            reason="FieldValueInvalid", message=f'Invalid value: "{kind}": must be {resource.kind}', field="kind"
        )
        raise refusals.invalid(resource, str(given.get("name", "")), [cause], kind=str(kind))
    for field, right in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if document.get(field, right) != right:
            raise refusals.bad_request(
                f"{field} in the data ({document[field]}) does not match the expected {field} ({right})"
            )
    if (given.get("namespace") or namespace) != namespace:
        raise refusals.bad_request(
            f"the namespace of the provided object does not match the namespace sent on the request: {namespace!r}"
        )
    rest = {key: value for key, value in document.items() if key not in {"apiVersion", "kind", "metadata"}}
    # A null is the same as an absent field.
    kept = {key: value for key, value in given.items() if value is not None}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": kept, **rest}


WARNINGS: ContextVar[list[str]] = ContextVar("WARNINGS")
"""The warnings about the write of the current request."""


def validate(resource: ResourceDefinition, document: Document, *, strict: bool) -> None:
    """Prune unknown fields, set defaults, and validate. Unknown fields cause warnings, or an error if `strict`."""
    resource.prepare(document)
    unknown = schema.prune(document, resource.schema)
    WARNINGS.get([]).extend(f'unknown field "{path}"' for path in unknown)
    if unknown and strict:
        named = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise refusals.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {named}"
        )
    schema.fill(document, resource.schema)
    causes = [
        *metadata.violations(document["metadata"], resource),
        *schema.violations(document, resource.schema),
    ] or list(resource.violations(document))
    if causes:
        raise refusals.invalid(resource, str(document["metadata"].get("name", "")), causes)


def check_identity(resource: ResourceDefinition, before: SandboxRecord, given: Document) -> None:
    if given.get("name", before.name) != before.name:
        raise refusals.bad_request(
            f"the name of the object ({given['name']}) does not match the name on the URL ({before.name})"
        )
    if given.get("uid", before.uid) != before.uid:
        why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {before.uid}"
        raise refusals.conflict(resource, before.name, why)
    if given.get("resourceVersion", str(before.version)) not in {str(before.version), "", "0"}:
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise refusals.conflict(resource, before.name, why)


def check_preconditions(preconditions: Preconditions, resource: ResourceDefinition, before: SandboxRecord) -> None:
    for what, wanted, found in (
        ("UID", preconditions.uid, before.uid),
        ("ResourceVersion", preconditions.version, str(before.version)),
    ):
        if wanted and wanted != found:
            why = f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            raise refusals.conflict(resource, before.name, why)


def combined(resource: ResourceDefinition, current: Document, wanted: Document, part: Part) -> Document:
    """Return the object after a write: `current`, with the part that the write may change taken from `wanted`."""
    if part is Part.STATUS:
        after = {key: value for key, value in current.items() if key != "status"}
        return after | {"status": wanted["status"]} if wanted.get("status") is not None else after
    server_owned = {key: value for key, value in current["metadata"].items() if key not in metadata.WRITABLE}
    written = {key: wanted["metadata"][key] for key in metadata.WRITABLE if wanted["metadata"].get(key)}
    after = {**wanted, "metadata": server_owned | written}
    if not resource.has_status and resource.is_custom:
        return after
    after.pop("status", None)
    return after | {"status": current["status"]} if "status" in current else after


def intent(resource: ResourceDefinition, document: Document) -> Document:
    """Return the fields whose changes increment the generation."""
    uncounted = {"metadata", "status"} if resource.has_status else {"metadata"}
    return {key: value for key, value in document.items() if key not in uncounted}


def refuse_new_finalizers(resource: ResourceDefinition, current: Document, after: Document) -> None:
    held = current["metadata"].get("finalizers", ())
    fresh = [name for name in after["metadata"].get("finalizers", ()) if name not in held]
    if fresh:
        cause = Cause(
            reason="FieldValueForbidden",
            message="Forbidden: no new finalizers can be added if the object is being deleted, "
            f"found new finalizers {fresh}",
            field="metadata.finalizers",
        )
        raise refusals.invalid(resource, current["metadata"]["name"], [cause])
