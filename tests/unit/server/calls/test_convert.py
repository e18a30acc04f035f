"""Conversion of model values to messages."""

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.engagement import ClusterRecord, RecordedTransition
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig
from milo_discoveryd.log.change_log import LogEntry
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import (
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
    SuspensionReason,
    Target,
)
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewState, ViewStatus

EPOCH = "0123456789abcdef"
encode = encoder(EPOCH)

SMALL = Cluster(
    target=Target(name="a", uid="u", place=("https://a",)), source_version="7", engaged_at=1.5, incarnation=3
)
FULL = Cluster(
    target=Target(
        name="apollo",
        uid="u1",
        place=("https://api.example.com/apollo",),
        organization="nasa",
        labels=(("env", "prod"), ("tier", "gold")),
        annotations=(("example.com/note", "é"),),
        deletion_requested_at=10.25,
        deletion_message="2 left",
        suspensions=(SuspensionReason("Billing", 5.0, "Consumer"), SuspensionReason("Abuse", None, "")),
    ),
    source_version="7",
    engaged_at=1_700_000_000.123456,
    incarnation=42,
    connectivity=ConnectivityStatus(Reachability.UNREACHABLE, 5.0, "refused"),
    draining=Drain(DisengageReason.NOT_READY, "degraded", 2_000.5),
)


def test_cluster_message_has_all_fields() -> None:
    assert convert.cluster(FULL, EPOCH) == pb.Cluster(
        name="apollo",
        uid="u1",
        endpoint="https://api.example.com/apollo",
        organization="nasa",
        labels={"env": "prod", "tier": "gold"},
        annotations={"example.com/note": "é"},
        engaged_at=Timestamp(seconds=1_700_000_000, nanos=123_456_000),
        deletion_requested_at=Timestamp(seconds=10, nanos=250_000_000),
        deletion_message="2 left",
        suspended=True,
        connectivity=pb.Connectivity(
            state=pb.Connectivity.STATE_UNREACHABLE, since=Timestamp(seconds=5), message="refused"
        ),
        source_resource_version="7",
        incarnation=f"{EPOCH}.42",
        draining=pb.Draining(
            reason=pb.DISENGAGE_REASON_NOT_READY,
            deadline=Timestamp(seconds=2_000, nanos=500_000_000),
            message="degraded",
        ),
        suspensions=[
            pb.Suspension(reason="Billing", suspended_at=Timestamp(seconds=5), reinstate_authority="Consumer"),
            pb.Suspension(reason="Abuse"),
        ],
    )


def test_cluster_message_of_a_named_source_has_an_endpoint_derived_from_the_local_name() -> None:
    target = Target(name="eu#a", source="eu", uid="u", place=("https://", ".example.com"))
    message = convert.cluster(msgspec.structs.replace(SMALL, target=target), EPOCH)
    assert (message.name, message.source, message.endpoint) == ("eu#a", "eu", "https://a.example.com")


def test_cluster_message_omits_unknown_fields() -> None:
    message = convert.cluster(SMALL, EPOCH)
    assert not message.HasField("deletion_requested_at")
    assert message.connectivity == pb.Connectivity(state=pb.Connectivity.STATE_UNKNOWN)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, Timestamp()),
        (1.5, Timestamp(seconds=1, nanos=500_000_000)),
        (1.9999999, Timestamp(seconds=2)),
        (-0.25, Timestamp(seconds=-1, nanos=750_000_000)),
    ],
)
def test_timestamps_are_rounded_to_microseconds(seconds: float, expected: Timestamp) -> None:
    assert convert.timestamp(seconds) == expected


# --- the source ---


def test_source_status_times_are_wall_time() -> None:
    status = ViewStatus(ViewState.STALE, 90.0, "ConnectionLost", "the connection was lost", 80.0)
    assert convert.source(status, Moment(wall=1_000_100.0, steady=100.0)) == pb.SourceStatus(
        state=pb.SourceStatus.STATE_STALE,
        since=Timestamp(seconds=1_000_090),
        reason="ConnectionLost",
        message="the connection was lost",
        last_contact=Timestamp(seconds=1_000_080),
    )


@pytest.mark.parametrize("state", ViewState)
def test_every_source_state_has_an_enum_value(state: ViewState) -> None:
    message = convert.source(ViewStatus(state, 0.0), Moment(0.0, 0.0))
    assert pb.SourceStatus.State.Name(message.state) == f"STATE_{state.value}"
    assert not message.HasField("last_contact")


