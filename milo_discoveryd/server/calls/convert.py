"""Conversion of model values to protobuf messages. Pure."""

from collections.abc import Mapping
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.engagement import ClusterRecord, RecordedTransition
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig
from milo_discoveryd.log.events import EventType
from milo_discoveryd.model.cluster import UNPROBED, Cluster, DisengageReason, Drain, Reachability, SuspensionReason
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_discoveryd.sharding.status import GroupStatus
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewStatus
from milo_kube.rfc3339 import rfc3339

EVENT_TYPES = {kind: pb.ClusterEvent.Type.Value(f"TYPE_{kind.value}") for kind in EventType}
REASONS = {reason: pb.DisengageReason.Value(f"DISENGAGE_REASON_{reason.value}") for reason in DisengageReason}
_REACHABILITIES = {state: pb.Connectivity.State.Value(f"STATE_{state.value}") for state in Reachability}
_ENGAGEMENT_REASONS = {
    state: pb.Engagement.Reason.Value(f"REASON_{meaning.reason}") for state, meaning in MEANINGS.items()
}


def cluster(engaged: Cluster, epoch: str) -> pb.Cluster:
    message = pb.Cluster()
    fill_cluster(message, engaged, epoch)
    return message


def fill_cluster(message: pb.Cluster, engaged: Cluster, epoch: str) -> None:
    """Write the cluster into an empty message."""
    target = engaged.target
    message.name = target.name
    message.uid = target.uid
    message.endpoint = target.endpoint
    if target.organization:
        message.organization = target.organization
    labels = message.labels
    for key, value in target.labels:  # faster than `update`
        labels[key] = value
    if target.annotations:
        message.annotations.update(target.annotations)
    _fill_timestamp(message.engaged_at, engaged.engaged_at)
    if target.deletion_requested_at is not None:
        _fill_timestamp(message.deletion_requested_at, target.deletion_requested_at)
    if target.deletion_message:
        message.deletion_message = target.deletion_message
    message.connectivity.state = _REACHABILITIES[engaged.connectivity.state]
    if engaged.connectivity is not UNPROBED:
        if engaged.connectivity.since is not None:
            _fill_timestamp(message.connectivity.since, engaged.connectivity.since)
        message.connectivity.message = engaged.connectivity.message
    message.source_resource_version = engaged.source_version
    message.incarnation = wire_incarnation(epoch, engaged.incarnation)
    if target.source:
        message.source = target.source
    if engaged.draining is not None:
        message.draining.CopyFrom(_draining(engaged.draining))
    if target.suspensions is not None:
        message.suspended = True
        message.suspensions.extend(map(suspension, target.suspensions))


def suspension(reason: SuspensionReason) -> pb.Suspension:
    return pb.Suspension(
        reason=reason.reason,
        suspended_at=None if reason.suspended_at is None else timestamp(reason.suspended_at),
        reinstate_authority=reason.reinstate_authority,
        message=reason.message,
    )


def sources(statuses: Mapping[str, ViewStatus], whole: ViewStatus, now: Moment) -> list[pb.SourceStatus]:
    """Return the summary `whole`, followed by the status of each source if the sources have names."""
    if len(statuses) == 1 and "" in statuses:
        return [source(whole, now)]
    return [source(whole, now), *(source(status, now, name) for name, status in statuses.items())]


def source(status: ViewStatus, now: Moment, name: str = "") -> pb.SourceStatus:
    """Convert the status. Its times are converted from the steady clock to wall time."""
    ahead = now.wall - now.steady
    return pb.SourceStatus(
        state=pb.SourceStatus.State.Value(f"STATE_{status.state.value}"),
        since=timestamp(status.since + ahead),
        reason=status.reason,
        message=status.message,
        last_contact=None if status.last_contact is None else timestamp(status.last_contact + ahead),
        name=name,
    )


