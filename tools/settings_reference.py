"""Writes the tables of settings into the documents, from the settings themselves.

A document says where a table goes, and of what, by `<!-- settings: mode, source -->` and `<!-- end -->`
around it. A group stands for all that it holds; `listen[]` for what an item of that list has,
`kubeconfigs.sources[exec]` for what one of that type has besides. Every setting has its place in one table.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from milo_discoveryd.config import ListenAddress, Settings, TcpAddress, values
from milo_discoveryd.config.listeners import Listener

DOCS = Path(__file__).parents[1] / "docs"
_TABLE = re.compile(r"<!-- settings: (?P<names>[^>]+) -->\n.*?<!-- end -->\n", re.DOTALL)
_DEFAULT_IN_WORDS = re.compile(r" *None is ([^.]+(?:\.\w[^.]*)*)\.$")
_NOTHING: tuple[object, ...] = (None, "", (), {})


class Entry(NamedTuple):
    name: str
    """As the tables are told which: `source.page_size`, `listen[].tls.key`, `kubeconfigs.sources[exec].command`."""
    takes: str
    default: str
    help: str

    @property
    def shown(self) -> str:
        """Beside its list, as it stands in an item of it."""
        return self.name.rpartition("].")[2]

    def is_of(self, selected: str) -> bool:
        inside = self.name.removeprefix(f"{selected}.")
        return self.name == selected or (inside != self.name and "[" not in inside)


def entries(group: type[BaseModel] = Settings, around: str = "") -> Iterator[Entry]:
    for name, field in group.model_fields.items():
        place, value = around + name, Value.of(field)
        if value.tells_the_type:
            continue
        if said := _docstrings(group).get(name):
            yield _entry(place, field, value, said)
        elif not value.is_group:
            sys.exit(f"{place} has no docstring, which is what the documents would say of it")
        yield from value.within(place)


def _entry(name: str, field: FieldInfo, value: "Value", said: str) -> Entry:
    in_words = _DEFAULT_IN_WORDS.search(said)
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        shown = "required"
    elif default in _NOTHING:
        shown = in_words[1] if in_words else "none"
    else:
        shown = f"`{value.write(default)}`"
    return Entry(name, value.takes, shown, _DEFAULT_IN_WORDS.sub("", said))


@cache
def _docstrings(group: type[BaseModel]) -> dict[str, str]:
    """Of its fields: strings that stand behind them, which Python itself throws away."""
    found: dict[str, str] = {}
    for each in reversed(group.__mro__):
        if not issubclass(each, BaseModel) or each is BaseModel:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, behind in zip(definition.body, definition.body[1:], strict=False):
            match field, behind:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


class Value(NamedTuple):
    """What a setting holds: its type without what is said about it, and what that was."""

    type: Any
    said: tuple[object, ...]

    @classmethod
    def of(cls, field: FieldInfo) -> "Value":
        return cls._of(field.annotation, tuple(field.metadata))

    @classmethod
    def _of(cls, annotation: Any, said: tuple[object, ...]) -> "Value":
        if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
            [*others] = (each for each in get_args(annotation) if each is not NoneType)
            return cls._of(others[0], said) if len(others) == 1 else cls(annotation, said)
        if get_origin(annotation) is Annotated:
            inner, *more = get_args(annotation)
            flat = (part for each in more for part in (each.metadata if isinstance(each, FieldInfo) else (each,)))
            return cls._of(inner, (*said, *flat))
        return cls(annotation, said)

    @property
    def tells_the_type(self) -> bool:
        return get_origin(self.type) is Literal and len(get_args(self.type)) == 1

    @property
    def is_group(self) -> bool:
        return isinstance(self.type, type) and issubclass(self.type, BaseModel)

    def within(self, place: str) -> Iterator[Entry]:
        if self.is_group:
            yield from entries(self.type, f"{place}.")
        elif get_origin(self.type) is tuple:
            item = Value._of(get_args(self.type)[0], ())
            if item.is_group:
                yield from entries(item.type, f"{place}[].")
            elif get_origin(item.type) is UnionType:
                yield from _by_type(get_args(item.type), place)

    @property
    def _parser(self) -> Any:
        return next((each.func for each in self.said if isinstance(each, BeforeValidator)), None)

    @property
    def takes(self) -> str:
        match self._parser:
            case partial(func=values.one_of, keywords={"choices": choices}):
                return ", ".join(f"`{choice}`" for choice in choices)
            case partial(func=values.duration | values.duration_or_off as parser, keywords=limits):
                least, most = (values.duration_text(limits[end]) for end in ("least", "most"))
                return f"{least} to {most}{', or `off`' * (parser is values.duration_or_off)}"
            case partial(func=values.size, keywords={"least": least, "most": most}):
                return f"{values.size_text(least)} to {values.size_text(most)}"
            case values.permissions:
                return "permissions"
        if get_origin(self.type) is Literal:
            return ", ".join(f"`{choice}`" for choice in get_args(self.type))
        return self._takes_by_type()

    def _takes_by_type(self) -> str:
        if self.is_group:
            return "mapping"
        if self.type in (int, float):
            return _range(self.said)
        longest = next((each.max_length for each in self.said if isinstance(each, annotated_types.MaxLen)), None)
        names: dict[Any, str] = {
            bool: "`true`, `false`",
            str: f"up to {longest} characters" if longest else "text",
            Path: "path",
            tuple: "list",
            dict: "mapping",
            TcpAddress: "address",
            ListenAddress: "address",
        }
        return names[get_origin(self.type) if get_origin(self.type) in names else self.type]

    def write(self, value: object) -> str:
        """As it would be given."""
        writers: dict[Any, Callable[[Any], str]] = {
            values.permissions: "{:04o}".format,
            values.size: values.size_text,
            values.duration: values.duration_text,
            values.duration_or_off: values.duration_text,
        }
        parser = self._parser.func if isinstance(self._parser, partial) else self._parser
        match value:
            case _ if parser in writers:
                return writers[parser](value)
            case bool():
                return str(value).lower()
            case float():
                return f"{value:g}"
            case tuple():
                return ",".join(each.title if isinstance(each, Listener) else str(each) for each in value)
        return str(value)


def _by_type(types: tuple[type[BaseModel], ...], place: str) -> Iterator[Entry]:
    """What they have from the class that all are made of, then what each has besides."""
    [base] = {one.__base__ for one in types}
    assert base is not None
    yield from entries(base, f"{place}[].")
    for one in types:
        [kind] = get_args(one.model_fields["type"].annotation)
        own = (each for each in entries(one, f"{place}[{kind}].") if each.shown not in base.model_fields)
        yield from own


def _range(said: tuple[object, ...]) -> str:
    least = most = ""
    for each in said:
        match each:
            case annotated_types.Ge(ge=bound):
                least = f"{bound}"
            case annotated_types.Gt(gt=bound):
                least = f"above {bound}"
            case annotated_types.Le(le=bound):
                most = f"{bound}"
    return f"{least} to {most}"


def table(selected: list[Entry]) -> str:
    rows = (f"| `{each.shown}` | {each.takes} | {each.default} | {each.help} |\n" for each in selected)
    return "| setting | takes | default | what it is |\n|---|---|---|---|\n" + "".join(rows)


def rendered() -> dict[Path, str]:
    """The documents with tables in them, as they should be."""
    known = list(entries())
    left = {each.name for each in known}

    def render(match: re.Match[str]) -> str:
        selected = []
        for name in match["names"].split(", "):
            of_it = [each for each in known if each.is_of(name)]
            if not of_it or not {each.name for each in of_it} <= left:
                sys.exit(f"settings: {name}: there is no such setting, or another table has it")
            left.difference_update(each.name for each in of_it)
            selected += of_it
        return f"<!-- settings: {match['names']} -->\n{table(selected)}<!-- end -->\n"

    documents = {path: _TABLE.sub(render, path.read_text()) for path in sorted(DOCS.glob("*.md"))}
    if left:
        sys.exit(f"no document has a table of {', '.join(sorted(left))}")
    return {path: text for path, text in documents.items() if _TABLE.search(text)}


if __name__ == "__main__":
    for path, text in rendered().items():
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{path.relative_to(DOCS.parent)} is not what the settings are: run ./dev gen")
