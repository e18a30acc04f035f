"""Renders values as proto3 JSON: field names in camelCase, with all fields except those that are None."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import singledispatch
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from milo_discovery.model import ConnectivityState, DisengageReason, EngagementReason, EventType, SourceState

_ENUM_PREFIXES: dict[type[Enum], str] = {
    ConnectivityState: "STATE_",
    DisengageReason: "DISENGAGE_REASON_",
    EngagementReason: "REASON_",
    EventType: "TYPE_",
    SourceState: "STATE_",
}


@singledispatch
def to_json(value: Any) -> Any:
    """Convert a value to types that `json.dumps` accepts."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    pairs = ((_camel(field.name), getattr(value, field.name)) for field in fields(value))
    return {name: to_json(item) for name, item in pairs if item is not None}


@to_json.register(str)
@to_json.register(int)
@to_json.register(float)
def _unchanged(value: str | float) -> str | float:
    return value


@to_json.register
def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


@to_json.register
def _enum(value: Enum) -> str:
    return _ENUM_PREFIXES[type(value)] + value.name


@to_json.register
def _timestamp(value: datetime) -> str:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp.ToJsonString()


@to_json.register
def _duration(value: timedelta) -> str:
    span = Duration()
    span.FromTimedelta(value)
    return span.ToJsonString()


@to_json.register(Mapping)
def _object(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: to_json(item) for key, item in sorted(value.items())}


@to_json.register(tuple)
def _array(value: tuple[Any, ...]) -> list[Any]:
    return [to_json(item) for item in value]


def field_names(kind: type[Any]) -> list[str]:
    """Return the names of a dataclass's fields in JSON."""
    return [_camel(field.name) for field in fields(kind)]


def line(value: Any) -> str:
    """Format a value as JSON on a single line, for output of one value per line."""
    return _escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def document(value: Any) -> str:
    """Format a value as indented JSON."""
    return _escaped(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _escaped(text: str) -> str:
    """Escape non-printable characters, such as terminal controls and bidirectional overrides.

    Line breaks are kept: in JSON they occur only between tokens.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1] for character in text
    )


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)
