"""The forge's workflows: sound, and made of commands that there are."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tooling.deploy.manifests import ROOT
from tests.tooling.deploy.validators import validator

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    return workflow


@every_workflow
def test_a_workflow_has_the_form_that_the_forge_takes(path: Path) -> None:
    done = subprocess.run(
        [validator("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", path],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@every_workflow
def test_a_workflow_may_read_and_a_job_more_only_where_it_says_so(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 60


@every_workflow
def test_a_workflow_runs_what_is_there(path: Path) -> None:
    text = path.read_text()
    verbs = set(re.findall(r"^(\w+)\) ", (ROOT / "dev").read_text(), re.MULTILINE))
    assert set(re.findall(r"\./dev (\w+)", text)) <= verbs
    for script in re.findall(r"run: (\.ci/\w+)", text):
        assert (ROOT / script).exists()
    for argument in re.findall(r"^\s+(\w+)=\$\{\{", text, re.MULTILINE):
        assert f"ARG {argument}=" in (ROOT / "Dockerfile").read_text()
