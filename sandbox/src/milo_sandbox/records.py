"""Stored objects: the serialized JSON, with the fields that selectors and ordering need."""

from typing import Any, Final

import msgspec

from milo_sandbox.resources import Document
from milo_sandbox.selectors import NAME, NAMESPACE, LabelSelector

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
BOOKMARK: Final = "BOOKMARK"
ERROR: Final = "ERROR"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an object. Immutable."""

    key: str  # "name", or "namespace/name"
    uid: str
    version: int
    labels: dict[str, str]
    body: bytes

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def namespace(self) -> str:
        return self.key.rpartition("/")[0]

    def document(self) -> Document:
        document: Document = _decode(self.body)
        return document

    def selected_by(self, selector: LabelSelector) -> bool:
        return selector.is_everything or selector.matches(self.labels, self._field)

    def _field(self, path: str) -> str:
        """Return a field as selectors compare it: an absent one is empty."""
        if path == NAME:
            return self.name
        if path == NAMESPACE:
            return self.namespace
        value: Any = self.document()
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)


def key_of(name: str, namespace: str = "") -> str:
    return f"{namespace}/{name}" if namespace else name


def record_of(document: Document, version: int) -> SandboxRecord:
    """Set the document's version and serialize it; the caller must not use the document afterwards."""
    metadata = document["metadata"]
    metadata["resourceVersion"] = str(version)
    return SandboxRecord(
        key=key_of(metadata["name"], metadata.get("namespace", "")),
        uid=metadata["uid"],
        version=version,
        labels=metadata.get("labels") or {},
        body=_encode(document),
    )


def restamped(record: SandboxRecord, version: int) -> SandboxRecord:
    return record_of(record.document(), version)


def encode(document: Any) -> bytes:
    return _encode(document)


def decode(body: bytes) -> Any:
    return _decode(body)


class RecordedChange(msgspec.Struct, kw_only=True):
    """One change of an object: its creation, update or deletion."""

    version: int
    before: SandboxRecord | None
    record: SandboxRecord  # The new state; for a deletion, the last state with the version of the deletion.
    deleted: bool = False
    _frames: dict[str, bytes] | None = None

    def seen_through(self, selector: LabelSelector) -> tuple[str, SandboxRecord] | None:
        """Return the type and the object that a watch with this selector reports; None if it reports nothing."""
        was = self.before is not None and self.before.selected_by(selector)
        if not self.deleted and self.record.selected_by(selector):
            return (MODIFIED if was else ADDED), self.record
        if not was or self.before is None:
            return None
        # An object that leaves a selector is reported as deleted, with its old labels and the new version.
        return DELETED, self.record if self.deleted else restamped(self.before, self.version)

    def frame(self, selector: LabelSelector) -> bytes | None:
        """Return the serialized watch line, shared by all watches."""
        seen = self.seen_through(selector)
        if seen is None:
            return None
        kind, record = seen
        if self._frames is None:
            self._frames = {}
        if kind not in self._frames:
            self._frames[kind] = frame(kind, record.body)
        return self._frames[kind]


def frame(kind: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), body)
