"""The rooms that are pure are tested whole: their own tests take every branch."""

import subprocess
import sys
from pathlib import Path

from tests.tooling.import_contracts.rooms import ROOT, pure_modules


def own_tests(module: str) -> list[Path]:
    """They mirror the rooms: a folder for a room that is pure as a whole, else files with the module's name."""
    room = ROOT.joinpath("tests", "unit", *module.split(".")[1:])
    return [room] if room.is_dir() else sorted(room.parent.glob(f"test_{room.name}*.py"))


def coverage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_branch_of_the_pure_rooms_is_taken(tmp_path: Path) -> None:
    modules = pure_modules()
    tests = sorted({str(path) for module in modules for path in own_tests(module)})
    files = [f"{module.replace('.', '/')}{rest}" for module in modules for rest in (".py", "/*")]
    data = f"--data-file={tmp_path / 'data'}"
    # The package as a whole: told of modules, coverage would import their parents first, and then again.
    run = coverage(
        "run", data, "--branch", "--source=milo_discoveryd", "-m", "pytest", "-qp", "no:cacheprovider", *tests
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = coverage(
        "report", data, f"--include={','.join(files)}", "--fail-under=100", "--show-missing", "--skip-covered"
    )
    assert report.returncode == 0, report.stdout + report.stderr
