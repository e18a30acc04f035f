"""The declaration and validation of settings: groups of fields, each annotated with its parser.

`./dev gen` copies a setting's docstring to the documentation.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, Union, get_args, get_origin

import msgspec

from milo_discoveryd.schema import values
from milo_kube import label_selector


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of settings. `__post_init__` checks the settings together, and raises ValueError if they conflict."""


G = TypeVar("G", bound=Group)


class Complaint(NamedTuple):
    """A problem with a value, and the path of the value in the parsed input."""

    path: tuple[str | int, ...]
    value: object
    text: str


class InvalidError(ValueError):
    """All problems of a value and of the values inside it."""

    def __init__(self, complaints: Collection[Complaint]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("; ".join(complaint.text for complaint in complaints))


class Parser(Protocol):
    """A parser of a setting's value, which is text or a YAML value. Raises ValueError."""

    def __call__(self, value: object, /) -> Any: ...


class Field(NamedTuple):
    name: str
    attribute: str
    """Name of the struct's attribute, which differs from `name` if that is a Python keyword."""
    type: Any
    """The type, without None and annotations."""
    parse: Parser
    default: Any
    is_required: bool

    @property
    def is_group(self) -> bool:
        is_nested = isinstance(self.parse, Nested) and not self.parse.is_leaf
        return isinstance(self.type, type) and issubclass(self.type, Group) and is_nested


@cache
def fields(group: type[Group]) -> dict[str, Field]:
    return {field.encode_name: _field(field) for field in msgspec.structs.fields(group)}


def _field(info: msgspec.structs.FieldInfo) -> Field:
    annotation, parse = _bare(info.type), _parser(info.type)
    default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    return Field(info.encode_name, info.name, annotation, parse, default, info.required)


def _bare(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        others = [argument for argument in get_args(annotation) if argument is not NoneType]
        return _bare(others[0]) if len(others) == 1 else annotation
    return annotation


def _parser(annotation: Any) -> Parser:
    if get_origin(annotation) is Annotated:
        parser: Parser = get_args(annotation)[1]
        return parser
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return _parser(next(argument for argument in get_args(annotation) if argument is not NoneType))
    if annotation is bool:
        return flag
    return Nested(annotation)


def parse_group(group: type[G], given: Mapping[str, object], *, of: str = "") -> G:
    """Parse a mapping; a key without a value counts as not set. Raises InvalidError.

    `of` says in messages whose settings they are, such as " of kind project".
    """
    known = fields(group)
    parsed: dict[str, Any] = {}
    complaints = [
        Complaint((name,), None, f"is not a setting{of}{nearest(name, known)}") for name in given if name not in known
    ]
    for name, field in known.items():
        if (value := given.get(name)) is None:
            if field.is_required:
                complaints.append(Complaint((name,), None, "is missing"))
            continue
        try:
            parsed[field.attribute] = field.parse(value)
        except ValueError as error:
            complaints += _within(name, value, error)
    if complaints:
        raise InvalidError(complaints)
    return group(**parsed)


def nearest(name: str, known: Collection[str], around: tuple[str, ...] = ()) -> str:
    """Return the end of a message about an unknown name: the nearest of the `known` names, or else all of them.

    The nearest name is shown with the path of its group, `around`.
    """
    import difflib  # noqa: PLC0415 - used only in errors

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if not near:
        # Other spellings of the same words: labelSelector, label-selector.
        plain = {re.sub(r"[-_]", "", word).lower(): word for word in known}
        same = plain.get(re.sub(r"[-_]", "", name).lower())
        near = [same] if same else []
    if near:
        return f"; did you mean {'.'.join((*around, near[0]))}?"
    return f"; valid names are {', '.join(known)}" if known else "; no settings are valid here"


def _within(step: str | int, value: object, error: ValueError) -> Iterator[Complaint]:
    if isinstance(error, InvalidError):
        yield from (complaint._replace(path=(step, *complaint.path)) for complaint in error.complaints)
    else:
        yield Complaint((step,), value, str(error))


class Nested:
    """A nested group of settings. `prepare` converts a shorthand to a mapping or to the parsed group.

    With `is_leaf`, the group is set only as a whole: its settings have no flags or environment variables.
    """

    def __init__(
        self, group: type[Group], prepare: Callable[[object], object] | None = None, *, is_leaf: bool = False
    ) -> None:
        self.group = group
        self.is_leaf = is_leaf
        self._prepare = prepare

    def __call__(self, value: object, /) -> object:
        prepared = value if self._prepare is None else self._prepare(value)
        if isinstance(prepared, Mapping):
            return parse_group(self.group, prepared)
        if prepared is None or isinstance(prepared, Group):
            return prepared
        raise ValueError("must be a mapping of settings to values")


class ListOf:
    """A list of parsed items. `split` extracts the items from the input, and `check` validates the parsed list."""

    def __init__(
        self,
        item: Parser,
        *,
        split: Callable[[object], tuple[object, ...]] = values.words,
        least: int = 0,
        most: int | None = None,
        check: Callable[[Any], object] | None = None,
    ) -> None:
        self.item = item
        self._split = split
        self._least, self._most = least, most
        self._check = check

    def __call__(self, value: object, /) -> tuple[Any, ...]:
        items = self._split(value)
        if len(items) < self._least:
            raise ValueError(f"must have at least {self._least} value{'s' * (self._least > 1)}")
        if self._most is not None and len(items) > self._most:
            raise ValueError(f"must have at most {self._most} values")
        parsed, complaints = [], list[Complaint]()
        for number, item in enumerate(items):
            try:
                parsed.append(self.item(item))
            except ValueError as error:
                complaints += _within(number, item, error)
        if complaints:
            raise InvalidError(complaints)
        if self._check is not None:
            self._check(tuple(parsed))
        return tuple(parsed)


class Whole:
    """A whole number within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __call__(self, value: object, /) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise ValueError(f"must be a whole number from {self.least} to {self.most}")
        return int(_bounded(int(text), self.least, self.most))


class Number:
    """A number within bounds; with `is_above`, it must be greater than the lower bound."""

    def __init__(self, least: float, most: float, *, is_above: bool = False) -> None:
        self.least, self.most, self.is_above = least, most, is_above

    def __call__(self, value: object, /) -> float:
        try:
            number = float(str(value))
        except ValueError:
            raise ValueError("must be a number") from None
        if math.isnan(number):
            raise ValueError("must be a number")
        if self.is_above and number <= self.least:
            raise ValueError(f"must be more than {self.least:g}")
        return _bounded(number, self.least, self.most)


def _bounded(number: float, least: float, most: float) -> float:
    if number < least:
        raise ValueError(f"must be at least {least:g}" if least < 1e6 else f"must be at least {least}")
    if number > most:
        raise ValueError(f"must be at most {most}")
    return number


class Text:
    """A string with a bounded length; `form` may validate it further."""

    def __init__(self, *, least: int = 0, most: int | None = None, form: Callable[[object], str] = str) -> None:
        self.least, self.most = least, most
        self._form = form

    def __call__(self, value: object, /) -> str:
        if not isinstance(value, str | int | float):
            raise ValueError("must be a string")  # noqa: TRY004 - parsers raise ValueError
        text = self._form(value)
        if len(text) < self.least:
            raise ValueError("must not be empty")
        if self.most is not None and len(text) > self.most:
            raise ValueError(f"must have at most {self.most} characters")
        return text


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def flag(value: object, /) -> bool:
    found = _FLAGS.get(str(value).lower())
    if found is None:
        raise ValueError("must be true or false")
    return found


def selector_text(value: object) -> str:
    text = str(value)
    try:
        label_selector.parse(text)
    except label_selector.SelectorError as error:
        raise ValueError(f"must be a Kubernetes label selector: {error}") from None
    return text


_any_duration = partial(values.duration, least=timedelta(), most=timedelta.max)


def span(least: str, most: str) -> Parser:
    return partial(values.duration, least=_any_duration(least), most=_any_duration(most))


def span_or_off(least: str, most: str) -> Parser:
    return partial(values.duration_or_off, least=_any_duration(least), most=_any_duration(most))


def size(least: int, most: int) -> Parser:
    return partial(values.size, least=least, most=most)


def one_of(*choices: str) -> Parser:
    return partial(values.one_of, choices=choices)