def engagement(
    record: ClusterRecord,
    confirming: str | None,
    elsewhere: str | None = None,
    grace_until: float | None = None,
    ready_when: str = "",
) -> pb.Engagement:
    """Convert the record of a cluster to its engagement.

    `confirming`: why a reported deletion is not confirmed yet; None if no deletion was reported. `elsewhere`: why this
    daemon must not engage the cluster; None if it may. `grace_until`: the result of `Engagements.grace_until`.
    `ready_when`: `SourceKind.ready_when`.
    """
    reason, message, since = _ENGAGEMENT_REASONS[record.state], record.message, record.since
    if record.engaged and confirming is not None:
        reason = pb.Engagement.REASON_CONFIRMING_DELETION
        message = f"its object was reported as deleted; not confirmed yet{': ' + confirming if confirming else ''}"
    elif record.cluster is not None and (draining := record.cluster.draining) is not None:
        reason, message = pb.Engagement.REASON_DRAINING, _drain_message(draining, record.state, elsewhere)
    elif grace_until is not None:
        message += f"; the cluster stays engaged until {rfc3339(grace_until)} in case it becomes ready again"
    elif record.state is ObjectState.READY and record.latest is not None:
        message = f"its {ready_when}" if ready_when else "its source reports that it is ready"
        since = record.latest.engaged_at
    return pb.Engagement(
        engaged=record.engaged,
        reason=reason,
        message=message,
        since=timestamp(since),
        assigned_elsewhere=elsewhere is not None or record.state is ObjectState.UNASSIGNED,
    )


def kubeconfig(issued: IssuedKubeconfig) -> pb.Kubeconfig:
    return pb.Kubeconfig(
        cluster=issued.cluster,
        kubeconfig=issued.text,
        issued_at=timestamp(issued.issued_at),
        expires_at=None if issued.expires_at is None else timestamp(issued.expires_at),
        refresh_after=None if issued.refresh_at is None else timestamp(issued.refresh_at),
    )


def credential_issuer(health: IssuerHealth, problem: str | None = None) -> pb.CredentialIssuer:
    """Convert the health of an issuer. `problem` replaces messages about clusters that the caller may not see."""
    return pb.CredentialIssuer(
        name=health.name,
        type=health.type,
        healthy=not health.problem,
        message=health.problem and (problem or health.problem),
        expires_at=None if health.expires_at is None else timestamp(health.expires_at),
        failing_clusters=health.failing if problem is None else {},
    )


def sharding(status: GroupStatus) -> pb.Sharding:
    """Convert the status, without the fields that depend on the clusters or the clock."""
    return pb.Sharding(
        group=status.group,
        member=status.member,
        view=status.view,
        settled=status.is_settled,
        problem=status.problem,
        members=[
            pb.ShardMember(
                name=member.name,
                weight=member.weight,
                in_view=member.is_in_view,
                alive=member.is_alive,
                leaving=member.is_leaving,
                acknowledged_view=member.acknowledged,
            )
            for member in status.members
        ],
    )


def transition(recorded: RecordedTransition, epoch: str) -> pb.Transition:
    return pb.Transition(
        type=EVENT_TYPES[recorded.type],
        reason=_reason(recorded.reason),
        message=recorded.message,
        at=timestamp(recorded.at),
        incarnation=wire_incarnation(epoch, recorded.incarnation),
    )


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromMilliseconds(round(seconds * 1000))
    return message


def timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    _fill_timestamp(message, seconds)
    return message


def _fill_timestamp(message: Timestamp, seconds: float) -> None:
    message.seconds, message.nanos = _seconds_and_nanos(seconds)


@lru_cache(maxsize=256)
def _seconds_and_nanos(seconds: float) -> tuple[int, int]:
    """Split Unix time. Cached, because many clusters are engaged at the same time."""
    whole, rest = divmod(round(seconds * 1e6), 1_000_000)
    return whole, rest * 1000


def _reason(reason: DisengageReason | None) -> pb.DisengageReason.ValueType:
    return pb.DISENGAGE_REASON_UNSPECIFIED if reason is None else REASONS[reason]


def _draining(drain: Drain) -> pb.Draining:
    return pb.Draining(reason=REASONS[drain.reason], deadline=timestamp(drain.deadline), message=drain.message)


def _drain_message(drain: Drain, state: ObjectState, elsewhere: str | None) -> str:
    why = f"{drain.reason.value}{drain.message and f': {drain.message}'}"
    message = f"about to be disengaged ({why}): once its subscribers have released it, or at {rfc3339(drain.deadline)}"
    if state is not ObjectState.READY or drain.reason is DisengageReason.MOVED:
        return message
    if elsewhere is not None:
        return f"{message}; it is ready again, but this daemon will not engage it after the drain: {elsewhere}"
    return f"{message}; it will be engaged again after the drain"
