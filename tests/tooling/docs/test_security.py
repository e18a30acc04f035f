"""docs/reviewers/security-reference.md names existing tests for every control and every attack."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.support.markdown_items import Item, items

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "reviewers" / "security-reference.md").read_text()
_LINK = re.compile(r"\[`([^`]+)`\]\(\.\./\.\./tests/([^)]+)\)")


def section(heading: str) -> str:
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


_CONTROLS, _, _ATTEMPTS = section("Controls, and their tests").partition("\nIntrusion attempts.")
CONTROLS = items(_CONTROLS)
TRIED = items(_ATTEMPTS)


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
    numbers = [found[1] for item in CONTROLS if (found := re.match(r"\*\*(K\d+)\.\*\* ", item.text))]
    assert numbers == [f"K{number}" for number in range(1, 20)]
    assert len(CONTROLS) == 20


@pytest.mark.parametrize("item", [*CONTROLS, *TRIED], ids=lambda item: item.text[:40])
def test_security_items_name_existing_tests(item: Item) -> None:
    named = [pair for nested in item.nested for pair in _LINK.findall(nested)]
    missing = [
        (name, path) for name, path in named if not collected(path) or (name != path and name not in collected(path))
    ]
    assert named
    assert missing == []


def test_security_reference_has_29_intrusion_attempts() -> None:
    assert len(TRIED) == 29


# --- dependencies ---


def dependencies() -> set[str]:
    """Return the dependencies of the distributions, with the optional dependencies that are used in production."""
    found: set[str] = set()
    for directory in (ROOT, *(ROOT / name for name in ("clients/python", "controllers", "publishing", "kube"))):
        project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        optional = [requirement for extra in ("traces", "kubernetes", "http2") for requirement in extras.get(extra, ())]
        found |= {re.split(r"[^\w-]", requirement)[0] for requirement in (*project["dependencies"], *optional)}
    return {name for name in found if not name.startswith("milo-")}


def test_security_page_reviews_all_dependencies_and_no_other_packages() -> None:
    listed = (item.text.partition(": ")[0] for item in items(section("Dependencies")))
    assert {name for names in listed for name in re.findall(r"`([\w.-]+)`", names)} == dependencies()
