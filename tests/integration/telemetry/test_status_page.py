"""The status page without a browser: its document, and the status as JSON."""

import base64
import hashlib
import json
import os
import re
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from milo_discoveryd.telemetry import status_page
from milo_discoveryd.telemetry.board import _identity
from milo_discoveryd.telemetry.http import printable_metrics
from milo_discoveryd.telemetry.journal import RECENT_CHANGES_KEPT, RecentChanges
from milo_discoveryd.telemetry.status import ORDER, ClusterQuery, DaemonIdentity, SourceSummary
from tests.unit.fleet.fleets import cluster


def test_status_page_allows_only_its_own_script_and_style() -> None:
    page, policy = status_page.PAGE.decode(), status_page.HEADERS["Content-Security-Policy"]
    for element in ("style", "script"):
        [text] = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    foreign = r"https?://(?!www\.w3\.org|github\.com/\S+/docs/runbooks/)"
    assert not re.search(rf"\son\w+=|\sstyle=|{foreign}", page), "the policy blocks content of the page"


def test_status_page_inserts_values_only_as_text() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", status_page.PAGE.decode())


def test_links_of_status_page_are_relative() -> None:
    assert not re.search(r"""(?:href|action|fetch\()\s*[=:(]\s*["'`]/""", status_page.PAGE.decode())


def test_every_object_state_has_a_sort_order() -> None:
    assert set(ORDER) == set(ObjectState)


def test_page_number_out_of_range_selects_the_first_or_last_page() -> None:
    assert [ClusterQuery(page=page).first_row(120) for page in (-3, 0, 1, 2, 3, 4, 999)] == [0, 0, 0, 50, 100, 100, 100]
    assert ClusterQuery(page=7).first_row(0) == 0


def test_status_keeps_the_last_changes() -> None:
    changes = RecentChanges()
    for number in range(RECENT_CHANGES_KEPT + 10):
        changes.note(Event(EventType.ENGAGED, cluster(f"c-{number}")), float(number))
    assert len([*changes]) == RECENT_CHANGES_KEPT
    assert [change.cluster for change in changes][:2] == ["c-59", "c-58"], "newest first"


def test_times_in_the_status_json_are_rfc_3339() -> None:
    changes = RecentChanges()
    changes.note(Event(EventType.DISENGAGED, cluster("alpha")), 1_800_000_000.0)
    [change] = json.loads(msgspec.json.encode([*changes]))
    assert change["at"] == "2027-01-15T08:00:00Z"
    assert datetime.fromisoformat(change["at"]).timestamp() == 1_800_000_000.0


def test_metrics_have_no_characters_that_hide_or_rearrange_text() -> None:
    encoded = 'm{name="a\x1b[2Jb\u202ec\u2066"} 1.0\nm 2.0\n'.encode()
    assert printable_metrics(encoded).decode() == 'm{name="a\ufffd[2Jb\ufffdc\ufffd"} 1.0\nm 2.0\n'


@pytest.mark.parametrize(
    ("values", "message", "own"),
    [
        (DaemonIdentity, pb.GetServerInfoResponse, {"host"}),
        (SourceSummary, pb.SourceStatus, {"synced", "retryAt"}),
        (GroupStatus, pb.Sharding, set()),
        (MemberStatus, pb.ShardMember, set()),
    ],
)
def test_status_json_has_the_field_names_of_the_proto_file(values: type, message: type, own: set[str]) -> None:
    names = {field.encode_name for field in msgspec.structs.fields(values)}
    assert names - own <= {field.json_name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]


def test_caller_of_a_process_is_named_by_its_program() -> None:
    """Processes of other containers are not visible: the kernel reports their PID as 0."""
    program = Path("/proc/self/comm").read_text().strip()
    pid = os.getpid()
    assert _identity(Caller(listener="api", uid=7, pid=pid)) == f"uid 7, pid {pid} ({program})"
    assert _identity(Caller(listener="api", uid=7, pid=2**22 + 1)) == f"uid 7, pid {2**22 + 1}"
    assert _identity(Caller(listener="api")) == "any caller of api"


def test_program_of_a_subscriber_may_have_any_bytes() -> None:
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    name.write_bytes(b"\xff")
    try:
        assert _identity(Caller(listener="api", pid=os.getpid())) == f"pid {os.getpid()} (\ufffd)"
    finally:
        name.write_bytes(before)
