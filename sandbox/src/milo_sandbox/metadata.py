"""Object metadata: fields that clients may write, and valid names, labels, annotations and finalizers."""

import re
from collections.abc import Iterator
from typing import Any

from milo_sandbox.resources import Cause, Document, ResourceDefinition

WRITABLE = ("labels", "annotations", "finalizers", "ownerReferences")
"""Fields that a client may change; the server owns the others."""

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_QUALIFIED = re.compile(rf"(?:{_SUBDOMAIN}/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_ANNOTATIONS_LIMIT = 256 * 1024


def is_subdomain(name: str) -> bool:
    return len(name) <= 253 and re.fullmatch(_SUBDOMAIN, name) is not None


def is_label(name: str) -> bool:
    return re.fullmatch(_LABEL, name) is not None


def violations(metadata: Document, resource: ResourceDefinition) -> Iterator[Cause]:
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        yield Cause(
            reason="FieldValueRequired",
            message="Required value: name or generateName is required",
            field="metadata.name",
        )
    elif resource.group == "rbac.authorization.k8s.io":
        if name in {".", ".."} or re.search("[/%]", name):
            yield _invalid("metadata.name", name, "may not be '.' or '..', or contain '/' or '%'")
    elif not (is_label(name) if resource.name_is_label else is_subdomain(name)):
        form, allowed = ("label", " or '-'") if resource.name_is_label else ("subdomain", ", '-' or '.'")
        yield _invalid(
            "metadata.name",
            name,
            f"a lowercase RFC 1123 {form} must consist of lower case alphanumeric characters{allowed}, and must start "
            "and end with an alphanumeric character",
        )
    yield from _label_violations(metadata.get("labels", {}))
    yield from _annotation_violations(metadata.get("annotations", {}))
    yield from _finalizer_violations(metadata.get("finalizers", []))
    yield from _owner_violations(metadata.get("ownerReferences") or [])


def _finalizer_violations(finalizers: Any) -> Iterator[Cause]:
    if not isinstance(finalizers, list):
        yield _invalid("metadata.finalizers", finalizers, "must be a list of strings")
        return
    for finalizer in finalizers:
        if not isinstance(finalizer, str) or not _QUALIFIED.fullmatch(finalizer):
            yield _invalid(
                "metadata.finalizers", finalizer, "a finalizer must be a qualified name, such as example.com/hold"
            )


def _owner_violations(owners: Any) -> Iterator[Cause]:
    if not isinstance(owners, list) or not all(isinstance(owner, dict) for owner in owners):
        yield _invalid("metadata.ownerReferences", owners, "must be a list of references")
        return
    controllers = [f"{owner.get('kind')}/{owner.get('name')}" for owner in owners if owner.get("controller") is True]
    if len(controllers) > 1:
        yield _invalid(
            "metadata.ownerReferences",
            owners,
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0]} and {controllers[1]}",
        )


def _label_violations(labels: Any) -> Iterator[Cause]:
    for key, value in _strings(labels, "metadata.labels"):
        if isinstance(value, Cause):
            yield value
            continue
        if not _QUALIFIED.fullmatch(key):
            yield _invalid(
                "metadata.labels", key, "a label key must be a qualified name, such as example.com/tier or tier"
            )
        if not _LABEL_VALUE.fullmatch(value):
            yield _invalid(
                "metadata.labels",
                value,
                "a label value must be empty or have at most 63 alphanumeric characters, '-', '_' or '.', "
                "and start and end with an alphanumeric character",
            )


def _annotation_violations(annotations: Any) -> Iterator[Cause]:
    size = 0
    for key, value in _strings(annotations, "metadata.annotations"):
        if isinstance(value, Cause):
            yield value
            continue
        size += len(key) + len(value)
        if not _QUALIFIED.fullmatch(key.lower()):
            yield _invalid("metadata.annotations", key, "an annotation key must be a qualified name")
    if size > _ANNOTATIONS_LIMIT:
        yield Cause(
            reason="FieldValueTooLong",
            message=f"Too long: may not be more than {_ANNOTATIONS_LIMIT} bytes",
            field="metadata.annotations",
        )


def _strings(mapping: Any, field: str) -> Iterator[tuple[str, str | Cause]]:
    if not isinstance(mapping, dict):
        yield "", _invalid(field, mapping, "must be a mapping of strings")
        return
    for key, value in mapping.items():
        yield key, value if isinstance(value, str) else _invalid(f"{field}.{key}", value, "must be a string")


def _invalid(field: str, value: Any, why: str) -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return Cause(reason="FieldValueInvalid", message=f"Invalid value: {shown}: {why}", field=field)
