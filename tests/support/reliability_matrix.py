"""The tables of docs/reviewers/reliability.md, with the tests of each row."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reviewers" / "reliability.md"
_ROW = re.compile(r"\| ([FSOA]\d+) \| (.*) \|")
_WORD = re.compile(r"\| \*(\w+)\* \| .* \| `([^`]+)` \|")
_TEST = re.compile(r"`((?:\w+/)+\w+\.py(?:::\w+)?)`|\*(\w+)\*")


@dataclass(frozen=True)
class Row:
    number: str
    tests: tuple[str, ...]
    """Node ids, relative to tests/; those of the client library are relative to the repository."""
    is_explained: bool
    """Whether the row explains why it has no tests."""


def rows() -> dict[str, Row]:
    lines = PAGE.read_text().splitlines()
    words = dict(found.groups() for line in lines if (found := _WORD.fullmatch(line)))
    return {
        row.number: row for line in lines if (found := _ROW.fullmatch(line)) and (row := _row(*found.groups(), words))
    }


def _row(number: str, rest: str, words: dict[str, str]) -> Row:
    tests = tuple(node or words[word] for node, word in _TEST.findall(rest.rpartition(" | ")[2]))
    return Row(number, tests, "not injected" in rest)


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
