"""JSONPath templates in kubectl's syntax: `{.clusters[*].name}`, `{range .clusters[*]}{.name}{"\\n"}{end}`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

_KEY = r"""(?:'[^']*'|"[^"]*")"""
_NUMBER = r"(?:-?\d{1,9})"
_STEP = re.compile(
    rf"""(?P<recursive>\.\.)?\.?(?:
        (?P<wildcard>\*|\[\*\])
      | (?P<name>(?:[\w/-]|\\.)+)
      | \[\s*(?P<keys>{_KEY}(?:\s*,\s*{_KEY})*)\s*\]
      | \[(?P<start>{_NUMBER}?):(?P<stop>{_NUMBER}?)(?::(?P<step>[1-9]\d{{0,8}}))?\]
      | \[(?P<index>{_NUMBER})\]
      | \[\?\((?P<left>[^=!<>()]+?)\s*(?:(?P<operator>==|!=|<=|>=|<|>)\s*(?P<right>[^()]+?))?\)\]
    )""",
    re.VERBOSE,
)
_PART = re.compile(r"""\{((?:[^{}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*)\}""")
_DEEPEST = 100
"""Maximum number of nested {range}: rendering is recursive."""
_RANGE = re.compile(r"^range(?:\s+|(?=[.$@\[])|$)")
_DOTTED = re.compile(r"(?:[\w/-]|\\.)+(?:\.(?:[\w/-]|\\.)+)*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: bool(left == right),
    "!=": lambda left, right: bool(left != right),
    "<": lambda left, right: bool(left < right),
    "<=": lambda left, right: bool(left <= right),
    ">": lambda left, right: bool(left > right),
    ">=": lambda left, right: bool(left >= right),
}


class PathError(ValueError):
    """A template or path that cannot be parsed."""


def find(path: str, document: Any) -> list[Any]:
    """Return the values at a path, such as `.clusters[0].labels.env`. Raises PathError."""
    found = [document]
    for step in _steps(path):
        if step["recursive"]:
            found = [inner for value in found for inner in _within(value)]
        keys = [quoted[1:-1] for quoted in re.findall(_KEY, step["keys"] or "")]
        if keys:
            found = [selected for key in keys for value in found for selected in _at(key, value)]
        else:
            found = [selected for value in found for selected in _selected(step, value)]
    return found


@lru_cache
def _steps(path: str) -> tuple[re.Match[str], ...]:
    """Parse a path, with the filters in it: an invalid one is the user's error, whatever the document contains."""
    rest, steps = path.strip().removeprefix("$").removeprefix("@"), []
    while rest not in {"", "."}:
        step = _STEP.match(rest)
        if step is None or not step.end():
            raise PathError(f"{path!r} is not a JSONPath: cannot parse {rest!r}")
        if step["left"]:
            _steps(step["left"])
        if step["operator"]:
            _operand(step["right"])
        steps.append(step)
        rest = rest[step.end() :]
    return tuple(steps)


def render(template: str, document: Any) -> str:
    """Return the text of a template. Raises PathError."""
    parts = _PART.split(template)
    texts, expressions = parts[::2], [part.strip() for part in parts[1::2]]
    if any("{" in text or "}" in text for text in texts):
        raise PathError(f"{template!r} is not a JSONPath template: its braces do not match")
    depth = 0
    for expression in expressions:
        _check(expression)
        depth += _nesting(expression)
        if depth > _DEEPEST:
            raise PathError(f"the template has more than {_DEEPEST} nested {{range}}")
    tokens = [
        texts[0],
        *(token for pair in zip(map(_Expression, expressions), texts[1:], strict=True) for token in pair),
    ]
    return "".join(_rendered(iter(tokens), document))


class _Expression(str):
    """The expression between two braces."""

    __slots__ = ()


def _check(expression: str) -> None:
    if expression[:1] in {'"', "'"}:
        _literal(expression)
    elif expression != "end":
        _steps(_RANGE.sub("", expression))


def _nesting(expression: str) -> int:
    """Return by how much an expression changes the depth of what follows it."""
    return bool(_RANGE.match(expression)) - (expression == "end")


def _rendered(tokens: Iterator[str], document: Any) -> Iterator[str]:
    for token in tokens:
        if not isinstance(token, _Expression):
            yield token
        elif _nesting(token) > 0:
            body = list(_until_end(tokens))
            for item in find(_RANGE.sub("", token), document):
                yield from _rendered(iter(body), item)
        elif _nesting(token) < 0:
            raise PathError("{end} without {range}")
        elif token[:1] in {'"', "'"}:
            yield _literal(token)
        else:
            yield " ".join(map(text, find(token, document)))


def _until_end(tokens: Iterator[str]) -> Iterator[str]:
    depth = 1
    for token in tokens:
        if isinstance(token, _Expression):
            depth += _nesting(token)
        if not depth:
            return
        yield token
    raise PathError("{range} without {end}")


def text(value: Any) -> str:
    """Return a value as kubectl prints it: strings without quotes, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(token: str) -> str:
    try:
        return str(json.loads(f'"{token[1:-1]}"'))
    except ValueError:
        raise PathError(f"{token} is not a valid string: check its escapes and inner quotes") from None


def _within(value: Any) -> Iterator[Any]:
    """Yield a value, and recursively every value that it contains."""
    yield value
    for child in _children(value):
        yield from _within(child)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _selected(step: re.Match[str], value: Any) -> Iterable[Any]:
    if step["wildcard"]:
        return _children(value)
    if step["left"]:
        return [child for child in _children(value) if _matches(step, child)]
    if step["index"] or step["start"] is not None:
        items = value if isinstance(value, list) else []
        if step["index"]:
            at = int(step["index"])
            return [items[at]] if -len(items) <= at < len(items) else []
        bounds = (int(step[name]) if step[name] else None for name in ("start", "stop", "step"))
        return items[slice(*bounds)]
    name = re.sub(r"\\(.)", r"\1", step["name"])
    return [value[name]] if isinstance(value, dict) and name in value else []


def _at(key: str, value: Any) -> Iterable[Any]:
    """Return the value at a quoted key. As in kubectl, it can also be a path: `['metadata.name']`."""
    if isinstance(value, dict) and key in value:
        return [value[key]]
    return find(key, value) if _DOTTED.fullmatch(key) else []


def _matches(step: re.Match[str], item: Any) -> bool:
    left = find(step["left"], item)
    if step["operator"] is None or not left:
        return bool(left)
    try:
        return _COMPARE[step["operator"]](left[0], _operand(step["right"]))
    except TypeError:
        return False


def _operand(right: str) -> Any:
    right = right.strip()
    try:
        return _literal(right) if right[:1] in {'"', "'"} else json.loads(right)
    except (ValueError, RecursionError):
        raise PathError(f"{right} is not a quoted string, a number, true, false or null") from None
