"""The rules in promtool: each alert fires when it should, and no earlier."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.tooling.deploy import monitoring
from tests.tooling.deploy.debian import program

CASES = Path(__file__).parent / "rule_tests"


@pytest.fixture
def promtool(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": monitoring.groups()}))
    return program("promtool", "prometheus")


def run(*command: Path | str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_rules_pass_promtool_check(promtool: Path, tmp_path: Path) -> None:
    run(promtool, "check", "rules", "rules.yaml", cwd=tmp_path)


@pytest.mark.parametrize("case", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_rules_pass_their_unit_tests(promtool: Path, tmp_path: Path, case: Path) -> None:
    (tmp_path / "case.yaml").write_text(case.read_text())
    run(promtool, "test", "rules", "case.yaml", cwd=tmp_path)


def test_alert_has_a_firing_a_quiet_and_an_inhibited_case() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    inhibited: set[str] = set()
    for path in CASES.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for expected in case.get("alert_rule_test", ()):
                (fires if expected.get("exp_alerts") else silent).add(expected["alertname"])
                if case["name"].startswith("inhibited"):
                    inhibited.add(expected["alertname"])
    every = {alert["alert"] for alert in monitoring.alerts()}
    assert fires == every
    assert silent == every
    assert inhibited == {alert["alert"] for alert in monitoring.alerts() if " unless " in alert["expr"]}
