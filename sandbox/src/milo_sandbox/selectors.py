"""Label and field selectors, in the API server's syntax."""

import re
from collections.abc import Callable, Collection, Mapping

import msgspec

from milo_sandbox import refusals

_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_KEY = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class LabelRequirement(msgspec.Struct, frozen=True):
    """One requirement of a selector: key, operator and values."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "!":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case _:
                return value is not None and self._compares(value)

    def _compares(self, value: str) -> bool:
        bound = int(next(iter(self.values)))
        try:
            number = int(value)
        except ValueError:
            return False
        return number > bound if self.operator == ">" else number < bound


class LabelSelector(msgspec.Struct, frozen=True):
    """A selector: requirements on labels and on fields, all of which must match."""

    labels: tuple[LabelRequirement, ...] = ()
    fields: tuple[LabelRequirement, ...] = ()

    @property
    def is_everything(self) -> bool:
        return not self.labels and not self.fields

    def matches(self, labels: Mapping[str, str], field: Callable[[str], str]) -> bool:
        """Return whether an object matches. `field` returns the value of the object's field at a path."""
        return all(clause.matches(labels) for clause in self.labels) and all(
            clause.matches({clause.key: field(clause.key)}) for clause in self.fields
        )


EVERYTHING = LabelSelector()
NAME = "metadata.name"
NAMESPACE = "metadata.namespace"


def parse(
    label_selector: str = "", field_selector: str = "", *, namespace: str = "", selectable: Collection[str] = ()
) -> LabelSelector:
    """Parse the selectors of a request, which may be limited to a namespace.

    `selectable`: the paths of the fields, besides name and namespace, that the resource allows in selectors.
    """
    if not label_selector and not field_selector and not namespace:
        return EVERYTHING
    fields = _parse_fields(field_selector, (NAME, NAMESPACE, *selectable))
    if namespace:
        fields = (LabelRequirement(NAMESPACE, "in", frozenset({namespace})), *fields)
    return LabelSelector(_Clauses(label_selector).read(), fields)


def _parse_fields(text: str, selectable: Collection[str]) -> tuple[LabelRequirement, ...]:
    clauses = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([^=!]+)(==|!=|=)(.*)", part.strip())
        if found is None:
            raise refusals.bad_request(f"invalid field selector {part!r}: use key=value, key==value or key!=value")
        key, operator, value = found.groups()
        if key not in selectable:
            raise refusals.bad_request(f'field label not supported: "{key}"; use {" or ".join(selectable)}')
        clauses.append(LabelRequirement(key, "notin" if operator == "!=" else "in", frozenset({value})))
    return tuple(clauses)


class _Clauses:
    """A recursive-descent parser of label selectors: `a=b, c!=d, e in (f, g), h notin (i), j, !k, l>1`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def read(self) -> tuple[LabelRequirement, ...]:
        clauses: list[LabelRequirement] = []
        while self._peek():
            clauses.append(self._clause())
            if self._peek():
                self._expect(",")
                if not self._peek():
                    raise self._wrong("found '', expected: a key after ','")
        return tuple(clauses)

    def _clause(self) -> LabelRequirement:
        if self._peek() == "!":
            self._next()
            return LabelRequirement(self._key(), "!")
        key = self._key()
        match self._peek():
            case "" | ",":
                return LabelRequirement(key, "exists")
            case "=" | "==":
                self._next()
                return LabelRequirement(key, "in", frozenset({self._value()}))
            case "!=":
                self._next()
                return LabelRequirement(key, "notin", frozenset({self._value()}))
            case ("in" | "notin") as operator:
                self._next()
                return LabelRequirement(key, operator, self._values())
            case (">" | "<") as operator:
                self._next()
                bound = self._value()
                if not re.fullmatch(r"-?[0-9]{1,18}", bound):
                    raise self._wrong(f"found {bound!r}, expected: an integer after {operator!r}")
                return LabelRequirement(key, operator, frozenset({bound}))
            case found:
                raise self._wrong(f"found {found!r}, expected: in, notin, =, ==, !=, gt, lt")

    def _key(self) -> str:
        key = self._next()
        if not _KEY.fullmatch(key):
            raise self._wrong(f"found {key!r}, expected: a label key")
        return key

    def _value(self) -> str:
        # An empty value is allowed: `a=` selects objects with an empty label.
        if self._peek() in {"", ",", ")"}:
            return ""
        value = self._next()
        if not _VALUE.fullmatch(value) and not re.fullmatch(r"-[0-9]+", value):
            raise self._wrong(f"found {value!r}, expected: a label value")
        return value

    def _values(self) -> frozenset[str]:
        self._expect("(")
        values = {self._value()}
        while self._peek() == ",":
            self._next()
            values.add(self._value())
        self._expect(")")
        return frozenset(values)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token: str = self._peek()
        self._at += 1
        return token

    def _expect(self, wanted: str) -> None:
        found = self._next()
        if found != wanted:
            raise self._wrong(f"found {found!r}, expected: {wanted!r}")

    def _wrong(self, why: str) -> refusals.RefusalError:
        return refusals.bad_request(f"unable to parse requirement: {why} (in {self._text!r})")
