"""What JSON can say as YAML, laid out in blocks, without a YAML library.

Strings are quoted as JSON quotes them, which YAML reads the same way, unless they are plainly words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# A letter, then letters, digits and a few signs that mean nothing to YAML there.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# What some version of YAML reads as something other than a string.
_NOT_A_STRING = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def document(value: Any) -> str:
    """One document, without its markers."""
    return "\n".join(_lines(value))


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
    # Not JSON's own escapes beyond ASCII: those come in pairs for some characters, which YAML reads as two.
    return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(character: str) -> str:
    return character if character.isprintable() else f"\\U{ord(character):08x}"
