"""Tests of the scenario runner: it reports the failed step and the actual events, and fails on anything unexpected."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import main
from tests.end_to_end.scenarios.running import chosen
from tests.end_to_end.scenarios.scenario_run import ScenarioFailedError, run_scenario
from tests.end_to_end.scenarios.servers import Sandboxes
from tests.end_to_end.scenarios.steps import Scenario

ALPHA: dict[str, Any] = {"create": {"name": "alpha", "ready": True}}
ENGAGED: dict[str, Any] = {"expect": [{"ENGAGED": "alpha"}]}
GONE: dict[str, Any] = {"delete": {"name": "alpha"}}


async def failure(*steps: dict[str, Any], **fields: Any) -> str:
    """Return the failure of a scenario, with short limits."""
    scenario = reading.scenario({"name": "it", "steps": list(steps), **fields})
    assert isinstance(scenario, Scenario)
    with pytest.raises(ScenarioFailedError) as failed:
        await run_scenario(scenario, "project", Sandboxes(), patience_s=1.0)
    assert failed.value.daemon
    return str(failed.value)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (
            [ALPHA, {"expect": []}],
            "step 2 (expect): received ENGAGED alpha, which was not expected: expected nothing; "
            "main received ENGAGED alpha",
        ),
        (
            [ALPHA, {"expect": [{"ENGAGED": "alpha"}, {"ENGAGED": "beta"}]}],
            "step 2 (expect): within 1 s main did not receive ENGAGED beta: expected ENGAGED alpha, ENGAGED beta; "
            "main received ENGAGED alpha",
        ),
        (
            [ALPHA, ENGAGED, GONE, {"expect": [{"DISENGAGED": "alpha", "reason": "NOT_READY"}]}],
            "step 4 (expect): received DISENGAGED alpha (DELETED), want the reason NOT_READY",
        ),
        (
            [ALPHA, {"expect_updated": {"name": "alpha", "fields": ["labels"]}}],
            "step 2 (expect_updated): within 1 s main did not receive an UPDATED alpha with the expected labels: "
            "main received no UPDATED of this cluster",
        ),
        (
            [ALPHA, ENGAGED, {"label": {"name": "alpha", "set": {"k": "v"}}}, {"expect_no_updates": {"name": "alpha"}}],
            "step 4 (expect_no_updates): main received an UPDATED: ",
        ),
        (
            [ALPHA, {"expect_engaged": ["beta"]}],
            "step 2 (expect_engaged): ListClusters returned alpha, want beta: missing beta, unexpected alpha",
        ),
        ([ALPHA, {"expect_engaged": {"count": 2}}], "ListClusters returned 1 clusters, want 2: alpha"),
        (
            [{"expect_source": "STALE"}],
            "step 1 (expect_source): within 1 s main did not receive STALE; its last state is STREAMING",
        ),
        (
            [{"delete": {"name": "alpha"}}],
            "step 1 (delete): DELETE /apis/resourcemanager.miloapis.com/v1alpha1/projects",
        ),
        ([{"api": "stop"}, ALPHA], "step 2 (create): POST "),
        ([{"expect": [], "by": "nobody"}], "step 1 (expect): there is no subscriber 'nobody'"),
        ([{"subscribe": {"as": "s"}}, {"expect": []}], "step 2 (expect): there is no subscriber 'main'"),
        ([{"expect": []}, {"subscribe": {"as": "main"}}], "there is a subscriber 'main' already"),
        (
            [{"subscribe": {"as": "s", "label_selector": "a in"}}],
            "step 1 (subscribe): the stream of s was closed: ",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value[-1])),
)
async def test_failed_step_is_reported_with_its_problem(steps: Sequence[dict[str, Any]], complaint: str) -> None:
    assert complaint in await failure(*steps)


async def test_unknown_daemon_setting_fails_the_scenario_and_is_named() -> None:
    why = await failure({"expect": []}, settings={"stalled_timeuot": "5s"})
    assert why.startswith("at the start: the daemon exited with status 1: milo-discoveryd: ")
    assert "key stalled_timeuot: is not a setting" in why


async def test_scenario_settings_override_defaults_of_the_daemon() -> None:
    scenario = reading.scenario(
        {
            "name": "it",
            "settings": {"log": {"format": "console", "level": "warning"}, "heartbeat_interval": "1s"},
            "steps": [ALPHA, {"expect": [{"ENGAGED": "alpha"}]}],
        }
    )
    assert isinstance(scenario, Scenario)
    await run_scenario(scenario, "project", Sandboxes())


def test_scenarios_are_selected_by_substring_of_name_and_by_mode() -> None:
    scenarios = [
        reading.scenario({"name": "early-bird", "steps": [{"expect": []}]}),
        reading.scenario({"name": "night-owl", "modes": ["project"], "steps": [{"expect": []}]}),
    ]
    assert [(scenario.name, mode) for scenario, mode in chosen(scenarios)] == [
        ("early-bird", "project"),
        ("early-bird", "project-control-plane"),
        ("night-owl", "project"),
    ]
    assert [scenario.name for scenario, _ in chosen(scenarios, name="owl")] == ["night-owl"]
    assert chosen(scenarios, name="owl", mode="project-control-plane") == []


def test_scenario_results_are_printed_one_per_line_with_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenarios.yaml"
    file.write_text(
        """
- name: good
  modes: [project]
  steps: [{create: {name: alpha, ready: true}}, {expect: [{ENGAGED: alpha}]}]
- name: bad
  modes: [project-control-plane]
  steps: [{create: {name: alpha, ready: true}}, {expect: []}]
- name: odd
  modes: [project]
  steps: [{wait: 1}]
"""
    )
    assert main([str(file)]) == 1
    output = capsys.readouterr()
    good, bad, odd, total = output.out.splitlines()
    assert good.startswith("ok    good [project] ")
    assert bad.startswith("FAIL  bad [project-control-plane] ")
    assert "step 2 (expect): received ENGAGED alpha" in bad
    assert odd.startswith("FAIL  odd [project] 0.0s step 1: unknown step 'wait'")
    assert total == "1 passed, 2 failed"
    assert '"message": "started"' in output.err

    assert main([str(file), "-k", "good"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


@pytest.mark.parametrize("arguments", [["none.yaml"], ["-k", "no-such-name"]])
def test_missing_scenario_file_and_empty_selection_exit_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("scenarios: ")
