"""The unit tests of the pure modules execute every branch of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tooling.import_contracts.contracts import ROOT, modules, unit_tests_of_pure_modules

UNTRACED = "tests.tooling.import_contracts.untraced"


def coverage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(900)  # coverage traces thousands of tests
def test_unit_tests_cover_every_branch_of_pure_modules(tmp_path: Path) -> None:
    pure = modules("pure")
    tests = sorted(map(str, unit_tests_of_pure_modules()))
    files = [f"**/{module.replace('.', '/')}{rest}" for module in pure for rest in (".py", "/*")]
    data = f"--data-file={tmp_path / 'data'}"
    # Whole packages as the source: for single modules coverage would import their parents first, and then again.
    sources = f"--source={','.join(sorted({module.partition('.')[0] for module in pure}))}"
    pytest = ("-m", "pytest", "-qp", "no:cacheprovider", "-p", UNTRACED, "--hypothesis-profile=few")
    run = coverage("run", data, "--branch", sources, *pytest, *tests)
    assert run.returncode == 0, run.stdout + run.stderr
    report = coverage(
        "report", data, f"--include={','.join(files)}", "--fail-under=100", "--show-missing", "--skip-covered"
    )
    assert report.returncode == 0, report.stdout + report.stderr
