"""The tables of docs/reviewers/upstream.md that compare multicluster-runtime's tests with ours."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tooling.deploy.manifests import ROOT

GO = ROOT / "clients/go/multicluster"
TEXT = (ROOT / "docs/reviewers/upstream.md").read_text()
TABLES = re.findall(r"^\| (?:there|in the pull request) \| here \|\n(.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(Test\w+|test_\w+)`")


def column(table: str, number: int) -> set[str]:
    return {name for row in table.splitlines() for name in TEST.findall(row.split("|")[number])}


@pytest.mark.parametrize("table", TABLES, ids=["released", "proposed"])
def test_tests_that_correspond_to_those_of_multicluster_runtime_exist(table: str) -> None:
    ours = [
        *GO.glob("*_test.go"),
        *ROOT.glob("tests/unit/sharding/test_*.py"),
        *ROOT.glob("tests/end_to_end/real/test_*.py"),
    ]
    found = set(
        re.findall(r"^(?:func|(?:async )?def) (\w+)\(", "".join(path.read_text() for path in ours), re.MULTILINE)
    )
    assert column(table, 2) - found == set()
    assert [row for row in table.splitlines()[1:] if not TEST.search(row.split("|")[2])] == []


def test_every_upstream_test_of_the_sharded_coordinator_has_a_row() -> None:
    if shutil.which("go") is None:
        pytest.skip("go, which locates the module, is not on PATH")
    listed = subprocess.run(
        ["go", "list", "-m", "-json", "sigs.k8s.io/multicluster-runtime"], cwd=GO, capture_output=True, check=True
    )
    directory = json.loads(listed.stdout).get("Dir")
    if directory is None:
        pytest.skip("the module is not downloaded: run ./dev go first")
    sources = (Path(directory) / "pkg/manager/coordinator/sharded").rglob("*_test.go")
    theirs = set(re.findall(r"^func (Test\w+)\(", "".join(path.read_text() for path in sources), re.MULTILINE))
    assert column(TABLES[0], 1) == theirs
