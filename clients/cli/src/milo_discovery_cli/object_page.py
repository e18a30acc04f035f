"""Decodes what API servers answer: tables of printed columns, and objects. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from milo_discovery_cli.served_resources import ServedResource
from milo_discovery_cli.text_output import age
from milo_kube.api_request import JSON

TABLE = f"{JSON};as=Table;v=v1;g=meta.k8s.io,{JSON}"
"""The Accept header for tables. Servers that have none answer with objects."""
CLUSTER_ANNOTATION = "discovery.miloapis.com/cluster"
_LONGEST_CELL = 500
_MOST_COLUMNS = 100
_SMALLEST_CELL = 3
_SMALLEST_ITEM = 32
"""Minimum average size of the items of a page, each of which takes more memory than that once it is decoded."""
_SMALL_PAGE = 64 << 10
_MOST_INDENTATION = 64 << 20
"""Maximum characters of indentation of the objects of a page: eight megabytes of nested lists could take gigabytes."""

UNDECODABLE = (ValueError, RecursionError)
"""What decoding raises: also UnicodeError, and msgspec's errors."""

Document = dict[str, Any]


def problem_of(error: Exception) -> str:
    """Describe an error of decoding."""
    problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
    return f"the response is not what was asked for: {problem}"


class PrintedColumn(msgspec.Struct, frozen=True):
    """A column of a table."""

    name: str
    format: str = ""
    priority: int = 0
    """Above 0 for the columns of `-o wide`."""


class ObjectIdentity(msgspec.Struct, rename="camel"):
    """The metadata of an object, as far as it is used."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""


class PrintedRow(msgspec.Struct):
    """An object, as a row of printed columns."""

    identity: ObjectIdentity
    cells: tuple[str, ...]


class RowPage(msgspec.Struct):
    """A page of objects as rows."""

    columns: tuple[PrintedColumn, ...]
    rows: list[PrintedRow]
    continue_token: str = ""
    version: str = ""

    @property
    def count(self) -> int:
        return len(self.rows)


class DocumentPage(msgspec.Struct):
    """A page of objects."""

    objects: list[Document]
    continue_token: str = ""
    version: str = ""

    @property
    def count(self) -> int:
        return len(self.objects)


class _PageMeta(msgspec.Struct, rename="camel"):
    continue_: str = msgspec.field(default="", name="continue")
    resource_version: str = ""


class _RowObject(msgspec.Struct):
    metadata: ObjectIdentity = msgspec.field(default_factory=ObjectIdentity)


class TableRow(msgspec.Struct):
    cells: list[Any] | None = None
    object: _RowObject | None = None


class PrintedTable(msgspec.Struct, rename="camel"):
    """A table, or a list, or one object, in which all fields but `kind` are those of a table."""

    kind: str = ""
    column_definitions: tuple[PrintedColumn, ...] | None = None
    rows: list[TableRow] | None = None
    metadata: _PageMeta = msgspec.field(default_factory=_PageMeta)


class _ItemPage(msgspec.Struct):
    items: list[Document] | None
    metadata: _PageMeta = msgspec.field(default_factory=_PageMeta)


class _Identities(msgspec.Struct):
    items: list[_RowObject] | None
    metadata: _PageMeta = msgspec.field(default_factory=_PageMeta)


_TABLE = msgspec.json.Decoder(PrintedTable)
_LIST = msgspec.json.Decoder(_ItemPage)
_IDENTITIES = msgspec.json.Decoder(_Identities)
_ONE_IDENTITY = msgspec.json.Decoder(_RowObject)
_ONE = msgspec.json.Decoder(Document)
_DEFAULT_COLUMNS = (PrintedColumn("Name", "name"), PrintedColumn("Age"))


def read_rows(body: bytes, now: datetime, *, is_list: bool) -> RowPage:
    """Decode a page of rows. Raises one of UNDECODABLE."""
    table = _TABLE.decode(body)
    if table.kind == "Table":
        columns = columns_of(table)
        _check(table.rows, body, columns=len(columns))
        rows = [row_of(row, len(columns)) for row in table.rows or ()]
        return RowPage(columns, rows, table.metadata.continue_, table.metadata.resource_version)
    if not is_list:
        return RowPage(_DEFAULT_COLUMNS, [_default_row(_ONE_IDENTITY.decode(body).metadata, now)])
    listed = _IDENTITIES.decode(body)
    _check(listed.items, body)
    rows = [_default_row(item.metadata, now) for item in listed.items or ()]
    return RowPage(_DEFAULT_COLUMNS, rows, listed.metadata.continue_, listed.metadata.resource_version)


def columns_of(table: PrintedTable) -> tuple[PrintedColumn, ...]:
    """Return the columns of a table, with shortened names. Raises ValueError if they are too many."""
    columns = table.column_definitions or ()
    if len(columns) > _MOST_COLUMNS:
        raise ValueError(f"a table of {len(columns)} columns; at most {_MOST_COLUMNS} are printed")
    longest = _LONGEST_CELL + 1  # so that it is printed as a shortened one
    return tuple(PrintedColumn(column.name[:longest], column.format[:longest], column.priority) for column in columns)


def row_of(row: TableRow, columns: int) -> PrintedRow:
    """Return a row of a table with exactly this many cells."""
    cells = [cell_text(cell) for cell in (row.cells or ())[:columns]]
    cells += [""] * (columns - len(cells))
    return PrintedRow(row.object.metadata if row.object else ObjectIdentity(), tuple(cells))


def cell_text(value: Any) -> str:
    """Return a cell as kubectl prints it: its first line, of limited length."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    line = text.splitlines()[0] if text.strip("\r\n\f") else ""
    if len(line) > _LONGEST_CELL:
        return f"{line[:_LONGEST_CELL]}…"
    return line if line == text else f"{line}..."


