"""Tests of the scenario parser: an unknown field fails its scenario and is named."""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.steps import MODES, Malformed, Scenario


def read(*document: dict[str, Any], **fields: Any) -> Scenario | Malformed:
    return reading.scenario({"name": "it", "steps": list(document), **fields})


def step(document: dict[str, Any]) -> object:
    scenario = read(document)
    assert isinstance(scenario, Scenario), scenario
    return scenario.steps[0][1]


def problem(*document: dict[str, Any], **fields: Any) -> str:
    scenario = read(*document, **fields)
    assert isinstance(scenario, Malformed)
    return scenario.problem


def test_scenarios_of_this_repository_are_valid_with_unique_names() -> None:
    scenarios = [scenario for file in OWN for scenario in reading.load(file)]
    assert [scenario for scenario in scenarios if isinstance(scenario, Malformed)] == []
    assert len({scenario.name for scenario in scenarios}) == len(scenarios) > 50


@pytest.mark.parametrize(
    ("document", "problem_text"),
    [
        ({"creat": {"name": "a"}}, "step 1: unknown step 'creat' (did you mean 'create'?)"),
        ({"sleep": 3}, "step 1: unknown step 'sleep'; expected one of create, condition,"),
        ({"create": {"name": "a", "redy": True}}, "step 1 (create): unknown field 'redy' (did you mean 'ready'?)"),
        ({"create": {}}, "step 1 (create): Object missing required field `name`"),
        ({"create": {"name": "a", "labels": {"k": 1}}}, "step 1 (create): Expected `str`, got `int` - at `$.labels"),
        ({"condition": {"name": "a", "status": "yes"}}, "step 1 (condition): Invalid enum value 'yes'"),
        ({"condition": {"name": "a", "status": "True", "reason": "R"}}, "unknown field 'reason'"),
        ({"label": {"name": "a", "put": {"k": "v"}}}, "step 1 (label): unknown field 'put'"),
        ({"burst": {"prefix": "p", "count": 0}}, "step 1 (burst): Expected `int` >= 1"),
        ({"api": "pause"}, "step 1 (api): Invalid enum value 'pause'"),
        ({"daemon": "stop"}, "step 1 (daemon): Invalid enum value 'stop'"),
        ({"subscribe": {"who": "s"}}, "step 1 (subscribe): unknown field 'who'"),
        ({"expect": [{"ENGAGED": "a", "uid": "u"}]}, "step 1 (expect): unknown field 'uid'"),
        ({"expect": [{"UPDATED": "a"}]}, "step 1 (expect): unknown field 'UPDATED'"),
        ({"expect": [{"reason": "DELETED"}]}, "has neither ENGAGED nor DISENGAGED"),
        ({"expect": [{"ENGAGED": "a", "DISENGAGED": "a"}]}, "has both"),
        ({"expect": [{"ENGAGED": "a", "reason": "DELETED"}]}, "which only DISENGAGED may have"),
        ({"expect": [{"DISENGAGED": "a", "reason": "GONE"}]}, "Invalid enum value 'GONE'"),
        ({"expect_updated": {"name": "a", "fields": ["colour"]}}, "unknown field of a cluster 'colour'"),
        ({"expect_updated": {"fields": ["labels"]}}, "the field `name` is missing"),
        ({"expect_no_updates": {"name": "a", "within": 3}}, "unknown field 'within'"),
        ({"expect_engaged": {"number": 3}}, "unknown field 'number'"),
        ({"expect_source": "FINE"}, "step 1 (expect_source): Invalid enum value 'FINE'"),
        ({"create": {"name": "a"}, "by": "s"}, "step 1 (create): unknown field 'by'"),
        (
            {"create": {"name": "a"}, "delete": {"name": "a"}},
            "step 1: a step must have one keyword, not 2 (create, delete)",
        ),
        ({"by": "s"}, "step 1: a step must have one keyword, not 0"),
    ],
    ids=str,
)
def test_invalid_step_is_reported_with_its_problem(document: dict[str, Any], problem_text: str) -> None:
    assert problem_text in problem(document)


def test_error_names_number_of_invalid_step() -> None:
    assert problem({"expect": []}, {"expect": []}, {"wait": 1}).startswith("step 3: unknown step 'wait'")


@pytest.mark.parametrize(
    ("fields", "problem_text"),
    [
        ({"mode": "project"}, "unknown field 'mode' (did you mean 'modes'?)"),
        ({"modes": ["single"]}, "Invalid enum value 'single'"),
        ({"modes": []}, "the scenario has no mode"),
        ({"steps": []}, "the scenario has no steps"),
        ({"settings": ["a"]}, "Expected `object`, got `array`"),
    ],
)
def test_error_names_invalid_scenario_field(fields: dict[str, Any], problem_text: str) -> None:
    assert problem_text in problem({"expect": []}, **fields)


def test_modes_of_an_invalid_scenario_are_read() -> None:
    assert read({"wait": 1}, modes=["project"]).modes == ("project",)
    assert read({"wait": 1}, modes="project").modes == MODES


def test_invalid_scenario_does_not_prevent_loading_of_other_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.yaml"
    path.write_text("- {name: good, steps: [{expect: []}]}\n- {name: bad, steps: [{wait: 1}]}\n- 7\n")
    good, bad, nameless = reading.load(path)
    assert isinstance(good, Scenario)
    assert isinstance(bad, Malformed)
    assert bad.name == "bad"
    assert nameless == Malformed("scenario-3", MODES, "a scenario must be a mapping with a name and steps")


@pytest.mark.parametrize(
    ("content", "problem_text"),
    [
        ("name: it\n", "is not a list of scenarios"),
        ("[]", "is not a list of scenarios"),
        ("- [", "is not YAML"),
        ("- {name: a, name: b}", 'has the key "name" twice'),
    ],
)
def test_file_without_a_valid_list_of_scenarios_is_rejected(tmp_path: Path, content: str, problem_text: str) -> None:
    path = tmp_path / "scenarios.yaml"
    path.write_text(content)
    with pytest.raises(reading.FileError, match=problem_text):
        reading.load(path)
