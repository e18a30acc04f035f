"""The rooms that are pure are tested whole: their own tests take every branch."""

import subprocess
import sys
from pathlib import Path

from tests.contracts.rooms import ROOT, pure_modules


def own_tests(module: str) -> list[Path]:
    """They mirror the rooms: a folder for a room that is pure as a whole, else files with the module's name."""
    room = ROOT.joinpath("tests", *module.split(".")[1:])
    return [room] if room.is_dir() else sorted(room.parent.glob(f"test_{room.name}*.py"))


def test_every_branch_of_the_pure_rooms_is_taken(tmp_path: Path) -> None:
    modules = pure_modules()
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={tmp_path / 'data'}"
    tests = sorted({str(path) for module in modules for path in own_tests(module)})
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
