"""The rooms that are pure are tested whole: their own tests take every branch."""

import subprocess
import sys
from pathlib import Path

from tests.contracts.rooms import ROOT, pure_modules


def whence_tested(module: str) -> Path:
    """They mirror the rooms: a file for the module, or else the folder of its room."""
    *rooms, name = module.split(".")[1:]
    folder = ROOT.joinpath("tests", *rooms)
    own = [folder / f"test_{name}.py", folder / name]
    return next((path for path in own if path.exists()), folder)


def test_every_branch_of_the_pure_rooms_is_taken(tmp_path: Path) -> None:
    modules = pure_modules()
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={tmp_path / 'data'}"
    tests = sorted({str(whence_tested(module)) for module in modules})
    run = subprocess.run(
        [
            *coverage,
            "run",
            data,
            "--branch",
            f"--source={','.join(modules)}",
            "-m",
            "pytest",
            "-qp",
            "no:cacheprovider",
            *tests,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = subprocess.run(
        [*coverage, "report", data, "--fail-under=100", "--show-missing", "--skip-covered"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stdout + report.stderr
    assert "never imported" not in run.stderr
