"""Each row of docs/reviewers has tests that exist, and each defect a command that selects tests."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from tests.support.rows import ROOT, file_of, nodes_of_rows

PAGE = (ROOT / "docs" / "reviewers" / "reliability.md").read_text()
WITHOUT_TESTS = {"F36"}
DEFECTS = [line.split(" | ") for line in PAGE.partition("\n## Defects\n")[2].splitlines() if line.startswith("| ")][2:]
COMMANDS = sorted(set(re.findall(r"`([\w./-]+(?: [\w./-]+)* -k [^`]*)`", PAGE)))


ROWS = {"F": 95, "S": 23, "O": 10, "A": 14, "K": 20, "I": 29}
"""The number of rows by the letter of their names. No row goes."""


@cache
def names(path: str) -> frozenset[str]:
    """Return the names of all tests in a file, and of the classes of tests."""
    tree = ast.parse(file_of(path).read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = (node.name for node in ast.walk(tree) if isinstance(node, kinds))
    return frozenset(name for name in found if name.startswith(("test_", "Test")))


def test_rows_of_the_pages_for_reviewers_have_tests() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reviewers").glob("*.md"))
    listed = re.findall(r"^- \*\*([A-Z]\d+)\*\* ", pages, re.MULTILINE)
    assert {f"{letter}{number}" for letter, last in ROWS.items() for number in range(1, last + 1)} <= set(listed)
    assert len(listed) == len(set(listed))
    assert set(listed) - WITHOUT_TESTS == set(nodes_of_rows())


def test_tests_of_rows_exist() -> None:
    missing = [
        f"{row}: {node}"
        for row, nodes in nodes_of_rows().items()
        for node in nodes
        for path, _, name in [node.partition("::")]
        if not file_of(path).is_file() or (name and name not in names(path))
    ]
    assert missing == []


def test_every_defect_has_a_test() -> None:
    assert len(DEFECTS) > 100
    assert [defect for defect in DEFECTS if len(defect) != 3 or "`" not in defect[2]] == []


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_defect_selects_tests(command: str) -> None:
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *shlex.split(command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-1000:]
