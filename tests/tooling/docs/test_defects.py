"""The commands of docs/reviewers/defects.md."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.tooling.deploy.manifests import ROOT

TEXT = (ROOT / "docs" / "reviewers" / "defects.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"`((?:tests|kube|clients/python|controllers|publishing|conformance)/[^`]* -k [^`]*)`", TEXT))
)


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_defect_selects_tests(command: str) -> None:
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *shlex.split(command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-1000:]
