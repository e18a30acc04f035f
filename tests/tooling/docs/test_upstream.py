"""The lists of docs/reviewers/upstream.md that compare multicluster-runtime's tests with ours."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.markdown_items import Item, items
from tests.tooling.deploy.manifests import ROOT

GO = ROOT / "clients/go/multicluster"
TEXT = (ROOT / "docs/reviewers/upstream.md").read_text()
_SHARDED = TEXT.partition("## multicluster-runtime's tests of its sharded coordinator\n")[2].partition("\n## ")[0]
LISTS = [items(text) for text in _SHARDED.split("\nOf kubernetes-sigs/multicluster-runtime#173")]
TEST = re.compile(r"`(Test\w+|test_\w+)`")


def theirs_and_ours(item: Item) -> tuple[set[str], set[str]]:
    theirs, _, ours = item.text.partition(": ")
    return set(TEST.findall(theirs)), set(TEST.findall(ours))


@pytest.mark.parametrize("listed", LISTS, ids=["released", "proposed"])
def test_listed_counterparts_of_multicluster_runtime_tests_exist(listed: list[Item]) -> None:
    files = [
        *GO.glob("*_test.go"),
        *ROOT.glob("tests/unit/sharding/test_*.py"),
        *ROOT.glob("tests/end_to_end/real/test_*.py"),
    ]
    found = set(
        re.findall(r"^(?:func|(?:async )?def) (\w+)\(", "".join(path.read_text() for path in files), re.MULTILINE)
    )
    assert listed
    assert [item.text for item in listed if not all(theirs_and_ours(item))] == []
    assert {name for item in listed for name in theirs_and_ours(item)[1]} - found == set()


def test_every_upstream_test_of_the_sharded_coordinator_is_listed() -> None:
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
    assert {name for item in LISTS[0] for name in theirs_and_ours(item)[0]} == theirs
