"""The changes of one cluster's objects, from what its list and watch report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from milo_discovery_cli.object_page import (
    TABLE,
    UNDECODABLE,
    Document,
    DocumentPage,
    PrintedColumn,
    PrintedRow,
    PrintedTable,
    RowPage,
    columns_of,
    identity_of,
    problem_of,
    read_objects,
    read_rows,
    row_of,
)
from milo_discovery_cli.served_resources import ServedResource
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
    Unlisted,
)
from milo_kube.reflect.wire import (
    Bookmark,
    ListPage,
    ListPageError,
    ObjectRemoved,
    ObjectSeen,
    Undecodable,
    UnknownEvent,
    WatchEvent,
    error_status,
)

KNOWN_LIMIT = 64 << 20
"""How much is kept of the objects of one cluster."""
_OVERHEAD = 500
Key = tuple[str, str]
"""The namespace and the name of an object."""


class Observed(msgspec.Struct, frozen=True):
    """An object as it was seen, with the page of which it is the only one."""

    name: str
    namespace: str
    uid: str
    version: str
    page: RowPage | DocumentPage

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class TooManyObjectsError(ValueError):
    """A cluster has more objects than are kept."""


class _Known(msgspec.Struct, frozen=True, gc=False):
    """What is kept of an object: encoded, since its decoded cells would take several times the memory."""

    uid: str
    version: str
    content: bytes
    """The rows, or of documents only the identity, as JSON."""

    def size(self, key: Key) -> int:
        """Return about how much memory it takes."""
        return _OVERHEAD + len(self.content) + sum(map(len, (*key, self.uid, self.version)))


class KnownObjects:
    """The objects of one cluster, and how they change. A list that is read again yields only what has changed."""

    def __init__(self, limit: int = KNOWN_LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._known: dict[Key, _Known] = {}
        self._columns: tuple[PrintedColumn, ...] | None = None
        """The columns of the rows that were seen last; None if documents were."""
        self._listed: set[Key] = set()

    def apply(self, event: SourceEvent[Observed]) -> Iterator[tuple[str, Observed]]:
        """Yield the type of each change, and the object, as it was last if it is deleted.

        Raises TooManyObjectsError."""
        match event:
            case ListStarted():
                self._listed = set()
            case Listed(observed):
                yield from self._seen(observed)
                self._listed.add(observed.key)
            case Unlisted(name, namespace):
                self._listed.discard((namespace, name))
            case ListEnded():
                for key in self._known.keys() - self._listed:
                    yield "DELETED", self._restored(key, self._forget(key))
                self._listed = set()
            case ObjectChanged(observed):
                yield from self._seen(observed)
            case DeletionReported(name, _, namespace, _, last):
                if (namespace, name) in self._known:
                    known = self._forget((namespace, name))
                    yield "DELETED", last or self._restored((namespace, name), known)

    def _forget(self, key: Key) -> _Known:
        forgotten = self._known.pop(key)
        self._size -= forgotten.size(key)
        return forgotten

    def _seen(self, observed: Observed) -> Iterator[tuple[str, Observed]]:
        known = self._forget(observed.key) if observed.key in self._known else None
        replaced = None
        if known is not None and known.uid != observed.uid:
            replaced = self._restored(observed.key, known)
        self._columns = observed.page.columns if isinstance(observed.page, RowPage) else None
        kept = _Known(observed.uid, observed.version, _content(observed.page))
        self._size += kept.size(observed.key)
        if self._size > self._limit:
            raise TooManyObjectsError(f"its objects take more than {self._limit} bytes, which are kept for --watch")
        self._known[observed.key] = kept
        if known is not None and replaced is None:
            if known.version != observed.version:
                yield "MODIFIED", observed
            return
        if replaced is not None:
            yield "DELETED", replaced
        yield "ADDED", observed

    def _restored(self, key: Key, known: _Known) -> Observed:
        """Return an object as it was seen, with as many cells as there are columns now."""
        page: RowPage | DocumentPage
        if self._columns is None:
            page = DocumentPage(_DOCUMENTS.decode(known.content))
        else:
            count = len(self._columns)
            rows = [
                PrintedRow(row.identity, (*row.cells[:count], *[""] * (count - len(row.cells))))
                for row in _ROWS.decode(known.content)
            ]
            page = RowPage(self._columns, rows)
        namespace, name = key
        return Observed(name, namespace, known.uid, known.version, page)


def _content(page: RowPage | DocumentPage) -> bytes:
    if isinstance(page, RowPage):
        return msgspec.json.encode(page.rows)
    fields = ("name", "namespace", "uid", "resourceVersion", "annotations")
    documents = (
        {**document, "metadata": {name: document["metadata"][name] for name in fields if name in document["metadata"]}}
        for document in page.objects
    )
    return msgspec.json.encode([{name: document[name] for name in _KEPT} for document in documents])


_KEPT = ("apiVersion", "kind", "metadata")
_ROWS = msgspec.json.Decoder(list[PrintedRow])
_DOCUMENTS = msgspec.json.Decoder(list[Document])


class _WatchLine(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _BookmarkMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Bookmarked(msgspec.Struct):
    metadata: _BookmarkMeta


_EVENT = msgspec.json.Decoder(_WatchLine)
_MARKED = msgspec.json.Decoder(_Bookmarked)
_TABLE = msgspec.json.Decoder(PrintedTable)


class ObservationDecoder:
    """Decodes the lists and watch events of one cluster, as tables or as objects."""

    def __init__(self, resource: ServedResource, cluster: str, accept: str) -> None:
        self._resource = resource
        self._cluster = cluster
        self._as_table = accept == TABLE
        self._columns: tuple[PrintedColumn, ...] = ()
        """The columns of the last table that had any: of a watch, only the first one has."""

    def page(self, body: bytes) -> tuple[ListPage, list[Observed]]:
        """Decode a page of a list. Raises ListPageError."""
        try:
            page: RowPage | DocumentPage
            if self._as_table:
                page = read_rows(body, datetime.now(UTC), is_list=True)
                self._columns = page.columns
                observed = [*self._rows(page)]
            else:
                page = read_objects(body, self._resource, self._cluster, is_list=True)
                observed = [*self._objects(page)]
        except UNDECODABLE as error:
            raise ListPageError(problem_of(error)) from error
        return ListPage(page.version, page.continue_token), [each for each in observed if each.name]

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Observed]]:
        """Decode lines, up to the first one that is not an event."""
        events: list[WatchEvent[Observed]] = []
        for line in lines:
            try:
                event = _EVENT.decode(line)
                found = self._event(event.type, bytes(event.object))
            except UNDECODABLE as error:
                found = Undecodable(f"a line of the watch is not an event: {str(error)[:200]}")
            events.append(found)
            if isinstance(found, Undecodable):
                break
        return events

    def _event(self, kind: str, body: bytes) -> WatchEvent[Observed]:
        match kind:
            case "ADDED" | "MODIFIED" | "DELETED":
                observed = next(self._observed(body), None)
                if observed is None or not observed.name:
                    return UnknownEvent(f"a watch event of type {kind} has no object")
                if kind == "DELETED":
                    return ObjectRemoved(observed.name, observed.uid, observed.version, observed.namespace, observed)
                return ObjectSeen(observed)
            case "BOOKMARK":
                return Bookmark(_MARKED.decode(body).metadata.resource_version, ends_initial_list=False)
            case "ERROR":
                return error_status(body)
            case other:
                return UnknownEvent(f"a watch event of unknown type {other[:40]!r}")

    def _observed(self, body: bytes) -> Iterator[Observed]:
        if not self._as_table:
            return self._objects(read_objects(body, self._resource, self._cluster, is_list=False))
        table = _TABLE.decode(body)
        if table.kind != "Table":
            return self._rows(read_rows(body, datetime.now(UTC), is_list=False))
        self._columns = columns_of(table) or self._columns
        return self._rows(RowPage(self._columns, [row_of(row, len(self._columns)) for row in (table.rows or ())[:1]]))

    def _rows(self, page: RowPage) -> Iterator[Observed]:
        for row in page.rows:
            found = row.identity
            yield Observed(found.name, found.namespace, found.uid, found.resource_version, RowPage(page.columns, [row]))

    def _objects(self, page: DocumentPage) -> Iterator[Observed]:
        for document in page.objects:
            found = identity_of(document)
            yield Observed(found.name, found.namespace, found.uid, found.resource_version, DocumentPage([document]))
