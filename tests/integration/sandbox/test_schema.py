"""Schemas: pruning, defaults and validation."""

from typing import Any

import pytest

from milo_sandbox import schema

SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]*$"},
                "size": {"type": "integer", "minimum": 1, "default": 3},
                "at": {"type": "string", "format": "date-time"},
                "color": {"type": "string", "enum": ["red", "blue"]},
                "free": {"type": "object", "additionalProperties": {"type": "string"}},
                "parts": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"on": {"type": "boolean", "default": True}}},
                },
            },
        }
    },
}


def test_schema_prunes_unknown_fields_with_warning() -> None:
    value = {
        "apiVersion": "v1",
        "metadata": {"anything": 1},
        "x": 1,
        "spec": {"name": "ab", "y": 2, "free": {"kept": "z"}, "parts": [{"on": False, "w": 1}]},
    }
    assert schema.prune(value, SCHEMA) == ["x", "spec.y", "spec.parts[0].w"]
    assert value == {
        "apiVersion": "v1",
        "metadata": {"anything": 1},
        "spec": {"name": "ab", "free": {"kept": "z"}, "parts": [{"on": False}]},
    }


def test_defaults_are_filled_in_within_present_objects() -> None:
    value: dict[str, Any] = {"spec": {"parts": [{}, {"on": False}]}}
    schema.fill(value, SCHEMA)
    assert value == {"spec": {"size": 3, "parts": [{"on": True}, {"on": False}]}}
    empty: dict[str, Any] = {}
    schema.fill(empty, SCHEMA)
    assert empty == {}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.name"),
        ([], "spec"),
        ({"name": 1}, "spec.name"),
        ({"name": "a"}, "spec.name"),
        ({"name": "abcde"}, "spec.name"),
        ({"name": "ab\n"}, "spec.name"),
        ({"name": "AB"}, "spec.name"),
        ({"name": "ab", "size": 0}, "spec.size"),
        ({"name": "ab", "size": True}, "spec.size"),
        ({"name": "ab", "size": 1.5}, "spec.size"),
        ({"name": "ab", "at": "yesterday"}, "spec.at"),
        ({"name": "ab", "at": "2026-01-01T00:00:00"}, "spec.at"),
        ({"name": "ab", "at": "2026-01-01 00:00:00Z"}, "spec.at"),
        ({"name": "ab", "color": "green"}, "spec.color"),
        ({"name": "ab", "free": {"a": 1}}, "spec.free.a"),
        ({"name": "ab", "parts": [{"on": 1}]}, "spec.parts[0].on"),
        ({"name": "ab", "parts": {}}, "spec.parts"),
    ],
)
def test_schema_reports_the_path_of_an_invalid_field(spec: Any, path: str) -> None:
    (cause,) = schema.violations({"spec": spec}, SCHEMA)
    assert cause.field == path


def test_schema_accepts_valid_object() -> None:
    spec = {"name": "ab", "size": 1, "at": "2026-01-01T00:00:00Z", "color": "red", "parts": [{"on": True}]}
    assert list(schema.violations({"metadata": 7, "spec": spec}, SCHEMA)) == []
