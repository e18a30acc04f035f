"""The numbered rows of docs/reviewers/reliability.md, which are items of lists, with the tests of each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.markdown_items import Item, items

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reviewers" / "reliability.md"
_ROW = re.compile(r"\*\*([FSOA]\d+)\.\*\* .+")
_WORD = re.compile(r"\*(\w+)\*: .+")
_TEST = re.compile(r"`((?:\w+/)+\w+\.py(?:::\w+)?)`|\*(\w+)\*")


@dataclass(frozen=True)
class Row:
    number: str
    tests: tuple[str, ...]
    """Node ids, relative to tests/; those of the client library are relative to the repository."""
    is_explained: bool
    """Whether the row explains why it has no tests."""


def rows() -> dict[str, Row]:
    listed = items(PAGE.read_text())
    words = {
        found[1]: item.nested[0].strip("`") for item in listed if item.nested and (found := _WORD.fullmatch(item.text))
    }
    return {found[1]: _row(found[1], item, words) for item in listed if (found := _ROW.fullmatch(item.text))}


def _row(number: str, item: Item, words: dict[str, str]) -> Row:
    """Return the row of an item, whose nested items are its tests, or raise an error if one is something else."""
    tests = []
    for nested in item.nested:
        found = _TEST.fullmatch(nested)
        if found is None:
            raise ValueError(f"row {number}: {nested} is not a test or a keyword")
        tests.append(found[1] or words[found[2]])
    return Row(number, tuple(tests), "not injected" in item.text)


def file_of(path: str) -> Path:
    """Return the file of a node id."""
    return ROOT / path if path.startswith("clients/") else ROOT / "tests" / path


def of_row(number: str, items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Select the tests of a row. Of a test with parameters for several rows, only those for this row are selected."""
    wanted = rows()[number].tests
    own = re.compile(rf"\[(?:{number}|[^FSOA].*)[-\]]|^[^\[]*$")

    def is_wanted(item: pytest.Item) -> bool:
        node = item.nodeid.removeprefix("tests/")
        return any(re.match(rf"{re.escape(test)}(?:::|\[|$)", node) for test in wanted) and bool(own.search(item.name))

    return [item for item in items if is_wanted(item)]
