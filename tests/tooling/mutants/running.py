"""Runs the tests of a mutant against a copy of the daemon with the mutant's bug in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from tests.tooling.mutants.mutant import Mutant

ROOT = Path(__file__).parents[3]
# The tests are pure, and run without plugins, fixtures and settings, which would take most of the time.
_OPTIONS = (
    *("-xq", "-p", "tests.support.hypothesis_settings", "-p", "no:cacheprovider"),
    *("--noconftest", "--import-mode=importlib", "-c", os.devnull, "--rootdir", str(ROOT)),
)
_ASYNC = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto")


class Outcome(Enum):
    CAUGHT = pytest.ExitCode.TESTS_FAILED
    SURVIVED = pytest.ExitCode.OK
    BROKEN = None
    """The tests could not be run."""


class Result(NamedTuple):
    outcome: Outcome
    report: str


def run(tests: Iterable[str], mutant: Mutant | None, *, is_async: bool = False) -> Result:
    """Run tests against a copy of the package with the bug in it, or against an unchanged copy."""
    with TemporaryDirectory(prefix="mutant-") as name:
        directory = Path(name)
        source = ROOT / ("milo_discoveryd" if mutant is None else mutant.source)
        package = shutil.copytree(source, directory / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            path = package / mutant.module
            path.write_text(f"{path.read_text().replace(mutant.was, mutant.becomes)}\n{mutant.imports}\n")
        places = [str(ROOT / test) for test in tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *_OPTIONS, *(_ASYNC if is_async else ()), *places],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{directory}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if "async def functions are not natively supported" in done.stdout:
        return Result(Outcome.BROKEN, done.stdout)  # they fail whatever the mutant does: it needs `is_async`
    known = {each.value: each for each in Outcome if each is not Outcome.BROKEN}
    return Result(known.get(pytest.ExitCode(done.returncode), Outcome.BROKEN), done.stdout + done.stderr)
