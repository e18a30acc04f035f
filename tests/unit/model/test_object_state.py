"""The table of object states, and the names in every language that must match it."""

import re
from pathlib import Path

import pytest

from milo_discovery import EngagementReason, FleetCounts
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model import observation
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.telemetry.status_page import PAGE

ROOT = Path(__file__).parents[3]
OF_ENGAGED = {"CONFIRMING_DELETION", "DRAINING"}
"""Reasons that responses give for engaged clusters, whatever the state of their objects."""
REASONS = {name.removeprefix("REASON_") for name in pb.Engagement.Reason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
COUNTS = {field.name for field in pb.FleetCounts.DESCRIPTOR.fields}


def test_each_state_has_a_row_with_a_reason_and_words_of_its_own() -> None:
    assert MEANINGS.keys() == set(ObjectState)
    for told in ("reason", "words"):
        assert len({getattr(meaning, told) for meaning in MEANINGS.values()}) == len(MEANINGS)


def test_each_observation_has_the_state_of_an_object() -> None:
    states = {kind.state for kind in vars(observation).values() if hasattr(kind, "state")}
    of_daemon = {ObjectState.UNASSIGNED, ObjectState.UNREACHABLE, ObjectState.DELETED}
    assert states | of_daemon == set(ObjectState)


def test_protocol_has_each_reason_and_count() -> None:
    assert {meaning.reason for meaning in MEANINGS.values()} | OF_ENGAGED == REASONS
    counts = {meaning.count for meaning in MEANINGS.values() if meaning.count}
    assert counts | {"engaged", "draining", "subscribers"} == COUNTS


def test_python_client_has_each_reason_and_count() -> None:
    assert {each.name for each in EngagementReason} - {"UNSPECIFIED"} == REASONS
    assert set(FleetCounts.__annotations__) == COUNTS


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("clients/go/model.go", 'EngagementReason = "{}"'),
        ("clients/go/v1/discovery.pb.go", "Engagement_REASON_{} "),
        ("clients/node/src/gen/milo/discovery/v1/discovery_pb.ts", "  {} ="),
    ],
)
def test_other_clients_have_each_reason(source: str, form: str) -> None:
    text = (ROOT / source).read_text()
    assert [reason for reason in sorted(REASONS) if form.format(reason) not in text] == []


def test_troubleshooting_explains_each_reason_for_which_a_cluster_is_not_engaged() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    assert [reason for reason in sorted(REASONS - OF_ENGAGED - {"ENGAGED"}) if f"- `{reason}`:" not in text] == []


def test_status_page_names_no_other_state() -> None:
    page = PAGE.decode()
    known = {state.value for state in ObjectState}
    for constant in ("AS_FACTS", "USUAL"):
        [names] = re.findall(rf"{constant} = \[(.*?)\]", page)
        assert set(re.findall(r'"(\w+)"', names)) <= known
    [tones] = re.findall(r"TONES = \{(.*?)\}", page, re.DOTALL)
    assert {name for name in re.findall(r"(\w+):", tones) if name.islower()} <= known
