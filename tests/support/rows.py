"""The tests of the numbered rows of docs/reviewers/reliability.md and security.md, from tests/rows.toml."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def nodes_of_rows() -> dict[str, list[str]]:
    """Return the node ids of each row, relative to tests/; those of other folders relative to the repository."""
    data = tomllib.loads((ROOT / "tests" / "rows.toml").read_text())
    return {row: [data["words"].get(test, test) for test in tests] for row, tests in data["rows"].items()}


def file_of(path: str) -> Path:
    """Return the file of a node id."""
    return ROOT / path if path.startswith(("clients/", "kube/")) else ROOT / "tests" / path


def of_row(number: str, items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Select the tests of a row. Of a test with parameters for several rows, only those for this row are selected."""
    wanted = nodes_of_rows()[number]
    own = re.compile(rf"\[(?:{number}|[^FSOAKI].*)[-\]]|^[^\[]*$")

    def is_wanted(item: pytest.Item) -> bool:
        node = item.nodeid.removeprefix("tests/")
        return any(re.match(rf"{re.escape(test)}(?:::|\[|$)", node) for test in wanted) and bool(own.search(item.name))

    return [item for item in items if is_wanted(item)]
