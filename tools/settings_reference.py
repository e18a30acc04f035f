"""Writes the lists of settings into the documents, from the settings of the code.

`<!-- settings: mode, source -->` and `<!-- end -->` in a document enclose the list of the named settings. A group
includes all its settings; `listen[]` stands for the fields of a list item, `kubeconfigs.issuers[exec]` for the
additional fields of that type. Every setting is in exactly one list.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from milo_discoveryd.config import ListenAddress, TcpAddress
from milo_discoveryd.config.issuers import parse_issuer
from milo_discoveryd.config.listeners import ListenerSettings
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.config.sources import SourceParser, SourceSettings
from milo_discoveryd.credentials.issuers.settings import ISSUERS, IssuerSettings
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Field, Group, ListOf, Nested, Number, Text, Whole, fields, flag
from milo_discoveryd.sources.field_path import FieldPath, Template
from milo_discoveryd.sources.kind import KINDS, SourceKind
from tools.documents import wrapped

DOCS = Path(__file__).parents[1] / "docs"
_LIST = re.compile(r"<!-- settings: (?P<names>[^>]+) -->\n.*?<!-- end -->\n", re.DOTALL)
_DEFAULT_IN_WORDS = re.compile(r" *Default: ([^.]+(?:\.\w[^.]*)*)\.$")
_NOTHING: tuple[object, ...] = (None, "", (), {})


class Entry(NamedTuple):
    name: str
    """The name in markers: `watch.page_size`, `listen[].tls.key`, `kubeconfigs.issuers[exec].command`."""
    takes: str
    default: str
    help: str

    @property
    def shown(self) -> str:
        """The name inside a list item."""
        return self.name.rpartition("].")[2]

    def is_of(self, selected: str) -> bool:
        inside = self.name.removeprefix(f"{selected}.")
        return self.name == selected or (inside != self.name and "[" not in inside)


def entries(group: type[Group] = Settings, around: str = "") -> Iterator[Entry]:
    for name, field in fields(group).items():
        place = around + name
        if name == "type":  # described in the lists of the types
            continue
        if docstring := _docstrings(group).get(name):
            yield _entry(place, field, docstring)
        elif not field.is_group:
            sys.exit(f"{place} has no docstring, from which its documentation is generated")
        yield from _within(place, field)


def _entry(name: str, field: Field, docstring: str) -> Entry:
    in_words = _DEFAULT_IN_WORDS.search(docstring)
    if in_words:
        shown = in_words[1]
    elif field.is_required:
        shown = "required"
    elif field.default in _NOTHING:
        shown = "none"
    else:
        shown = f"`{_written(field)}`"
    return Entry(name, _takes(field), shown, _DEFAULT_IN_WORDS.sub("", docstring))


def _within(place: str, field: Field) -> Iterator[Entry]:
    match field.parse:
        case Nested(group=group):
            yield from entries(group, f"{place}.")
        case ListOf(item=Nested(group=group)):
            yield from entries(group, f"{place}[].")
        case ListOf(item=parse) if parse is parse_issuer:
            yield from entries(IssuerSettings, f"{place}[].")
            for name, issuer in ISSUERS.built_in_groups():
                own = (
                    entry for entry in entries(issuer, f"{place}[{name}].") if entry.shown not in fields(IssuerSettings)
                )
                yield from own
        case ListOf(item=SourceParser()):
            yield from entries(SourceSettings, f"{place}[].")
            for name, kind in KINDS.built_in_groups():
                yield from entries(kind, f"{place}[{name}].")


@cache
def _docstrings(group: type[Group]) -> dict[str, str]:
    """Return the docstrings of a class's fields, which Python does not keep."""
    found: dict[str, str] = {}
    for ancestor in reversed(group.__mro__):
        if not issubclass(ancestor, Group) or ancestor is Group:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(definition, ast.ClassDef)
        for field, behind in zip(definition.body, definition.body[1:], strict=False):
            match field, behind:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _takes(field: Field) -> str:  # noqa: PLR0911 - one for each kind
    match field.parse:
        case partial(func=values.one_of, keywords={"choices": choices}):
            return ", ".join(f"`{choice}`" for choice in choices)
        case partial(func=values.duration | values.duration_or_off as parser, keywords=limits):
            least, most = (values.duration_text(limits[end]) for end in ("least", "most"))
            return f"{least} to {most}{', or `off`' * (parser is values.duration_or_off)}"
        case partial(func=values.size, keywords={"least": least, "most": most}):
            return f"{values.size_text(least)} to {values.size_text(most)}"
        case values.permissions:
            return "permissions"
        case Whole(least=least, most=most):
            return f"{least} to {most}"
        case Number(least=least, most=most, is_above=is_above):
            return f"{'above ' * is_above}{least} to {most}"
        case Nested():
            return "mapping"
        case Text(most=int(most)):
            return f"up to {most} characters"
        case parse if parse is flag:
            return "`true`, `false`"
    names: dict[Any, str] = {
        str: "text",
        Path: "path",
        tuple: "list",
        dict: "mapping",
        TcpAddress: "address",
        ListenAddress: "address",
        FieldPath: "path of a field",
        Template: "text",
        SourceKind: "mapping",
    }
    return names[get_origin(field.type) if get_origin(field.type) in names else field.type]


def _written(field: Field) -> str:
    """Return the default in the syntax of the setting."""
    writers: dict[Any, Callable[[Any], str]] = {
        values.permissions: "{:04o}".format,
        values.size: values.size_text,
        values.duration: values.duration_text,
        values.duration_or_off: values.duration_text,
    }
    parser = field.parse.func if isinstance(field.parse, partial) else field.parse
    match field.default:
        case value if parser in writers:
            return writers[parser](value)
        case bool() as value:
            return str(value).lower()
        case float() as value:
            return f"{value:g}"
        case tuple() as value:
            return ",".join(item.title if isinstance(item, ListenerSettings) else str(item) for item in value)
        case value:
            return str(value)


def listed(selected: list[Entry]) -> str:
    return wrapped("".join(f"- `{entry.shown}` ({_values(entry)}): {entry.help}\n" for entry in selected))


def _values(entry: Entry) -> str:
    return f"{entry.takes}; {entry.default if entry.default == 'required' else f'default: {entry.default}'}"


def rendered() -> dict[Path, str]:
    """Return the expected contents of the documents with lists."""
    known = list(entries())
    left = {entry.name for entry in known}

    def render(match: re.Match[str]) -> str:
        selected = []
        for name in re.split(r",\s+", match["names"]):
            of_it = [entry for entry in known if entry.is_of(name)]
            if not of_it or not {entry.name for entry in of_it} <= left:
                sys.exit(f"settings: {name}: there is no such setting, or another list contains it")
            left.difference_update(entry.name for entry in of_it)
            selected += of_it
        return f"<!-- settings: {match['names']} -->\n{listed(selected)}<!-- end -->\n"

    documents = {path: _LIST.sub(render, path.read_text()) for path in sorted(DOCS.glob("*.md"))}
    if left:
        sys.exit(f"no document contains a list of {', '.join(sorted(left))}")
    return {path: text for path, text in documents.items() if _LIST.search(text)}


if __name__ == "__main__":
    for path, text in rendered().items():
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{path.relative_to(DOCS.parent)} is out of date: run ./dev gen")