def _default_row(identity: ObjectIdentity, now: datetime) -> PrintedRow:
    try:
        created = datetime.fromisoformat(identity.creation_timestamp)
        since = age(created, now)
    except (ValueError, TypeError, OverflowError):  # TypeError: a time without a time zone
        since = "<unknown>"
    return PrintedRow(identity, (cell_text(identity.name), since))


def read_objects(body: bytes, resource: ServedResource, cluster: str, *, is_list: bool) -> DocumentPage:
    """Decode a page of objects, each with its cluster in an annotation. Raises one of UNDECODABLE."""
    if not is_list:
        document = _ONE.decode(body)
        check_indentation([document])
        return DocumentPage([shown(document, resource, cluster)])
    listed = _LIST.decode(body)
    _check(listed.items, body)
    check_indentation(listed.items or ())
    found = [shown(item, resource, cluster) for item in listed.items or ()]
    return DocumentPage(found, listed.metadata.continue_, listed.metadata.resource_version)


def shown(document: Document, resource: ServedResource, cluster: str) -> Document:
    """Return an object as it is shown: with its kind, which items of a list lack, and its cluster in an annotation, and
    without `managedFields`."""
    metadata = document.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    metadata["annotations"] = {**annotations, CLUSTER_ANNOTATION: cluster}
    return {"apiVersion": resource.api_version, "kind": resource.kind} | document | {"metadata": metadata}


def identity_of(document: Document) -> ObjectIdentity:
    """Return the identity of a shown object, without what is not text."""
    metadata = document["metadata"]
    values = (metadata.get(name) for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp"))
    return ObjectIdentity(*(value if isinstance(value, str) else "" for value in values))


def check_indentation(documents: Sequence[Document]) -> None:
    """Raise ValueError if documents would be much larger when they are printed."""
    level: list[Any] = [*documents]
    depth = indentation = 0
    while level:
        depth += 2
        indentation += depth * sum(map(len, level))
        if indentation > _MOST_INDENTATION:
            raise ValueError(f"its values are nested {depth // 2} deep or more, and would take too much memory")
        values = (value for each in level for value in (each.values() if isinstance(each, dict) else each))
        level = [value for value in values if isinstance(value, dict | list)]


def _check(items: Sequence[object] | None, body: bytes, *, columns: int = 0) -> None:
    smallest = max(_SMALLEST_ITEM, _SMALLEST_CELL * columns)
    if len(body) > _SMALL_PAGE and len(items or ()) * smallest > len(body):
        raise ValueError(f"{len(items or ())} items in {len(body)} bytes would take too much memory")