# --- engagement ---


def record(state: ObjectState, *, engaged: bool = False) -> ClusterRecord:
    return ClusterRecord(
        uid="u",
        state=state,
        since=100.0,
        message="its message",
        entry=LogEntry(cluster=SMALL if engaged else None),
    )


def engagement(
    of: ClusterRecord, confirming: str | None = None, grace_until: float | None = None
) -> tuple[bool, str, str, int]:
    message = convert.engagement(of, confirming, grace_until=grace_until)
    return message.engaged, pb.Engagement.Reason.Name(message.reason), message.message, message.since.seconds


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ObjectState.NOT_READY, "REASON_NOT_READY"),
        (ObjectState.OUTSIDE, "REASON_OUTSIDE_SELECTOR"),
        (ObjectState.MALFORMED, "REASON_MALFORMED"),
        (ObjectState.UNREACHABLE, "REASON_UNREACHABLE"),
        (ObjectState.DELETED, "REASON_DELETED"),
    ],
)
def test_engagement_message_of_cluster_that_is_not_engaged_explains_the_reason(state: ObjectState, reason: str) -> None:
    assert engagement(record(state)) == (False, reason, "its message", 100)


def test_engagement_message_of_engaged_cluster_has_reason_engaged() -> None:
    assert engagement(record(ObjectState.READY, engaged=True)) == (
        True,
        "REASON_ENGAGED",
        "its source reports that it is ready",
        1,
    )


def test_engagement_message_of_engaged_cluster_contains_the_ready_condition_of_its_source() -> None:
    message = convert.engagement(record(ObjectState.READY, engaged=True), None, ready_when="condition Ready is True")
    assert message.message == "its condition Ready is True"


def test_engagement_message_of_engaged_malformed_object_has_reason_malformed() -> None:
    assert engagement(record(ObjectState.MALFORMED, engaged=True)) == (True, "REASON_MALFORMED", "its message", 100)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("", "its object was reported as deleted; not confirmed yet"),
        ("503: not now", "its object was reported as deleted; not confirmed yet: 503: not now"),
    ],
)
def test_engagement_message_of_cluster_with_pending_deletion_has_reason_confirming_deletion(
    problem: str, message: str
) -> None:
    result = engagement(record(ObjectState.READY, engaged=True), problem)
    assert result == (True, "REASON_CONFIRMING_DELETION", message, 100)


def test_not_ready_cluster_whose_deletion_is_being_confirmed_has_reason_not_ready() -> None:
    assert engagement(record(ObjectState.NOT_READY), "")[1] == "REASON_NOT_READY"


def test_engagement_message_within_not_ready_grace_period_contains_the_end_of_the_period() -> None:
    assert engagement(record(ObjectState.NOT_READY, engaged=True), grace_until=1_700_000_000.9) == (
        True,
        "REASON_NOT_READY",
        "its message; the cluster stays engaged until 2023-11-14T22:13:20Z in case it becomes ready again",
        100,
    )


@pytest.mark.parametrize(
    ("state", "again"), [(ObjectState.NOT_READY, ""), (ObjectState.READY, "; it will be engaged again after the drain")]
)
@pytest.mark.parametrize(("why", "expected"), [("degraded", "NOT_READY: degraded"), ("", "NOT_READY")])
def test_engagement_message_of_draining_cluster_has_reason_draining(
    state: ObjectState, again: str, why: str, expected: str
) -> None:
    of = record(state)
    of.entry.cluster = msgspec.structs.replace(SMALL, draining=Drain(DisengageReason.NOT_READY, why, 1_700_000_000.0))
    end = f"once its subscribers have released it, or at 2023-11-14T22:13:20Z{again}"
    message = f"about to be disengaged ({expected}): {end}"
    assert engagement(of) == (True, "REASON_DRAINING", message, 100)


def test_engagement_message_of_draining_cluster_of_another_member_says_it_will_not_be_engaged_again() -> None:
    of = record(ObjectState.READY)
    of.entry.cluster = msgspec.structs.replace(SMALL, draining=Drain(DisengageReason.NOT_READY, "", 1_700_000_000.0))
    found = convert.engagement(of, None, "member b of the shard group owns it (view 3)")
    assert found.message == (
        "about to be disengaged (NOT_READY): once its subscribers have released it, or at 2023-11-14T22:13:20Z; "
        "it is ready again, but this daemon will not engage it after the drain: "
        "member b of the shard group owns it (view 3)"
    )


