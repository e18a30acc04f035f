"""Each row of docs/reviewers/reliability.md names existing tests, or explains why it has none."""

import ast
from functools import cache

import pytest

from tests.support.reliability_matrix import file_of, rows

ROWS = rows()


@cache
def names(path: str) -> frozenset[str]:
    """Return the names of all functions and classes in a file."""
    tree = ast.parse(file_of(path).read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize(("letter", "last"), [("F", 95), ("S", 23), ("O", 10), ("A", 14)])
def test_reliability_rows_are_numbered_in_order(letter: str, last: int) -> None:
    assert [row for row in ROWS if row[0] == letter] == [f"{letter}{number}" for number in range(1, last + 1)]


def test_reliability_rows_have_tests_or_an_explanation() -> None:
    assert [row.number for row in ROWS.values() if bool(row.tests) == row.is_explained] == []


def test_reliability_rows_name_existing_tests() -> None:
    missing = [
        f"{row.number}: {node}"
        for row in ROWS.values()
        for node in row.tests
        for path, _, name in [node.partition("::")]
        if not file_of(path).is_file() or (name and name not in names(path))
    ]
    assert missing == []
