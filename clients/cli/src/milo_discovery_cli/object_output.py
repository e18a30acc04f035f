"""How `milo-discovery get` prints objects of many clusters: one form for each output format. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from milo_discovery_cli import json_output, templates, yaml_output
from milo_discovery_cli.exit_status import printable
from milo_discovery_cli.object_page import TABLE, Document, DocumentPage, RowPage, cell_text
from milo_discovery_cli.served_resources import ServedResource
from milo_discovery_cli.text_output import aligned
from milo_kube.api_request import JSON

SPOOL_LIMIT = 32 << 20
"""How much is collected before it is printed, to be sorted and aligned."""
_LINE_OVERHEAD = 200
_WIDEST_TABLE = 2_000
"""Lines of a wider table are not aligned: one of them could make all others as long."""


class Section(msgspec.Struct, frozen=True, order=True):
    """Lines that belong together: those of one kind with the same columns."""

    place: int
    """The place of the kind among those that were asked for."""
    resource: str
    columns: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True, gc=False):
    """What is printed of one object."""

    section: Section
    cluster: str
    cells: tuple[str, ...]

    @property
    def size(self) -> int:
        return _LINE_OVERHEAD + sum(map(len, self.cells))


class Spool:
    """Collects lines, to be printed in the order of their clusters, until there are too many to be kept.

    From then on lines are printed as they arrive, so that memory stays bounded.
    """

    def __init__(self, limit: int = SPOOL_LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._lines: list[Line] = []
        self.has_overflowed = False

    def add(self, lines: Sequence[Line]) -> Sequence[Line]:
        """Add lines, and return those that are to be printed now."""
        self._lines += lines
        self._size += sum(line.size for line in lines)
        self.has_overflowed = self.has_overflowed or self._size > self._limit
        return self.take() if self.has_overflowed else ()

    def take(self) -> list[Line]:
        """Return all collected lines, sorted by section and cluster, and else as they arrived."""
        lines, self._lines = self._lines, []
        return sorted(lines, key=lambda line: (line.section, line.cluster))


class Form(ABC):
    """An output format."""

    accept = JSON
    """The media types to request."""
    hint = ""
    """What the user may have meant, once all is printed."""

    @abstractmethod
    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        """Yield what is printed of each object of a page, or of an event."""

    @abstractmethod
    def text(self, lines: Sequence[Line]) -> str:
        """Return the text of some lines."""

    def end(self) -> str:
        """Return the text that follows all lines."""
        return ""


class TableForm(Form):
    """The columns that the API server prints, after the cluster and, of all namespaces, the namespace."""

    accept = TABLE

    def __init__(self, *, wide: bool, namespaces: bool, kinds: bool, headers: bool) -> None:
        """`namespaces`: whether there is a column of namespaces. `kinds`: whether names begin with their kind."""
        self._wide = wide
        self._namespaces = namespaces
        self._kinds = kinds
        self._printer = _TablePrinter(headers=headers)

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, RowPage)
        with_namespace = self._namespaces and resource.is_namespaced
        shown = [(index, column) for index, column in enumerate(page.columns) if self._wide or not column.priority]
        headings = (*_headings(event), *(("NAMESPACE",) if with_namespace else ()))
        section = Section(
            place, resource.full_name, (*headings, *(cell_text(column.name.upper()) for _, column in shown))
        )
        prefixed = next((index for index, column in shown if self._kinds and column.format == "name"), None)
        for row in page.rows:
            within = (cell_text(row.identity.namespace),) if with_namespace else ()
            cells = (f"{resource.object_prefix if at == prefixed else ''}{row.cells[at]}" for at, _ in shown)
            yield Line(section, cluster, (*_leading(event, cluster), *within, *cells))

    def text(self, lines: Sequence[Line]) -> str:
        return self._printer.text(lines)


class NameForm(Form):
    """The cluster and the name of each object, as in `alpha deployment.apps/web`."""

    accept = TABLE

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, RowPage)
        section = Section(place, resource.full_name)
        for row in page.rows:
            yield Line(section, cluster, (cluster, f"{resource.object_prefix}{cell_text(row.identity.name)}"))

    def text(self, lines: Sequence[Line]) -> str:
        return "".join(f"{' '.join(map(printable, line.cells))}\n" for line in lines)


class ColumnsForm(Form):
    """Columns of the user's own, after the cluster."""

    def __init__(self, specification: str, *, headers: bool) -> None:
        self._columns = templates.Columns(specification)
        self._printer = _TablePrinter(headers=headers)

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, DocumentPage)
        section = Section(0, "", (*_headings(event), *self._columns.headers))
        for document in page.objects:
            yield Line(section, cluster, (*_leading(event, cluster), *self._columns.row(document)))

    def text(self, lines: Sequence[Line]) -> str:
        return self._printer.text(lines)


