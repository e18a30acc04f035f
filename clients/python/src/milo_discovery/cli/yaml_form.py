"""Values as YAML, without a YAML library: what JSON can say, laid out in blocks.

Strings are quoted as JSON quotes them, which YAML reads the same way, unless they are plainly words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from milo_discovery.cli.json_form import to_json

# A letter, then letters, digits and a few signs that mean nothing to YAML there.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# What some version of YAML reads as something other than a string.
_NOT_A_STRING = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def document(value: Any) -> str:
    """One document, without its markers."""
    return "\n".join(_lines(to_json(value)))


def _lines(value: Any) -> Iterator[str]:
    match value:
        case dict() if value:
            for key, each in value.items():
                yield from _entry(f"{_scalar(key)}:", each, deeper="  ")
        case list() if value:
            for each in value:
                yield from _item(each)
        case _:
            yield _scalar(value)


def _entry(head: str, value: Any, *, deeper: str) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        # A list under a key needs no deeper indent, as kubectl has it.
        indent = "" if isinstance(value, list) else deeper
        yield from (indent + line for line in _lines(value))
    else:
        yield f"{head} {_scalar(value)}"


def _item(value: Any) -> Iterator[str]:
    first, *rest = _lines(value)
    yield f"- {first}"
    yield from (f"  {line}" for line in rest)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NOT_A_STRING:
        return value
    return json.dumps(value)
