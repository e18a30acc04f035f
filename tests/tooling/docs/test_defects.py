"""Each item of docs/reviewers/defects.md names a command, and the commands select tests."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.markdown_items import items
from tests.tooling.deploy.manifests import ROOT

TEXT = (ROOT / "docs" / "reviewers" / "defects.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"`((?:tests|kube|clients/python|controllers|publishing|conformance)/[^`]* -k [^`]*)`", TEXT))
)
ITEM = re.compile(r".+ \*Found by:\* .+ \*Command:\* .*`[^`]+`.* \*Fix:\* .+\.")


def test_every_defect_has_a_command_and_a_fix() -> None:
    defects = items(TEXT)
    assert len(defects) > 100
    assert [defect.text for defect in defects if not ITEM.fullmatch(defect.text)] == []


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_defect_selects_tests(command: str) -> None:
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *shlex.split(command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-1000:]
