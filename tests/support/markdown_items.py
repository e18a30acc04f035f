"""The items of lists in Markdown documents."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    text: str
    nested: tuple[str, ...]


def items(text: str) -> list[Item]:
    """Return the top-level items of the lists, each with its nested items, and every text on one line."""
    blocks = re.findall(r"^- .*(?:\n +\S.*)*", text, re.MULTILINE)
    parts = (re.split(r"(?:^|\n *)- ", block)[1:] for block in blocks)
    lines = ([" ".join(part.split()) for part in item] for item in parts)
    return [Item(first, tuple(nested)) for first, *nested in lines]
