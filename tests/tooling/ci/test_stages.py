"""The stages of .ci/run and .ci/nightly: a failing stage is reported, and the workflows run each of them."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = {"run": "test.yaml", "nightly": "nightly.yaml"}
SCRIPT = """#!/bin/sh
set -eu
cd "$(dirname "$0")/.."
. .ci/stages
STAGES="first failing-one without-tool last"
stage_first() { echo "== 3 passed in 1.00s =="; }
stage_failing_one() {
    false
    echo "went on after a failure"
}
stage_without_tool() {
    needs no-such-tool
    echo "ran without the tool"
}
stage_last() { echo "last ran"; }
run_stages "$@"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "stages", tmp_path / ".ci")
    path = tmp_path / ".ci" / "run"
    path.write_text(SCRIPT)
    return path


def run(script: Path, *stages: str) -> tuple[int, list[str], str]:
    done = subprocess.run(["sh", script, *stages], capture_output=True, text=True, check=False)
    return done.returncode, [re.sub(r"\s+\d:\d\d$", "", line) for line in done.stdout.splitlines()], done.stderr


def test_stages_run_in_order_and_end_with_a_table(script: Path) -> None:
    assert run(script, "first", "last") == (
        0,
        [
            "ci: first",
            "== 3 passed in 1.00s ==",
            "ci: first              passed",
            "ci: last",
            "last ran",
            "ci: last               passed",
            "",
            "ci: first              passed",
            "ci: last               passed",
            "ci: total",
        ],
        "",
    )


def test_failing_stage_ends_the_run_and_is_reported(script: Path) -> None:
    status, out, err = run(script)
    assert status == 1
    assert out[-5:] == [
        "ci: first              passed",
        "ci: failing-one        FAILED",
        "ci: without-tool       not run",
        "ci: last               not run",
        "ci: total              FAILED",
    ]
    assert not {"went on after a failure", "last ran"} & set(out)
    assert err == f"ci: FAILED: failing-one ended with status 1; alone: {script} failing-one\n"


def test_nightly_stages_run_after_a_failing_one(script: Path) -> None:
    script.write_text(
        SCRIPT.replace("STAGES=", "AFTER_FAILURE=continue STAGES=").replace('last ran"', 'last ran"; false')
    )
    status, out, err = run(script)
    assert status == 1
    assert out[-5:] == [
        "ci: first              passed",
        "ci: failing-one        FAILED",
        "ci: without-tool       skipped",
        "ci: last               FAILED",
        "ci: total              FAILED",
    ]
    assert err.splitlines() == [
        f"ci: FAILED: failing-one ended with status 1; alone: {script} failing-one",
        f"ci: FAILED: last ended with status 1; alone: {script} last",
    ]
    assert "\nAFTER_FAILURE=continue " in (ROOT / ".ci" / "nightly").read_text()


def test_stage_whose_tool_is_missing_is_skipped(script: Path) -> None:
    status, out, _ = run(script, "without-tool", "last")
    assert status == 0
    assert "ci: SKIPPED: without-tool needs no-such-tool" in out
    assert out[-3:-1] == ["ci: without-tool       skipped", "ci: last               passed"]
    assert "ran without the tool" not in out


def test_unknown_stage_is_refused_before_any_runs(script: Path) -> None:
    status, out, err = run(script, "first", "other")
    assert (status, out) == (2, [])
    assert "no such stage: other; the stages are: first failing-one without-tool last" in err


def stages(name: str) -> list[str]:
    [line] = re.findall(r'(?m)^STAGES="(.*)"$', (ROOT / ".ci" / name).read_text())
    return str(line).split()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_listed_stage_is_a_function_of_its_script(name: str) -> None:
    functions = re.findall(r"(?m)^stage_(\w+)\(\)", (ROOT / ".ci" / name).read_text())
    assert [function.replace("_", "-") for function in functions] == stages(name)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_runs_each_stage(name: str) -> None:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / WORKFLOWS[name]).read_text())
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    run_by_jobs = [
        stage for command in commands for stages_of_job in re.findall(rf"\.ci/{name}(.*)", command)
        for stage in stages_of_job.split()
    ]  # fmt: skip
    assert sorted(run_by_jobs) == sorted(stages(name))


def test_unit_and_end_to_end_stages_run_all_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text().replace("\\\n", " ")
    [(unit, end_to_end)] = re.findall(r"stage_unit\(\) \{(.*?)\}.*stage_end_to_end\(\) \{(.*?)\}", script, re.DOTALL)
    directories = re.findall(r"(?<!\S)(?:\w+/)*tests(?:/\w+)?(?=\s|;)", unit + end_to_end)
    testpaths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    of_tests = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("tests/*/__init__.py")} - {"tests/support"}
    assert sorted(directories) == sorted(of_tests | set(testpaths) - {"tests"})


def test_stages_and_dev_exclude_the_same_marks() -> None:
    [by_default] = re.findall(r'set -- -m "(.*)" "\$@"', (ROOT / "dev").read_text())
    assert f'MERGE="{by_default}"' in (ROOT / ".ci" / "run").read_text()
