"""Watch lines as an API server sends them."""

import json
from typing import Any

import msgspec

from milo_kube.reflect.wire import Decoder

# ruff: noqa: N815


class Found(msgspec.Struct, frozen=True):
    """A decoded object, whose message is the text of its labels."""

    name: str
    uid: str
    version: str
    message: str


class Malformed(Found, frozen=True):
    """An object that could not be decoded, whose message is why."""


class _Metadata(msgspec.Struct):
    name: str
    uid: str
    resourceVersion: str
    labels: dict[str, str] | None = None
    deletionTimestamp: str | None = None


class _Spec(msgspec.Struct):
    pass


class _Condition(msgspec.Struct):
    type: str


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None
    status: _Status | None = None


def _observe(found: _Object) -> Found:
    metadata = found.metadata
    return Found(metadata.name, metadata.uid, metadata.resourceVersion, repr(metadata.labels or {}))


DECODER = Decoder(_Object, _observe, Malformed)


def thing(name: str, version: str = "1", uid: str = "", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": version, **metadata}}


def seen(name: str, version: str = "1", uid: str = "") -> Found:
    return Found(name, uid or f"uid-{name}", version, "{}")


def line(kind: str, content: Any) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode()
