"""Builders for the daemon's protobuf messages."""

from __future__ import annotations

from milo_discovery.v1 import discovery_pb2 as pb

from .kubeconfigs import text

_TYPE = pb.ClusterEvent.Type


def cluster(name: str, *, uid: str | None = None, **fields: object) -> pb.Cluster:
    return pb.Cluster(name=name, uid=uid or f"uid-of-{name}", **fields)


def draining(
    name: str, *, reason: pb.DisengageReason.ValueType = pb.DISENGAGE_REASON_NOT_READY, **fields: object
) -> pb.Cluster:
    return cluster(name, draining=pb.Draining(reason=reason), **fields)


def engaged(what: str | pb.Cluster, *, token: str | None = None) -> pb.ClusterEvent:
    return _event(_TYPE.TYPE_ENGAGED, what, token=token)


def updated(what: str | pb.Cluster) -> pb.ClusterEvent:
    return _event(_TYPE.TYPE_UPDATED, what)


def disengaged(
    what: str | pb.Cluster,
    reason: pb.DisengageReason.ValueType = pb.DISENGAGE_REASON_DELETED,
    message: str = "",
) -> pb.ClusterEvent:
    return _event(_TYPE.TYPE_DISENGAGED, what, reason=reason, message=message)


def renewed(what: str | pb.Cluster, token: str) -> pb.ClusterEvent:
    return _event(_TYPE.TYPE_KUBECONFIG, what, token=token)


def _event(
    kind: pb.ClusterEvent.Type.ValueType,
    what: str | pb.Cluster,
    *,
    token: str | None = None,
    reason: pb.DisengageReason.ValueType = pb.DISENGAGE_REASON_UNSPECIFIED,
    message: str = "",
) -> pb.ClusterEvent:
    subject = cluster(what) if isinstance(what, str) else what
    return pb.ClusterEvent(
        type=kind,
        cluster=subject,
        reason=reason,
        message=message,
        kubeconfig=None if token is None else pb.Kubeconfig(cluster=subject.name, kubeconfig=text(token=token)),
    )


def snapshot(
    revision: str, *events: pb.ClusterEvent, synced: bool = True, source: pb.SourceStatus | None = None
) -> pb.WatchClustersResponse:
    """Return a reset batch: a complete snapshot, or with `synced=False` the first batch of one."""
    return pb.WatchClustersResponse(events=events, revision=revision, synced=synced, reset=True, source=source)


def following(
    previous: str, revision: str, *events: pb.ClusterEvent, synced: bool = True, source: pb.SourceStatus | None = None
) -> pb.WatchClustersResponse:
    """Return the batch after the revision `previous`; without events it is a heartbeat."""
    return pb.WatchClustersResponse(
        events=events, revision=revision, previous_revision=previous, synced=synced, source=source
    )


def waiting(previous: str = "", revision: str = "") -> pb.WatchClustersResponse:
    """Return a heartbeat of a daemon that is not synced."""
    return following(previous, revision, synced=False)
