"""docs/reviewers/security-reference.md names existing tests for every control and every attack."""

import ast
import re
import tomllib
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINES = (ROOT / "docs" / "reviewers" / "security-reference.md").read_text().splitlines()
_CONTROL = re.compile(r"\| (K\d+)? \| (.+) \| (.+) \|")
_LINK = re.compile(r"\[`([^`]+)`\]\(\.\./\.\./tests/([^)]+)\)")
_TRIED_FROM = LINES.index("| tried | tests |")

CONTROLS = [
    found.groups() for line in LINES[:_TRIED_FROM] if (found := _CONTROL.fullmatch(line)) and _LINK.search(line)
]
TRIED = [line for line in LINES[_TRIED_FROM + 2 :] if line.startswith("| ") and _LINK.search(line)]


@cache
def collected(path: str) -> frozenset[str]:
    """Return the top-level tests of a file, state machines included."""
    file = ROOT / "tests" / path
    if not file.is_file():
        return frozenset()
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = (node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds))
    return frozenset(name for name in names if name.lower().startswith("test"))


def test_security_controls_are_numbered_in_order() -> None:
    assert [number for number, *_ in CONTROLS if number] == [f"K{number}" for number in range(1, 20)]


@pytest.mark.parametrize(
    "row", [*(" | ".join(filter(None, row)) for row in CONTROLS), *TRIED], ids=lambda row: row[:40]
)
def test_security_rows_name_existing_tests(row: str) -> None:
    named = _LINK.findall(row)
    missing = [
        (name, path) for name, path in named if not collected(path) or (name != path and name not in collected(path))
    ]
    assert named
    assert missing == []


def test_security_attack_table_has_29_rows() -> None:
    assert len(TRIED) == 29


# --- dependencies ---


def dependencies() -> set[str]:
    """Return the dependencies of the distributions, with the optional dependencies that are used in production."""
    found: set[str] = set()
    for directory in (ROOT, *(ROOT / name for name in ("clients/python", "controllers", "publishing", "kube"))):
        project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        optional = [each for extra in ("traces", "kubernetes", "http2") for each in extras.get(extra, ())]
        found |= {re.split(r"[^\w-]", requirement)[0] for requirement in (*project["dependencies"], *optional)}
    return {name for name in found if not name.startswith("milo-")}


def test_security_page_reviews_exactly_the_dependencies() -> None:
    first = LINES.index("| package | used for | data that it handles | license | maintained by |") + 2
    rows = list(takewhile(lambda line: line.startswith("|"), LINES[first:]))
    assert {name for row in rows for name in re.findall(r"`([\w.-]+)`", row.split(" | ")[0])} == dependencies()
