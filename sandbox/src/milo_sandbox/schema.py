"""Structural schemas: pruning, defaulting and validation.

Not evaluated, among others: allOf, anyOf, oneOf and not, CEL rules, and formats other than date-time.
"""

import re
from collections.abc import Iterable, Iterator, Sized
from copy import deepcopy
from datetime import datetime
from typing import Any

from milo_sandbox.resources import Cause, Document

_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
_PRESERVES = "x-kubernetes-preserve-unknown-fields"
_EMBEDDED = "x-kubernetes-embedded-resource"
_INT_OR_STRING = "x-kubernetes-int-or-string"
# Validated in admission.py and metadata.py.
_ENVELOPE = frozenset({"apiVersion", "kind", "metadata"})


def prune(value: Any, schema: Document, path: str = "") -> list[str]:
    """Remove unknown fields in place; return their paths, for warnings or an error."""
    if isinstance(value, list):
        items = schema.get("items", {})
        return [gone for i, item in enumerate(value) for gone in prune(item, items, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        return [gone for name, item in value.items() for gone in prune(item, values, _join(path, name))]
    keeps_all = bool(values or schema.get(_PRESERVES)) or schema.get("type") != "object"
    kept = frozenset() if path and not schema.get(_EMBEDDED) else _ENVELOPE
    unknown = [] if keeps_all else [name for name in value if name not in known and name not in kept]
    gone = [_join(path, name) for name in unknown]
    for name in unknown:
        del value[name]
    for name, child in known.items():
        if name in value and name not in kept:
            gone += prune(value[name], child, _join(path, name))
    return gone


def fill(value: Any, schema: Document) -> None:
    """Set missing defaults in place, inside existing or defaulted values only."""
    if isinstance(value, list):
        for item in value:
            fill(item, schema.get("items", {}))
    elif isinstance(value, dict):
        values = schema.get("additionalProperties")
        if isinstance(values, dict):
            for item in value.values():
                fill(item, values)
        for name, child in schema.get("properties", {}).items():
            is_missing = name not in value or (value[name] is None and not child.get("nullable"))
            if is_missing and "default" in child:
                value[name] = deepcopy(child["default"])
            if name in value:
                fill(value[name], child)


def violations(value: Any, schema: Document, path: str = "") -> Iterator[Cause]:
    """Return the violations of a value."""
    kind = schema.get("type")
    if value is None and schema.get("nullable"):
        return
    if schema.get(_INT_OR_STRING):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            yield _invalid(path, value, "must be of type integer or string", reason="FieldValueTypeInvalid")
        return
    if kind is not None:
        # Python's bool is a subclass of int, but a schema's `integer` does not accept a boolean.
        fits = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        if not fits:
            yield _invalid(path, value, f"must be of type {kind}", reason="FieldValueTypeInvalid")
            return
    if isinstance(value, dict):
        yield from _object_violations(value, schema, path)
    elif isinstance(value, list):
        yield from _size_violations(value, schema, path, "Items", "items")
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{path}[{i}]")
    elif isinstance(value, str):
        yield from _string_violations(value, schema, path)
    elif isinstance(value, (int, float)):
        yield from _number_violations(value, schema, path)


def _number_violations(value: float, schema: Document, path: str) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        yield _unsupported(path, value, schema["enum"])
    if "minimum" in schema and value < schema["minimum"]:
        yield _invalid(path, value, f"should be greater than or equal to {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        yield _invalid(path, value, f"should be less than or equal to {schema['maximum']}")


def _size_violations(value: Sized, schema: Document, path: str, suffix: str, noun: str) -> Iterator[Cause]:
    least, most = schema.get(f"min{suffix}", 0), schema.get(f"max{suffix}")
    if len(value) < least:
        yield _invalid(path, value, f"should have at least {least} {noun}")
    if most is not None and len(value) > most:
        yield _invalid(path, value, f"must have at most {most} {noun}", "FieldValueTooMany")


def _object_violations(value: Document, schema: Document, path: str) -> Iterator[Cause]:
    yield from _size_violations(value, schema, path, "Properties", "properties")
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause(reason="FieldValueRequired", message="Required value", field=_join(path, name))
    properties = schema.get("properties", {})
    values = schema.get("additionalProperties")
    rest = values if isinstance(values, dict) else {}
    for name, item in value.items():
        if path or name not in _ENVELOPE:
            yield from violations(item, properties.get(name, rest), _join(path, name))


def _string_violations(value: str, schema: Document, path: str) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        yield _unsupported(path, value, schema["enum"])
    if len(value) < schema.get("minLength", 0):
        yield _invalid(path, value, f"should be at least {schema['minLength']} chars long")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield _invalid(path, value[:32] + "...", f"may not be longer than {schema['maxLength']}", "FieldValueTooLong")
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield _invalid(path, value, f"should match '{schema['pattern']}'")
    if schema.get("format") == "date-time" and not _is_time(value):
        yield _invalid(path, value, 'must be an RFC 3339 time, such as "2006-01-02T15:04:05Z"')


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None and "T" in text
    except ValueError:
        return False


def _unsupported(path: str, value: Any, supported: Iterable[Any]) -> Cause:
    allowed = ", ".join(f'"{item}"' for item in supported)
    message = f'Unsupported value: "{value}": supported values: {allowed}'
    return Cause(reason="FieldValueNotSupported", message=message, field=path)


def _invalid(path: str, value: Any, why: str, reason: str = "FieldValueInvalid") -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else type(value).__name__
    return Cause(reason=reason, message=f"Invalid value: {shown}: {why}", field=path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
