"""The tests bite: each seeded bug is caught by the tests that are there for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tooling.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[3]
PASSED, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}

Outcome = tuple[int, str]


def seeded(folder: Path, mutant: Mutant | None) -> Path:
    """A copy of the package, with the bug in it."""
    package = shutil.copytree(
        ROOT / "milo_discoveryd", folder / "milo_discoveryd", ignore=shutil.ignore_patterns("__pycache__")
    )
    if mutant is not None:
        path = package / mutant.module
        source = path.read_text()
        assert source.count(mutant.was) == 1, f"{mutant.module} has moved on: mend the mutant {mutant.name!r}"
        path.write_text(f"{source.replace(mutant.was, mutant.becomes)}\n{mutant.imports}\n")
    return folder


def tried(folder: Path, tests: tuple[str, ...], *, is_async: bool = False) -> Outcome:
    """How these tests fare with the package in the folder instead of ours.

    They are pure, and run without plugins and settings: most of the time would go into these.
    """
    asynchronous = ["-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto"] if is_async else []
    given = [
        "-p",
        "tests.support.hypothesis_settings",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "--import-mode=importlib",
    ]
    options = [*asynchronous, "-xq", *given]
    places = ["-c", os.devnull, "--rootdir", ROOT, *(ROOT / each for each in tests)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *places],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """Of those that are to be tried, all at once, as far as there are processors."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def outcome(mutant: Mutant) -> Outcome:
            return tried(seeded(tmp_path_factory.mktemp("mutant"), mutant), mutant.caught_by, is_async=mutant.is_async)

        yield {name: pool.submit(outcome, mutant) for name, mutant in BY_NAME.items() if name in wanted}
        pool.shutdown(cancel_futures=True)


def test_without_a_bug_all_is_well(tmp_path: Path) -> None:
    everything = tuple(sorted({test for mutant in MUTANTS for test in mutant.caught_by}))
    outcome, said = tried(seeded(tmp_path, None), everything, is_async=any(mutant.is_async for mutant in MUTANTS))
    assert outcome == PASSED, said


@pytest.mark.parametrize("name", BY_NAME)
def test_a_seeded_bug_is_caught(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome, said = outcomes[name].result()
    assert outcome == FAILED, said


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(MUTANTS)