class DocumentForm(Form):
    """A List of the objects, as JSON or YAML. It is printed in parts, so that it may be longer than memory allows."""

    def __init__(self, *, is_yaml: bool) -> None:
        self._is_yaml = is_yaml
        self._has_begun = False

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, DocumentPage)
        section = Section(place, resource.full_name)
        for document in page.objects:
            yield Line(section, cluster, (self._item(document),))

    def _item(self, document: Document) -> str:
        if self._is_yaml:
            return yaml_output.document([document])
        return "\n".join(f"    {line}" for line in json_output.document(document).splitlines())

    def text(self, lines: Sequence[Line]) -> str:
        head, between = ("apiVersion: v1\nitems:\n", "\n") if self._is_yaml else (_JSON_HEAD, ",\n")
        before = between if self._has_begun else head
        self._has_begun = True
        return before + between.join(line.cells[0] for line in lines)

    def end(self) -> str:
        if self._is_yaml:
            return f"{'' if self._has_begun else _YAML_EMPTY}\n{_YAML_TAIL}"
        return f"{_JSON_END if self._has_begun else _JSON_EMPTY}{_JSON_TAIL}"


_YAML_EMPTY = "apiVersion: v1\nitems: []"
_JSON_HEAD = '{\n  "apiVersion": "v1",\n  "items": [\n'
_JSON_EMPTY = '{\n  "apiVersion": "v1",\n  "items": []'
_JSON_END = "\n  ]"
_JSON_TAIL = ',\n  "kind": "List",\n  "metadata": {\n    "resourceVersion": ""\n  }\n}\n'
_YAML_TAIL = 'kind: List\nmetadata:\n  resourceVersion: ""\n'


class TemplateForm(Form):
    """A JSONPath template, filled from the List of all objects, so that these are kept until the end."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._found: list[tuple[str, Document]] = []
        self._sizes: Counter[str] = Counter()
        """The size of each cluster's objects, as JSON."""

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, DocumentPage)
        self._sizes[cluster] += sum(len(msgspec.json.encode(document)) for document in page.objects)
        if self._sizes[cluster] > SPOOL_LIMIT:
            problem = f"more than {SPOOL_LIMIT >> 20} MiB of one cluster are too much for a template"
            raise ValueError(f"{problem}: select fewer objects, or use -o json or custom-columns")
        self._found += ((cluster, document) for document in page.objects)
        return iter(())

    def text(self, lines: Sequence[Line]) -> str:
        return ""

    def end(self) -> str:
        items = [document for _, document in sorted(self._found, key=lambda found: found[0])]
        text = templates.render(self._template, {"apiVersion": "v1", "kind": "List", "items": items})
        if items and not text:
            reads = "" if "items" in self._template else "; the template reads a List: {.items[*]...}"
            self.hint = f"found nothing{reads}"
        return f"{text}\n" if text else ""


class EventForm(Form):
    """One JSON or YAML document, or text of a template, for each event or object of a watch."""

    def __init__(self, kind: str, template: str) -> None:
        self._kind = kind
        self._template = template

    def lines(
        self, page: RowPage | DocumentPage, resource: ServedResource, cluster: str, *, place: int = 0, event: str = ""
    ) -> Iterator[Line]:
        assert isinstance(page, DocumentPage)
        for document in page.objects:
            yield Line(Section(place, resource.full_name), cluster, (self._text(event, document),))

    def _text(self, event: str, document: Document) -> str:
        match self._kind:
            case "json":
                return json_output.line({"type": event, "object": document})
            case "yaml":
                return f"---\n{yaml_output.document({'type': event, 'object': document})}"
            case _:
                return templates.render(self._template, document)

    def text(self, lines: Sequence[Line]) -> str:
        return "".join(f"{line.cells[0]}\n" for line in lines)


def _headings(event: str) -> tuple[str, ...]:
    return ("EVENT", "CLUSTER") if event else ("CLUSTER",)


def _leading(event: str, cluster: str) -> tuple[str, ...]:
    return (event.ljust(len("MODIFIED")), cluster) if event else (cluster,)


def form_of(output: str, *, namespaces: bool, kinds: bool, headers: bool, watches: bool) -> Form:
    """Return the form of an output format of the command line."""
    kind, _, template = output.partition("=")
    match kind:
        case "json" | "yaml" | "jsonpath" if watches:
            return EventForm(kind, template)
        case "json" | "yaml":
            return DocumentForm(is_yaml=kind == "yaml")
        case "name":
            return NameForm()
        case "custom-columns":
            return ColumnsForm(template, headers=headers)
        case "jsonpath":
            return TemplateForm(template)
        case _:
            return TableForm(wide=kind == "wide", namespaces=namespaces, kinds=kinds, headers=headers)


class _TablePrinter:
    """Aligns lines. The columns of a section that is printed in several parts only grow."""

    def __init__(self, *, headers: bool) -> None:
        self._headers = headers
        self._widths: dict[Section, list[int]] = {}
        self._last: Section | None = None

    def text(self, lines: Iterable[Line]) -> str:
        return "".join(f"{row}\n" for row in self._rows(lines))

    def _rows(self, lines: Iterable[Line]) -> Iterator[str]:
        for section, members in groupby(lines, lambda line: line.section):
            rows = [tuple(map(printable, line.cells)) for line in members]
            if section != self._last and self._headers:
                if self._last is not None:
                    yield ""
                rows.insert(0, tuple(map(printable, section.columns)))
            self._last = section
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            widths = list(map(max, self._widths.get(section, widths), widths))
            self._widths[section] = widths
            if sum(widths) > _WIDEST_TABLE:
                widths = [0] * len(widths)
            for row in rows:
                yield aligned(row, widths)
