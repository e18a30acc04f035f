"""Formats JSON values as block-style YAML, without a YAML library.

Strings are quoted as in JSON, which is valid YAML, unless they are plain words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# A letter, then letters, digits and punctuation without a meaning in YAML.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# Words that YAML 1.1 or 1.2 does not parse as a string.
_NOT_A_STRING = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def document(value: Any) -> str:
    """Format a value as one YAML document, without document markers."""
    return "\n".join(_lines(value))


def _lines(value: Any) -> Iterator[str]:
    match value:
        case dict() if value:
            for key, item in value.items():
                yield from _entry(f"{_scalar(key)}:", item, indent_mapping="  ")
        case list() if value:
            for item in value:
                yield from _item(item)
        case _:
            yield _scalar(value)


def _entry(head: str, value: Any, *, indent_mapping: str) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        # A list under a key is not indented further, as in kubectl's output.
        indent = "" if isinstance(value, list) else indent_mapping
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
    # ensure_ascii would escape some characters as surrogate pairs, which YAML parses as two characters.
    return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))


def _escaped(character: str) -> str:
    return character if character.isprintable() else f"\\U{ord(character):08x}"
