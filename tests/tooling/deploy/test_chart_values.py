"""The schema of the chart's values, which Helm applies to each installation."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tooling.deploy.manifests import DEPLOY
from tests.tooling.deploy.validators import kubectl, validator
from tools.release import Commit, chart


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart, unpacked."""
    kubectl()
    out = tmp_path_factory.mktemp("chart")
    chart(out, DEPLOY, Commit())
    [archive] = (out / "chart").glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(out, filter="data")
    return out / "milo-discoveryd"


def problems(packed: Path, values: dict[str, Any], scratch: Path) -> str:
    """Return the errors of values by the chart's schema; empty if the values are valid."""
    (scratch / "values.yaml").write_text(yaml.safe_dump(values))
    command = [validator("check-jsonschema"), "--schemafile", packed / "values.schema.json", scratch / "values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


def test_chart_values_are_valid_and_the_schema_requires_each_of_them(packed: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((packed / "values.yaml").read_text())
    assert problems(packed, values, tmp_path) == ""
    schema = json.loads((packed / "values.schema.json").read_text())
    assert set(schema["required"]) == set(values)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"imagee": "x"}, "'imagee' was unexpected"),
        ({"image": ""}, "$.image"),
        ({"monitoring": {"enabled": "false"}}, "'false' is not of type 'boolean'"),
        ({"objects": {"enabled": True}}, "'kinds' is a required property"),
        ({"rbac": False}, "False is not of type 'object'"),
        ({"settings": {"MILO_DISCOVERYD_HTTP__MAX": 5}}, "5 is not of type 'string'"),
        ({"config": "rights: []"}, "'rights: []' is not of type 'object'"),
        ({"environment": {"mode": "project"}}, "'mode' does not match any of the regexes"),
    ],
    ids=["unknown", "empty", "text", "no kinds", "no table", "number", "text of a file", "no variable"],
)
def test_invalid_chart_value_is_rejected_by_name(
    packed: Path, tmp_path: Path, wrong: dict[str, Any], problem: str
) -> None:
    values = yaml.safe_load((packed / "values.yaml").read_text()) | wrong
    assert problem in problems(packed, values, tmp_path)