@pytest.mark.parametrize("state", [ObjectState.NOT_READY, ObjectState.DELETED, ObjectState.UNASSIGNED])
def test_engagement_says_whether_another_member_may_have_the_cluster_engaged(state: ObjectState) -> None:
    assert convert.engagement(record(state), None, "member b owns it").assigned_elsewhere
    # One that is unassigned and becomes this member's is engaged within one step.
    assert convert.engagement(record(state), None).assigned_elsewhere == (state is ObjectState.UNASSIGNED)


def test_engagement_message_of_draining_moved_cluster_does_not_announce_reengagement() -> None:
    of = record(ObjectState.READY)
    moves = Drain(DisengageReason.MOVED, "member b owns it", 1_700_000_000.0)
    of.entry.cluster = msgspec.structs.replace(SMALL, draining=moves)
    end = "once its subscribers have released it, or at 2023-11-14T22:13:20Z"
    message = f"about to be disengaged (MOVED: member b owns it): {end}"
    assert engagement(of) == (True, "REASON_DRAINING", message, 100)


def test_transition_message_has_incarnation() -> None:
    ended = RecordedTransition(EventType.DISENGAGED, 5.0, 3, DisengageReason.DELETED, "gone")
    assert convert.transition(ended, EPOCH) == pb.Transition(
        type=pb.ClusterEvent.TYPE_DISENGAGED,
        reason=pb.DISENGAGE_REASON_DELETED,
        message="gone",
        at=Timestamp(seconds=5),
        incarnation=f"{EPOCH}.3",
    )


# --- kubeconfigs ---


def test_kubeconfig_message_has_issue_refresh_and_expiry_times() -> None:
    handed = IssuedKubeconfig("a", b"{}", issued_at=1.0, expires_at=3.0, refresh_at=2.0)
    assert convert.kubeconfig(handed) == pb.Kubeconfig(
        cluster="a",
        kubeconfig=b"{}",
        issued_at=Timestamp(seconds=1),
        refresh_after=Timestamp(seconds=2),
        expires_at=Timestamp(seconds=3),
    )


def test_kubeconfig_message_without_expiry_has_neither_expiry_nor_refresh_time() -> None:
    message = convert.kubeconfig(IssuedKubeconfig("a", b"{}", issued_at=1.0))
    assert not message.HasField("expires_at")
    assert not message.HasField("refresh_after")


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (
            IssuerHealth("core", "kubeconfig", "", 5.0, 2),
            pb.CredentialIssuer(name="core", type="kubeconfig", healthy=True, expires_at=Timestamp(seconds=5)),
        ),
        (
            IssuerHealth("core", "kubeconfig", "401: who are you?", None, 0),
            pb.CredentialIssuer(name="core", type="kubeconfig", healthy=False, message="401: who are you?"),
        ),
    ],
)
def test_credential_issuer_is_healthy_unless_it_fails(health: IssuerHealth, message: pb.CredentialIssuer) -> None:
    assert convert.credential_issuer(health) == message


def test_server_info_lists_each_cluster_source() -> None:
    now, status = Moment(1000.0, 10.0), ViewStatus(ViewState.STREAMING, 5.0)
    assert [source.name for source in convert.sources({"": status}, status, now)] == [""]
    assert [source.name for source in convert.sources({"eu": status, "us": status}, status, now)] == ["", "eu", "us"]


def test_sharding_message_describes_the_group_and_its_members() -> None:
    status = GroupStatus(
        group="dns",
        member="a",
        view=3,
        is_settled=True,
        members=(MemberStatus(name="a", weight=2.0, is_in_view=True, is_alive=True, is_leaving=True, acknowledged=3),),
        problem="late",
    )
    assert convert.sharding(status) == pb.Sharding(
        group="dns",
        member="a",
        view=3,
        settled=True,
        problem="late",
        members=[
            pb.ShardMember(name="a", weight=2.0, in_view=True, alive=True, leaving=True, acknowledged_view=3),
        ],
    )


def test_duration_is_rounded_to_milliseconds() -> None:
    assert convert.duration(1.23456).ToMilliseconds() == 1235
