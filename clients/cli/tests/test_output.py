"""Tests of JSON and YAML output, its protobuf field names and quoting, and of the plugin manifest."""

from __future__ import annotations

import json
from importlib.metadata import version

import hypothesis.strategies as st
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given

from clients.python.tests.kubeconfigs import text
from clients.python.tests.messages import disengaged, engaged, following, snapshot
from milo_discovery import _convert
from milo_discovery._session import Session
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli import json_output, yaml_output

from .command_process import running

STAMP = Timestamp(seconds=1_767_225_600, nanos=120_000_000)
CLUSTER = pb.Cluster(
    name="a",
    labels={"env": "prod"},
    engaged_at=STAMP,
    connectivity=pb.Connectivity(state=pb.Connectivity.STATE_UNREACHABLE, since=STAMP),
)
SOURCE = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE, since=Timestamp(seconds=1), reason="ConnectFailed")
ANSWERS = [
    pb.ListClustersResponse(clusters=[CLUSTER], revision="7", total_size=1, source=SOURCE),
    pb.GetClusterResponse(
        cluster=CLUSTER,
        engagement=pb.Engagement(engaged=True, reason=pb.Engagement.REASON_CONFIRMING_DELETION, since=STAMP),
        transitions=[
            pb.Transition(
                type=pb.ClusterEvent.TYPE_DISENGAGED, reason=pb.DISENGAGE_REASON_NOT_READY, message="x", at=STAMP
            )
        ],
        source=SOURCE,
    ),
    pb.GetServerInfoResponse(
        version="1",
        started_at=STAMP,
        source=SOURCE,
        counts=pb.FleetCounts(engaged=1),
        credential_issuers=[pb.CredentialIssuer(name="main", healthy=True)],
        limits=pb.Limits(stalled_timeout=Duration(seconds=300), default_heartbeat_interval=Duration(nanos=500_000_000)),
    ),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_json_output_of_a_response_equals_protobuf_json(answer):
    convert = {
        pb.ListClustersResponse: lambda message: _convert.listing([message]),
        pb.GetClusterResponse: _convert.cluster_report,
        pb.GetServerInfoResponse: _convert.server_info,
    }[type(answer)]
    expected = MessageToDict(answer, always_print_fields_with_no_presence=True)
    expected.pop("nextPageToken", None)  # a listing contains all pages
    assert json_output.to_json(convert(answer)) == expected


def test_json_output_of_an_event_equals_protobuf_json():
    session = Session()
    session.open()
    session.receive(snapshot("1", engaged(CLUSTER, token="t")))
    sent = disengaged(CLUSTER, pb.DISENGAGE_REASON_LABELS_CHANGED, "left")
    sent.kubeconfig.CopyFrom(pb.Kubeconfig(cluster="a", kubeconfig=text(token="t"), expires_at=STAMP))
    (event,) = session.receive(following("1", "2", sent))
    assert json.loads(json_output.line(json_output.to_json(event))) == MessageToDict(
        sent, always_print_fields_with_no_presence=True
    )
    assert "\n" not in json_output.line(json_output.to_json(event))


def test_json_output_rejects_value_without_a_json_form():
    with pytest.raises(TypeError, match="object has no JSON form"):
        json_output.to_json(object())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_yaml_output_round_trips_to_the_json_value(value):
    assert yaml.safe_load(yaml_output.document(value)) == value


@pytest.mark.parametrize(
    "word",
    ["yes", "No", "on", "y", "null", "True", "1e3", "0x1f", "1_000", "12:30", "-", "~", "", "a: b", "a #b", "*a"],
)
def test_yaml_quotes_ambiguous_strings(word):
    assert yaml_output.document({"name": word}) == f'name: "{word}"'


def test_yaml_has_block_style():
    value = {"clusters": [{"name": "a", "labels": {"env": "prod"}, "annotations": {}}, {"name": "b"}], "totalSize": 2}
    assert yaml_output.document(value).splitlines() == [
        "clusters:",
        "- name: a",
        "  labels:",
        "    env: prod",
        "  annotations: {}",
        "- name: b",
        "totalSize: 2",
    ]


async def test_plugin_manifest_names_the_datumctl_command(command):
    outcome = await command("--plugin-manifest")
    manifest = json.loads(outcome.out)
    assert (outcome.status, outcome.err) == (0, "")
    assert (manifest["name"], manifest["api_version"]) == ("discovery", 1)
    assert manifest["version"] == f"v{version('milo-discovery-cli')}"


async def test_plugin_manifest_option_is_hidden_from_help(command):
    assert "--plugin-manifest" not in (await command("--help")).out


async def test_output_escapes_what_its_encoding_lacks(daemon):
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[pb.Cluster(name="ż", organization="ü")])]
    columns = "custom-columns=N:.name,O:.organization"
    async with running("list", "-o", columns, address=daemon.address, PYTHONIOENCODING="latin-1") as process:
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode("latin-1").splitlines()[1].split() == ["\\u017c", "ü"]
