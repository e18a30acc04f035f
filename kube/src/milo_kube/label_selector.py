"""Kubernetes label selectors, in the syntax of the API server, including sets, inequality and comparison."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TypeAlias, TypeVar

import msgspec

T = TypeVar("T")
Predicate: TypeAlias = Callable[[T], bool]
"""A condition that is composed once and evaluated many times, so that selectors that are not set cost nothing."""

_BLANK = " \t\r\n"  # the only whitespace that the API server's parser accepts
_TOKEN = re.compile(rf"[{_BLANK}]*(?:(?P<op>==|!=|=|!|>|<|\(|\)|,)|(?P<word>[^{_BLANK}=!<>(),]+))")
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_NUMBER = re.compile(r"[0-9]+")
_GREATEST = 2**63 - 1
_LONGEST_QUOTED = 80
_FEW = 4
"""The number of requirements up to which looping over the labels for each is faster than building a mapping."""
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")


class SelectorError(ValueError):
    """A syntax error in a selector; the message contains the position."""


Labels = Collection[tuple[str, str]]
"""Pairs of key and value, each key once."""


class Requirement(msgspec.Struct, frozen=True):
    """One condition of a selector, on one key."""

    key: str
    operator: str
    """One of in, notin, exists, !, >, <."""
    values: tuple[str, ...] | frozenset[str] = ()
    """A set if there are several: that of a single value takes four times its memory."""

    def accepts(self) -> Predicate[str | None]:
        """Return a predicate on the value of the label; None stands for an absent label."""
        match self.operator:
            case "in":
                return self.values.__contains__
            case "notin":
                return self._excludes
            case "exists":
                return _is_present
            case "!":
                return _is_absent
            case _:
                return self._compares

    # These are methods, since a closure takes three times the memory of a bound method.

    def _excludes(self, value: str | None) -> bool:
        return value not in self.values

    def _compares(self, value: str | None) -> bool:
        number, bound = None if value is None else _whole(value), int(*self.values)
        return number is not None and (number > bound if self.operator == ">" else number < bound)

    def test(self) -> Predicate[Labels]:
        """Return a predicate on labels. It loops over the few pairs, which is faster than building a mapping."""
        key = self.key
        if self.operator == "in" and len(self.values) == 1:
            wanted = (key, *self.values)
            return lambda labels: wanted in labels
        accepts = self.accepts()
        absent = accepts(None)

        def holds(labels: Labels) -> bool:
            for name, value in labels:
                if name == key:
                    return accepts(value)
            return absent

        return holds

    def __str__(self) -> str:
        match self.operator:
            case "in" | "notin":
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case _:
                return f"{self.key}{self.operator}{next(iter(self.values))}"


class Selector(msgspec.Struct, frozen=True, dict=True):
    """A label selector: all requirements must hold; without any, everything matches."""

    requirements: tuple[Requirement, ...] = ()

    @cached_property
    def matches(self) -> Predicate[Labels]:
        if len(self.requirements) <= _FEW:
            return all_of([requirement.test() for requirement in self.requirements])
        # An object may have a thousand labels, and a selector many requirements: only those on labels that the object
        # has are evaluated.
        by_key: dict[str, list[Predicate[str | None]]] = {}
        for requirement in self.requirements:
            by_key.setdefault(requirement.key, []).append(requirement.accepts())
        tests = {key: all_of(predicates) for key, predicates in by_key.items()}
        keys, required = tests.keys(), {key for key, accepts in tests.items() if not accepts(None)}

        def holds(labels: Labels) -> bool:
            values = dict(labels)
            if not required <= values.keys():
                return False
            for key in keys & values.keys():  # noqa: SIM110 - a loop is twice as fast as all()
                if not tests[key](values[key]):
                    return False
            return True

        return holds

    def __bool__(self) -> bool:
        return bool(self.requirements)

    def __str__(self) -> str:
        """Return the canonical form, in which the order of requirements and values makes no difference."""
        return ",".join(sorted(str(requirement) for requirement in self.requirements))


def parse(text: str) -> Selector:
    if not text.strip(_BLANK):
        return Selector()
    return Selector(tuple(_Parser(text).requirements()))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        position = 0
        end = len(text.rstrip(_BLANK))
        while position < end:
            token = _TOKEN.match(text, position)
            assert token is not None, f"no token matches {self._text!r} at {position}"
            kind = token.lastgroup
            assert kind is not None
            self._tokens.append((kind, token[kind], token.start(kind)))
            position = token.end()
        self._next = 0

    def requirements(self) -> list[Requirement]:
        found = [self._requirement()]
        while self._peek() == ",":
            self._take()
            found.append(self._requirement())
        if self._peek():
            raise self._error(f"expected ',' or the end of the selector, found {_quoted(self._peek())}")
        return found

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._take()
            return Requirement(self._key(), "!")
        key = self._key()
        match self._peek():
            case "" | ",":
                return Requirement(key, "exists")
            case "=" | "==":
                self._take()
                return Requirement(key, "in", (self._value(),))
            case "!=":
                self._take()
                return Requirement(key, "notin", (self._value(),))
            case "in" | "notin" as operator:
                self._take()
                return Requirement(key, operator, self._values())
            case ">" | "<" as operator:
                self._take()
                return Requirement(key, operator, (self._number(),))
            case other:
                raise self._error(
                    f"expected ',', the end of the selector or one of = == != in notin > <, found {_quoted(other)}"
                )

    def _key(self) -> str:
        key = self._word("a label key")
        prefix, slash, name = key.rpartition("/")
        if slash and not (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix)):
            raise self._error(f"the prefix of label key {_quoted(key)} must be a lowercase DNS name", back=1)
        if not (len(name) <= 63 and _NAME.fullmatch(name)):
            raise self._error(
                f"the name of label key {_quoted(key)} must be up to 63 letters, digits, '-', '_' or '.', beginning "
                "and ending with a letter or digit",
                back=1,
            )
        return key

    def _value(self) -> str:
        if self._peek() in ("", ",", ")"):
            return ""  # "key=" selects the empty value
        value = self._word("a label value")
        if not (len(value) <= 63 and _NAME.fullmatch(value)):
            raise self._error(
                f"label value {_quoted(value)} must be up to 63 letters, digits, '-', '_' or '.', beginning and ending "
                "with a letter or digit",
                back=1,
            )
        return value

    def _values(self) -> tuple[str, ...] | frozenset[str]:
        if self._peek() != "(":
            raise self._unexpected("'(' after in or notin")
        self._take()
        values = [self._value()]
        while self._peek() == ",":
            self._take()
            values.append(self._value())
        if self._peek() != ")":
            raise self._unexpected("',' or ')'")
        self._take()
        different = frozenset(values)
        return different if len(different) > 1 else tuple(different)

    def _number(self) -> str:
        word = self._word("a whole number")
        number = _whole(word)
        if number is None:
            raise self._error(f"expected a whole number from 0 to {_GREATEST}, found {_quoted(word)}", back=1)
        return str(number)

    def _word(self, what: str) -> str:
        if self._next >= len(self._tokens) or self._tokens[self._next][0] != "word":
            raise self._unexpected(what)
        return self._take()

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][1]

    def _unexpected(self, expected: str) -> SelectorError:
        found = f"found {_quoted(self._peek())}" if self._peek() else "found the end of the selector"
        return self._error(f"expected {expected}, {found}")

    def _error(self, problem: str, back: int = 0) -> SelectorError:
        index = self._next - back
        at = self._tokens[index][2] if index < len(self._tokens) else len(self._text)
        return SelectorError(f"{problem}, at character {at + 1}")


def _quoted(word: str) -> str:
    return repr(word if len(word) <= _LONGEST_QUOTED else f"{word[:_LONGEST_QUOTED]}…")


def _is_present(value: str | None) -> bool:
    return value is not None


def _is_absent(value: str | None) -> bool:
    return value is None


def _whole(text: str) -> int | None:
    """Return a label value as a number; None unless it consists of 1 to 63 digits and is at most 2^63 - 1."""
    number = int(text) if len(text) <= 63 and _NUMBER.fullmatch(text) else None
    return number if number is not None and number <= _GREATEST else None


def all_of(predicates: Sequence[Predicate[T]]) -> Predicate[T]:
    """Return a predicate that is true if all of `predicates` are."""
    if not predicates:
        return lambda _: True
    if len(predicates) == 1:
        return predicates[0]
    first, second, *others = predicates
    if not others:
        return lambda value: first(value) and second(value)

    def holds(value: T) -> bool:
        # A loop is twice as fast as all().
        for predicate in predicates:  # noqa: SIM110
            if not predicate(value):
                return False
        return True

    return holds
