"""Objects as table rows, as `kubectl get` requests them for lists and watches."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from milo_sandbox.records import ADDED, BOOKMARK, RecordedChange, SandboxRecord, encode, frame
from milo_sandbox.resources import Column, Document, ResourceDefinition
from milo_sandbox.selectors import LabelSelector

_META = "meta.k8s.io/v1"


def is_wanted(accept: str) -> bool:
    """Return whether the Accept header prefers a table."""
    first = accept.partition(",")[0].replace(" ", "")
    return "as=Table" in first and "g=meta.k8s.io" in first


class Table:
    """A resource's objects as rows. In a watch, only the first table has the columns."""

    def __init__(self, resource: ResourceDefinition, *, clock: Callable[[], datetime], include: str = "") -> None:
        self._resource = resource
        self._clock = clock
        self._include = include or "Metadata"
        self._columns_sent = False

    def listing(self, records: Iterator[SandboxRecord], metadata: Document) -> Iterator[bytes]:
        yield encode(self._head(metadata))[:-1] + b',"rows":['
        for i, record in enumerate(records):
            yield b"," + encode(self._row(record)) if i else encode(self._row(record))
        yield b"]}\n"

    def event(self, event: RecordedChange, selector: LabelSelector) -> bytes | None:
        seen = event.seen_through(selector)
        if seen is None:
            return None
        kind, record = seen
        return frame(kind, self._table_of(record))

    def initial(self, record: SandboxRecord) -> bytes:
        return frame(ADDED, self._table_of(record))

    def bookmark(self, document: Document) -> bytes:
        return frame(BOOKMARK, encode(self._head(document["metadata"]) | {"rows": []}))

    def _table_of(self, record: SandboxRecord) -> bytes:
        return encode(self._head({"resourceVersion": str(record.version)}) | {"rows": [self._row(record)]})

    def _head(self, metadata: Document) -> Document:
        columns = None if self._columns_sent else [_definition(column) for column in self._resource.columns]
        self._columns_sent = True
        return {"kind": "Table", "apiVersion": _META, "metadata": metadata, "columnDefinitions": columns}

    def _row(self, record: SandboxRecord) -> Document:
        document = record.document()
        row: Document = {"cells": [_cell(column, document, self._clock) for column in self._resource.columns]}
        if self._include == "Object":
            row["object"] = document
        elif self._include == "Metadata":
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": _META, "metadata": document.get("metadata")}
        return row


def _definition(column: Column) -> Document:
    return {
        "name": column.name,
        "type": column.type,
        "format": "name" if column.path == ("metadata", "name") else "",
        "description": column.description,
        "priority": int(column.wide),
    }


def _cell(column: Column, document: Document, clock: Callable[[], datetime]) -> Any:
    value: Any = _condition(document, column.condition) if column.condition else document
    for step in column.path:
        value = value.get(step) if isinstance(value, dict) else None
    if column.type == "date":
        return _age(value, clock()) if isinstance(value, str) else "<unknown>"
    if column.counts:
        return len(value) if isinstance(value, dict) else 0
    return value


def _condition(document: Document, wanted: str) -> Any:
    status = document.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict) and condition.get("type") == wanted:
            return condition
    return None


def _age(since: str, now: datetime) -> str:
    """Format an age as kubectl does."""
    try:
        seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    except ValueError:
        return "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{days}d"
