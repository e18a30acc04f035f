"""Request bodies in Kubernetes' protobuf encoding, decoded to their JSON form."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from milo_sandbox import refusals
from milo_sandbox.resources import Document

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"

Wire = int | bytes
Reader = Callable[[Wire], Any]
"""A conversion from a wire value to its JSON form."""


class _Field(msgspec.Struct, frozen=True):
    name: str
    read: Reader
    shape: str = "one"


class _Message:
    """A message type: number, conversion and cardinality of each field, by JSON name."""

    def __init__(self, **fields: tuple[int, Reader] | tuple[int, Reader, str]) -> None:
        self._fields = {number: _Field(name, *how) for name, (number, *how) in fields.items()}

    def __call__(self, wire: Wire) -> Document:
        document: Document = {}
        for number, value in _fields(_as_bytes(wire)):
            field = self._fields.get(number)
            match field:
                case None:
                    continue
                case _Field(shape="list"):
                    document.setdefault(field.name, []).append(field.read(value))
                case _Field(shape="map"):
                    entry = dict(_fields(_as_bytes(value)))
                    document.setdefault(field.name, {})[_text(entry.get(1, b""))] = field.read(entry.get(2, b""))
                case _:
                    document[field.name] = field.read(value)
        return document


def read(body: bytes) -> Document:
    """Decode a body. Raises RefusalError if it is not protobuf, or has an unexpected kind."""
    if not body.startswith(_MAGIC):
        raise refusals.bad_request("the body does not begin with the prefix of a Kubernetes protobuf message")
    try:
        envelope = _ENVELOPE(body[len(_MAGIC) :])
        kind = envelope["typeMeta"]["kind"]
        if kind not in _KINDS:
            raise refusals.unsupported_media_type(f"{CONTENT_TYPE} of {kind}", ["application/json"])
        return {**envelope["typeMeta"], **_KINDS[kind](envelope["raw"])}
    except (ValueError, LookupError) as error:
        raise refusals.bad_request(f"cannot decode the body as protobuf: {error}") from error


def _fields(data: bytes) -> Iterator[tuple[int, Wire]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            case 2:
                length, at = _varint(data, at)
                if at + length > len(data):
                    raise ValueError("a field is truncated")
                yield tag >> 3, data[at : at + length]
                at += length
            case 1:
                at += 8
            case 5:
                at += 4
            case other:
                raise ValueError(f"unknown wire type {other}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint exceeds 64 bits")


def _as_bytes(wire: Wire) -> bytes:
    if isinstance(wire, int):
        raise ValueError("expected a string or a message, found a number")  # noqa: TRY004 - the message is invalid
    return wire


def _text(wire: Wire) -> str:
    return _as_bytes(wire).decode()


def _base64(wire: Wire) -> str:
    return b64encode(_as_bytes(wire)).decode()


def _time(wire: Wire) -> str:
    parts = dict(_fields(_as_bytes(wire)))
    moment = datetime.fromtimestamp(int(parts.get(1, 0)), UTC) + timedelta(microseconds=int(parts.get(2, 0)) // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _raw(wire: Wire) -> bytes:
    return _as_bytes(wire)


_ENVELOPE = _Message(typeMeta=(1, _Message(apiVersion=(1, _text), kind=(2, _text))), raw=(2, _raw))
_OWNER = _Message(
    kind=(1, _text),
    name=(3, _text),
    uid=(4, _text),
    apiVersion=(5, _text),
    controller=(6, bool),
    blockOwnerDeletion=(7, bool),
)
_METADATA = _Message(
    name=(1, _text),
    generateName=(2, _text),
    namespace=(3, _text),
    uid=(5, _text),
    resourceVersion=(6, _text),
    labels=(11, _text, "map"),
    annotations=(12, _text, "map"),
    ownerReferences=(13, _OWNER, "list"),
    finalizers=(14, _text, "list"),
)
_RESOURCE_ATTRIBUTES = _Message(
    namespace=(1, _text),
    verb=(2, _text),
    group=(3, _text),
    version=(4, _text),
    resource=(5, _text),
    subresource=(6, _text),
    name=(7, _text),
)
_KINDS: dict[str, Reader] = {
    "Namespace": _Message(metadata=(1, _METADATA)),
    "ConfigMap": _Message(
        metadata=(1, _METADATA), data=(2, _text, "map"), binaryData=(3, _base64, "map"), immutable=(4, bool)
    ),
    "Secret": _Message(
        metadata=(1, _METADATA),
        data=(2, _base64, "map"),
        type=(3, _text),
        stringData=(4, _text, "map"),
        immutable=(5, bool),
    ),
    "Lease": _Message(
        metadata=(1, _METADATA),
        spec=(
            2,
            _Message(
                holderIdentity=(1, _text),
                leaseDurationSeconds=(2, int),
                acquireTime=(3, _time),
                renewTime=(4, _time),
                leaseTransitions=(5, int),
            ),
        ),
    ),
    "SelfSubjectAccessReview": _Message(
        spec=(
            2,
            _Message(
                resourceAttributes=(1, _RESOURCE_ATTRIBUTES),
                nonResourceAttributes=(2, _Message(path=(1, _text), verb=(2, _text))),
            ),
        )
    ),
    "SelfSubjectRulesReview": _Message(spec=(2, _Message(namespace=(1, _text)))),
    "SelfSubjectReview": _Message(),
    "DeleteOptions": _Message(
        preconditions=(2, _Message(uid=(1, _text), resourceVersion=(2, _text))),
        propagationPolicy=(4, _text),
        dryRun=(5, _text, "list"),
    ),
}
