"""The rules in promtool: each alert fires when it should, and no earlier."""

import asyncio
import json
import re
import subprocess
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.process.conftest import Workspace
from tests.support.debian import program
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.web import get

CASES = Path(__file__).parent / "rule_tests"
LONG = {"slo"}
"""Files of rule tests that evaluate days, and take most of the time."""

Rule = tuple[str, str]
RULES: Mapping[Rule, str] = {
    (alert["alert"], alert["labels"]["severity"]): alert["expr"] for alert in monitoring.alerts()
}
INHIBITED = {name for (name, _), expression in RULES.items() if " unless " in expression}


@pytest.fixture
def promtool(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": monitoring.groups()}))
    return program("promtool", "prometheus")


def cases_of_rules() -> list[dict[str, Any]]:
    return [case for path in sorted(CASES.glob("*.yaml")) for case in yaml.safe_load(path.read_text())["tests"]]


def run(*command: Path | str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_rules_pass_promtool_check(promtool: Path, tmp_path: Path) -> None:
    run(promtool, "check", "rules", "rules.yaml", cwd=tmp_path)


async def test_metrics_of_a_daemon_pass_promtool_check(workspace: Workspace) -> None:
    tool = await asyncio.to_thread(program, "promtool", "prometheus")
    workspace.sandbox.projects.create("alpha", ready=True)
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon, workspace.client() as client:
        await daemon.start()
        await client.watch().synced()
        page = await get(f"{daemon.events('started')[-1]['http']}/metrics")
    check = await asyncio.create_subprocess_exec(tool, "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    assert await check.communicate(page) == (b"", None)
    assert check.returncode == 0


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] if path.stem in LONG else [])
        for path in sorted(CASES.glob("*.yaml"))
    ],
)
def test_rules_pass_their_unit_tests(promtool: Path, tmp_path: Path, case: Path) -> None:
    (tmp_path / "case.yaml").write_text(case.read_text())
    run(promtool, "test", "rules", "case.yaml", cwd=tmp_path)


def test_alert_without_inhibition_fires_while_the_source_is_lost(promtool: Path, tmp_path: Path) -> None:
    """A lost source does not inhibit alerts about problems that it does not cause."""
    names = {alert["alert"] for alert in monitoring.alerts()}
    others = names - INHIBITED - {"MiloDiscoverydSourceLost"}
    cases = []
    for case in cases_of_rules():
        tested = [test for test in case.get("alert_rule_test", ()) if test["alertname"] in others]
        pods = sorted(
            set(re.findall(r'namespace="(.+?)", pod="(.+?)"', json.dumps(case["input_series"]).replace("\\", "")))
        )
        if tested and not any(
            series["series"].startswith("milo_discoveryd_source_up") for series in case["input_series"]
        ):
            case |= {"alert_rule_test": tested, "input_series": [*case["input_series"], *lost_sources(pods)]}
            cases.append(case)
    fired = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test.get("exp_alerts")}
    assert fired == others
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": cases}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(content))
    run(promtool, "test", "rules", "case.yaml", cwd=tmp_path)


def lost_sources(pods: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    for namespace, pod in pods:
        labels = f'namespace="{namespace}", pod="{pod}"'
        for metric in ("source_up", "source_last_contact_timestamp_seconds"):
            yield {"series": f"milo_discoveryd_{metric}{{{labels}}}", "values": "0x1000"}


def test_each_alert_has_test_cases_in_which_it_fires_is_quiet_and_is_inhibited() -> None:
    found: dict[str, set[Rule]] = {"fires": set(), "quiet": set(), "inhibited": set()}
    for case in cases_of_rules():
        kind = "inhibited" if case["name"].startswith("inhibited") else "quiet"
        for tested in case.get("alert_rule_test", ()):
            expected = {alert["exp_labels"]["severity"] for alert in tested.get("exp_alerts", ())}
            found["fires"] |= {(tested["alertname"], severity) for severity in expected}
            found[kind] |= {rule for rule in RULES if rule[0] == tested["alertname"]} - {
                (tested["alertname"], severity) for severity in expected
            }
    assert found["fires"] == set(RULES)
    assert found["quiet"] == set(RULES)
    assert found["inhibited"] >= {rule for rule, expression in RULES.items() if " unless " in expression}
