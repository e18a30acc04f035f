"""Structural schemas: pruning, defaulting and validation."""

import re
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from typing import Any

from milo_sandbox.refusals import Cause
from milo_sandbox.resources import Document

_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
# Validated by metadata.py.
_ENVELOPE = frozenset({"apiVersion", "kind", "metadata"})


def prune(value: Any, schema: Document, path: str = "") -> list[str]:
    """Remove unknown fields in place; return their paths, for strict validation."""
    if isinstance(value, list):
        items = schema.get("items", {})
        return [gone for i, item in enumerate(value) for gone in prune(item, items, f"{path}[{i}]")]
    if not isinstance(value, dict) or schema.get("type") != "object" or "additionalProperties" in schema:
        return []
    known = schema.get("properties", {})
    unknown = [name for name in value if name not in known and not (not path and name in _ENVELOPE)]
    gone = [_join(path, name) for name in unknown]
    for name in unknown:
        del value[name]
    for name, child in known.items():
        if name in value:
            gone += prune(value[name], child, _join(path, name))
    return gone


def fill(value: Any, schema: Document) -> None:
    """Set missing defaults in place, inside existing or defaulted values only."""
    if isinstance(value, list):
        for item in value:
            fill(item, schema.get("items", {}))
    elif isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = deepcopy(child["default"])
            if name in value:
                fill(value[name], child)


def violations(value: Any, schema: Document, path: str = "") -> Iterator[Cause]:
    """Return the violations of a value."""
    kind = schema.get("type")
    if kind is not None:
        # In Python a bool is an int, in a schema it is not.
        fits = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        if not fits:
            yield _invalid(path, value, f"must be of type {kind}", reason="FieldValueTypeInvalid")
            return
    if isinstance(value, dict):
        yield from _object_violations(value, schema, path)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{path}[{i}]")
    elif isinstance(value, str):
        yield from _string_violations(value, schema, path)
    elif "minimum" in schema and value < schema["minimum"]:
        yield _invalid(path, value, f"should be greater than or equal to {schema['minimum']}")


def _object_violations(value: Document, schema: Document, path: str) -> Iterator[Cause]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause(reason="FieldValueRequired", message="Required value", field=_join(path, name))
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", {})
    for name, item in value.items():
        if path or name not in _ENVELOPE:
            yield from violations(item, properties.get(name, rest), _join(path, name))


def _string_violations(value: str, schema: Document, path: str) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(f'"{item}"' for item in schema["enum"])
        yield Cause(
            reason="FieldValueNotSupported",
            message=f'Unsupported value: "{value}": supported values: {allowed}',
            field=path,
        )
    if len(value) < schema.get("minLength", 0):
        yield _invalid(path, value, f"should be at least {schema['minLength']} chars long")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield _invalid(path, value[:32] + "...", f"may not be longer than {schema['maxLength']}", "FieldValueTooLong")
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield _invalid(path, value, f"should match '{schema['pattern']}'")
    if schema.get("format") == "date-time" and not _is_time(value):
        yield _invalid(path, value, 'must be a time as RFC 3339 writes it, such as "2006-01-02T15:04:05Z"')


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None and "T" in text
    except ValueError:
        return False


def _invalid(path: str, value: Any, why: str, reason: str = "FieldValueInvalid") -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else type(value).__name__
    return Cause(reason=reason, message=f"Invalid value: {shown}: {why}", field=path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
