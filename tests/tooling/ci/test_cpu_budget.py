"""A run of all tests fails if a directory takes more CPU time than its budget."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cpu_budget import ENFORCED_WITH, directory_of

ROOT = Path(__file__).parents[3]
BURN = """
import time

def test_burn():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass

def test_rest():
    time.sleep(0.3)
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run pytest on two directories with a budget of 0.2 s each: the test of one computes, that of the other waits."""
    computing, waiting = BURN.split("\ndef test_rest")
    for name, text in (("computing", computing), ("waiting", f"import time\n\ndef test_rest{waiting}")):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    builds\n    nightly\n"
        "cpu_budget =\n    tests/computing = 0.2\n    tests/waiting = 0.2\n"
    )

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "tests.support.cpu_budget", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return ran


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["alone", "in processes"])
def test_run_over_the_cpu_budget_of_a_directory_fails_and_names_its_tests(run: Run, processes: tuple[str, ...]) -> None:
    done = run("-m", ENFORCED_WITH, *processes)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.findall(r"FAILED (\S+) used more CPU time", done.stdout) == ["tests/computing"]
    assert re.search(r"0\.[3-9] s  tests/computing/test_computing.py::test_burn", done.stdout)
    assert "2 passed" in done.stdout.splitlines()[-1]


def test_cpu_budget_is_not_enforced_without_the_mark_expression_of_dev_test(run: Run) -> None:
    done = run()
    assert (done.returncode, "CPU time" in done.stdout) == (0, False)


def test_cpu_time_of_each_directory_is_printed_on_request(run: Run) -> None:
    done = run("--cpu-budget")
    assert re.findall(r"s of +0 s  (\S+)", done.stdout) == ["tests/computing", "tests/waiting"]


def test_cpu_time_of_a_test_counts_for_the_nearest_directory_with_a_budget() -> None:
    budgets = {"tests/unit": 10.0, "tests/unit/log": 5.0}
    assert directory_of("tests/unit/log/test_change_log.py::test_it[a/b]", budgets) == "tests/unit/log"
    assert directory_of("tests/unit/config/test_load.py::test_it", budgets) == "tests/unit"
    assert directory_of("clients/python/tests/test_watch.py::TestIt::test_it", budgets) == "clients/python/tests"


def test_cpu_budgets_name_existing_directories_and_are_enforced_by_dev_test(pytestconfig: pytest.Config) -> None:
    assert f'-m "{ENFORCED_WITH}"' in (ROOT / "dev").read_text()
    named = [line.partition("=")[0].strip() for line in pytestconfig.getini("cpu_budget")]
    assert [name for name in named if not (ROOT / name).is_dir()] == []
