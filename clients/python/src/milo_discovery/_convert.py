"""Converts between protobuf messages and the values of `model`."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from milo_discovery import model
from milo_discovery._timestamps import time
from milo_discovery.options import FilterOptions, WatchOptions
from milo_discovery.v1 import discovery_pb2 as pb

DEFAULT_HEARTBEAT = timedelta(seconds=30)
SHORTEST_HEARTBEAT = timedelta(seconds=1)
LONGEST_HEARTBEAT = timedelta(hours=1)
HEARTBEATS_MISSED = 3
"""Number of heartbeat intervals without a message after which a stream is considered dead."""


def filter_message(options: FilterOptions | WatchOptions) -> pb.ClusterFilter:
    for key in ("names", "organizations", "sources"):
        # A string would be treated as a collection of its characters.
        if isinstance(options.get(key), str):
            raise TypeError(f"{key} must be a collection of strings: use {key}=[{options.get(key)!r}]")
    return pb.ClusterFilter(
        label_selector=options.get("label_selector", ""),
        names=options.get("names", ()),
        organizations=options.get("organizations", ()),
        sources=options.get("sources", ()),
    )


def watch_request(options: WatchOptions) -> pb.WatchClustersRequest:
    ttl = options.get("kubeconfig_ttl")
    confirm_releases = options.get("confirm_releases", False)
    return pb.WatchClustersRequest(
        filter=filter_message(options),
        include_kubeconfigs=options.get("include_kubeconfigs", False),
        kubeconfig_ttl=None if ttl is None else duration_message(ttl),
        heartbeat_interval=duration_message(options.get("heartbeat_interval", DEFAULT_HEARTBEAT)),
        confirm_releases=confirm_releases,
        subscriber=(options.get("subscriber") or new_subscriber()) if confirm_releases else "",
        accepts_pending_sources=True,
    )


def new_subscriber() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:200]
    return f"{host}/{secrets.token_hex(4)}"


def silence_limit(options: WatchOptions) -> timedelta:
    """Return the heartbeat timeout of a stream: three heartbeat intervals, clamped as the daemon clamps them."""
    interval = options.get("heartbeat_interval", DEFAULT_HEARTBEAT)
    return HEARTBEATS_MISSED * min(max(interval, SHORTEST_HEARTBEAT), LONGEST_HEARTBEAT)


def duration_message(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


def cluster(message: pb.Cluster) -> model.Cluster:
    return model.Cluster(
        name=message.name,
        uid=message.uid,
        endpoint=message.endpoint,
        organization=message.organization,
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        engaged_at=time(message, "engaged_at"),
        deletion_requested_at=time(message, "deletion_requested_at"),
        deletion_message=message.deletion_message,
        suspended=message.suspended,
        connectivity=model.Connectivity(
            state=model.ConnectivityState(message.connectivity.state),
            since=time(message.connectivity, "since"),
            message=message.connectivity.message,
        ),
        source_resource_version=message.source_resource_version,
        incarnation=message.incarnation,
        draining=model.Draining(
            reason=model.DisengageReason(message.draining.reason),
            deadline=time(message.draining, "deadline"),
            message=message.draining.message,
        )
        if message.HasField("draining")
        else None,
        source=message.source,
        suspensions=tuple(
            model.Suspension(
                reason=suspension.reason,
                suspended_at=time(suspension, "suspended_at"),
                reinstate_authority=suspension.reinstate_authority,
                message=suspension.message,
            )
            for suspension in message.suspensions
        ),
    )


def kubeconfig(message: pb.Kubeconfig) -> model.Kubeconfig:
    return model.Kubeconfig(
        cluster=message.cluster,
        kubeconfig=message.kubeconfig,
        expires_at=time(message, "expires_at"),
        refresh_after=time(message, "refresh_after"),
        issued_at=time(message, "issued_at"),
    )


def source_status(message: pb.SourceStatus) -> model.SourceStatus:
    return model.SourceStatus(
        state=model.SourceState(message.state),
        since=time(message, "since"),
        reason=message.reason,
        message=message.message,
        last_contact=time(message, "last_contact"),
        name=message.name,
    )


def listing(pages: Collection[pb.ListClustersResponse]) -> model.Listing:
    """Join the pages of one listing, which all have the same revision."""
    *_, last = pages
    return model.Listing(
        clusters=tuple(cluster(message) for page in pages for message in page.clusters),
        revision=last.revision,
        total_size=last.total_size,
        source=source_status(last.source),
        sources=tuple(map(source_status, last.sources)),
        pending_sources=tuple(last.pending_sources),
    )


def cluster_report(message: pb.GetClusterResponse) -> model.ClusterReport:
    # Daemons of earlier versions state only the reason.
    is_elsewhere = message.engagement.assigned_elsewhere or message.engagement.reason == pb.Engagement.REASON_UNASSIGNED
    return model.ClusterReport(
        cluster=cluster(message.cluster) if message.HasField("cluster") else None,
        engagement=model.Engagement(
            engaged=message.engagement.engaged,
            reason=model.EngagementReason(message.engagement.reason),
            message=message.engagement.message,
            since=time(message.engagement, "since"),
            assigned_elsewhere=is_elsewhere,
        ),
        transitions=tuple(
            model.Transition(
                type=model.EventType(transition.type),
                reason=model.DisengageReason(transition.reason),
                message=transition.message,
                at=time(transition, "at"),
                incarnation=transition.incarnation,
            )
            for transition in message.transitions
        ),
        pending_releases=tuple(
            model.PendingRelease(
                subscriber=release.subscriber,
                caller=release.caller,
                connected=release.connected,
                since=time(release, "since"),
            )
            for release in message.pending_releases
        ),
        source=source_status(message.source),
    )


def _sharding(message: pb.Sharding) -> model.Sharding:
    return model.Sharding(
        group=message.group,
        member=message.member,
        view=message.view,
        settled=message.settled,
        members=tuple(
            model.ShardMember(
                name=member.name,
                weight=member.weight,
                in_view=member.in_view,
                alive=member.alive,
                leaving=member.leaving,
                acknowledged_view=member.acknowledged_view,
                clusters=member.clusters,
            )
            for member in message.members
        ),
        valid_for=duration(message, "valid_for"),
        problem=message.problem,
        draining=tuple(message.draining),
    )


def server_info(message: pb.GetServerInfoResponse) -> model.ServerInfo:
    counts, limits = message.counts, message.limits
    return model.ServerInfo(
        version=message.version,
        mode=message.mode,
        context=message.context,
        incarnation=message.incarnation,
        started_at=time(message, "started_at"),
        source=source_status(message.source),
        synced=message.synced,
        counts=_counts(counts),
        sources=tuple(
            model.Source(
                name=source.name,
                kind=source.kind,
                context=source.context,
                status=source_status(source.status),
                synced=source.synced,
                counts=_counts(source.counts),
            )
            for source in message.sources
        ),
        credential_issuers=tuple(
            model.CredentialIssuer(
                name=issuer.name,
                type=issuer.type,
                healthy=issuer.healthy,
                message=issuer.message,
                expires_at=time(issuer, "expires_at"),
                failing_clusters=dict(issuer.failing_clusters),
            )
            for issuer in message.credential_issuers
        ),
        limits=model.Limits(
            default_heartbeat_interval=duration(limits, "default_heartbeat_interval"),
            stalled_timeout=duration(limits, "stalled_timeout"),
            max_kubeconfig_ttl=duration(limits, "max_kubeconfig_ttl"),
            max_page_size=limits.max_page_size,
            max_filter_bytes=limits.max_filter_bytes,
        ),
        sharding=_sharding(message.sharding) if message.HasField("sharding") else None,
    )


def _counts(message: pb.FleetCounts) -> model.FleetCounts:
    return model.FleetCounts(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def duration(message: Message, name: str) -> timedelta | None:
    if not message.HasField(name):
        return None
    value: Duration = getattr(message, name)
    with suppress(ValueError, OverflowError):
        value.ToJsonString()  # raises if the value is outside of protobuf's range, which is narrower than a timedelta's
        return value.ToTimedelta()
    return None
