"""The table of object states, and names in clients, docs, the status page and alerts that must match it."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from milo_discovery import DisengageReason, EngagementReason, FleetCounts, ServerInfo, Sharding
from milo_discovery.removals import ENDS
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli import text_output
from milo_discoveryd.model import cluster, observation
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.telemetry.status_page import PAGE

ROOT = Path(__file__).parents[3]
NODE_ENUMS = "clients/node/src/gen/milo/discovery/v1/discovery_pb.ts"
OF_ENGAGED = {"CONFIRMING_DELETION", "DRAINING"}
"""Reasons that responses give for engaged clusters, whatever the state of their objects."""
REASONS = {name.removeprefix("REASON_") for name in pb.Engagement.Reason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
DISENGAGE_REASONS = {name.removeprefix("DISENGAGE_REASON_") for name in pb.DisengageReason.DESCRIPTOR.values_by_name}
DISENGAGE_REASONS -= {"UNSPECIFIED"}
COUNTS = {field.name for field in pb.FleetCounts.DESCRIPTOR.fields}


def test_each_object_state_has_a_distinct_reason_and_description() -> None:
    assert MEANINGS.keys() == set(ObjectState)
    for told in ("reason", "words"):
        assert len({getattr(meaning, told) for meaning in MEANINGS.values()}) == len(MEANINGS)


def test_each_object_state_comes_from_an_observation_or_is_set_by_the_daemon() -> None:
    states = {kind.state for kind in vars(observation).values() if hasattr(kind, "state")}
    of_daemon = {ObjectState.UNASSIGNED, ObjectState.UNREACHABLE, ObjectState.DELETED}
    assert states | of_daemon == set(ObjectState)


def test_proto_file_has_each_engagement_reason_and_fleet_count() -> None:
    assert {meaning.reason for meaning in MEANINGS.values()} | OF_ENGAGED == REASONS
    counts = {meaning.count for meaning in MEANINGS.values() if meaning.count}
    assert counts | {"engaged", "draining", "subscribers"} == COUNTS


def test_python_client_has_each_engagement_reason_and_fleet_count() -> None:
    assert {reason.name for reason in EngagementReason} - {"UNSPECIFIED"} == REASONS
    assert set(FleetCounts.__annotations__) == COUNTS


def test_daemon_and_clients_have_each_disengage_reason() -> None:
    assert {reason.name for reason in DisengageReason} - {"UNSPECIFIED"} == DISENGAGE_REASONS
    assert {reason.name for reason in cluster.DisengageReason} == DISENGAGE_REASONS
    go, node = (ROOT / "clients/go/model.go").read_text(), (ROOT / NODE_ENUMS).read_text()
    assert [reason for reason in DISENGAGE_REASONS if f'DisengageReason = "{reason}"' not in go] == []
    assert [reason for reason in DISENGAGE_REASONS if f"  {reason} =" not in node] == []


def test_python_client_removal_guard_counts_each_reason_that_ends_an_object_state() -> None:
    ends = {meaning.ends.name for meaning in MEANINGS.values() if meaning.ends}
    assert ends <= {reason.name for reason in ENDS}


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("clients/go/model.go", 'EngagementReason = "{}"'),
        ("clients/go/v1/discovery.pb.go", "Engagement_REASON_{} "),
        (NODE_ENUMS, "  {} ="),
    ],
)
def test_go_and_node_clients_have_each_engagement_reason(source: str, form: str) -> None:
    text = (ROOT / source).read_text()
    assert [reason for reason in sorted(REASONS) if form.format(reason) not in text] == []


def test_troubleshooting_explains_each_reason_for_which_a_cluster_is_not_engaged() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    assert [reason for reason in sorted(REASONS - OF_ENGAGED - {"ENGAGED"}) if f"- `{reason}`:" not in text] == []


def test_status_page_reads_object_states_from_its_generated_table() -> None:
    page = PAGE.decode()
    [table] = re.findall(r"STATES = (\{.*?\}\});", page)
    states = json.loads(table)
    assert states.keys() == {state.value for state in ObjectState}
    for state in states.values():
        assert state["tone"] == "plain" or f".{state['tone']} " in page, "the page has a style of that tone"
    script = page.replace(table, "").partition("<script>")[2]
    named = {state.value for state in ObjectState if f'"{state.value}"' in script}
    assert named <= {"ready", "unassigned"}, "the words for all other states are in the table"


def test_status_command_prints_each_fleet_count() -> None:
    numbers = {count: 100 + place for place, count in enumerate(sorted(COUNTS))}
    info = ServerInfo(counts=FleetCounts(**numbers), sharding=Sharding())
    printed = "\n".join(text_output.status(info, datetime.now(UTC)))
    assert [count for count, number in numbers.items() if str(number) not in printed] == []


def test_alert_covers_the_object_states_that_are_reported() -> None:
    alerts = (ROOT / "deploy/components/prometheus-monitoring/alerts.yaml").read_text()
    [states] = re.findall(r'milo_discoveryd_known_clusters\{state=~"(.*?)"\} > 0', alerts)
    assert set(states.split("|")) == {state.value for state, meaning in MEANINGS.items() if meaning.is_reported}


@pytest.mark.parametrize(
    ("source", "form", "is_upper"),
    [
        ("clients/go/model.go", "\t{} ", True),
        ("clients/go/wire.go", "counts.Get{}()", True),
        (NODE_ENUMS, "  {}: number;", False),
    ],
)
def test_go_and_node_clients_have_each_fleet_count(source: str, form: str, is_upper: bool) -> None:
    text = (ROOT / source).read_text()
    words = {count: "".join(word.capitalize() for word in count.split("_")) for count in sorted(COUNTS)}
    names = {count: name if is_upper else name[0].lower() + name[1:] for count, name in words.items()}
    assert [count for count, name in names.items() if form.format(name) not in text] == []
