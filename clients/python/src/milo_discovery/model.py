"""The client's data types: frozen values with the field names of the proto file.

A timestamp that is not set is None; all others are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum


class _OpenEnum(Enum):
    """An enum with the proto file's numbers. Unknown numbers, from a newer daemon, become UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum:
        return cls["UNSPECIFIED"]


class DisengageReason(_OpenEnum):
    """The reason for which a cluster was disengaged. UNSPECIFIED if unknown: see `Event.message`."""

    UNSPECIFIED = 0
    DELETED = 1
    NOT_READY = 2
    REPLACED = 3
    LABELS_CHANGED = 4
    UNREACHABLE = 5
    REVOKED = 6
    MOVED = 7
    REMOVED = 8
    OWNERSHIP_LOST = 9


class ConnectivityState(_OpenEnum):
    """The result of the daemon's probes of a cluster's API server."""

    UNSPECIFIED = 0
    UNKNOWN = 1
    REACHABLE = 2
    UNREACHABLE = 3


class SourceState(_OpenEnum):
    """The state of the daemon's view of Milo."""

    UNSPECIFIED = 0
    STREAMING = 1
    CATCHING_UP = 2
    STALE = 3


class EngagementReason(_OpenEnum):
    """The reason why a cluster is or is not engaged."""

    UNSPECIFIED = 0
    ENGAGED = 1
    NOT_READY = 2
    OUTSIDE_SELECTOR = 3
    MALFORMED = 4
    DELETED = 5
    CONFIRMING_DELETION = 6
    UNREACHABLE = 7
    DRAINING = 8
    REMOVED = 9
    UNASSIGNED = 10
    REFUSED = 11


class EventType(_OpenEnum):
    """The type of a change to a cluster."""

    UNSPECIFIED = 0
    ENGAGED = 1
    UPDATED = 2
    DISENGAGED = 3
    KUBECONFIG = 4


class KubeconfigFormat(_OpenEnum):
    """How a kubeconfig provides its credential: embedded, or by an exec plugin."""

    UNSPECIFIED = 0
    EMBEDDED = 1
    EXEC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Connectivity:
    """The result of the daemon's probes of a cluster's API server."""

    state: ConnectivityState = ConnectivityState.UNSPECIFIED
    since: datetime | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """A planned disengagement: finish your work on the cluster, and release it."""

    reason: DisengageReason = DisengageReason.UNSPECIFIED
    """The reason that the DISENGAGED event will give."""
    deadline: datetime | None = None
    """When the cluster is disengaged at the latest, whether or not it was released."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """One suspension of a cluster. A cluster can have several."""

    reason: str = ""
    suspended_at: datetime | None = None
    reinstate_authority: str = ""
    """Who can reinstate the project: "Operator" or "Consumer"."""
    message: str = ""
    """The message of the source about the suspension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """An engaged project control plane."""

    name: str
    """The cluster's key: the project's name or, if its source has a name, SOURCE#NAME."""
    uid: str = ""
    endpoint: str = ""
    organization: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    engaged_at: datetime | None = None
    deletion_requested_at: datetime | None = None
    deletion_message: str = ""
    suspended: bool = False
    connectivity: Connectivity = Connectivity()
    source_resource_version: str = ""
    incarnation: str = ""
    draining: Draining | None = None
    source: str = ""
    """The name of the cluster's source; empty if the daemon's only source has no name."""
    suspensions: tuple[Suspension, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubeconfig:
    """A kubeconfig with its lifetime. `repr` omits the content, which is secret: keep it out of logs."""

    cluster: str
    kubeconfig: bytes = field(repr=False)
    expires_at: datetime | None = None
    refresh_after: datetime | None = None
    issued_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """The freshness of the daemon's view of Milo, independent of the connection to the daemon."""

    state: SourceState = SourceState.UNSPECIFIED
    since: datetime | None = None
    reason: str = ""
    message: str = ""
    last_contact: datetime | None = None
    name: str = ""
    """The name of the source; empty if the daemon's only source has no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFreshness:
    """How current the daemon's view of its sources is. Equal until the state of a source changes."""

    sources: tuple[SourceStatus, ...] = ()
    """The status of each source, with the time of its last contact if it is stale; empty before the first batch."""
    pending_sources: tuple[str, ...] = ()
    """Sources whose clusters are missing, because the daemon has no complete list of them yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The engaged clusters at one revision, ordered by name."""

    clusters: tuple[Cluster, ...] = ()
    revision: str = ""
    total_size: int = 0
    source: SourceStatus = SourceStatus()
    sources: tuple[SourceStatus, ...] = ()
    """Each source that the filter covers; empty if the daemon's only source has no name."""
    pending_sources: tuple[str, ...] = ()
    """Sources whose clusters are missing, because the daemon has no complete list of them yet."""

    def __iter__(self) -> Iterator[Cluster]:
        return iter(self.clusters)

    def __len__(self) -> int:
        return len(self.clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engagement:
    """Whether a cluster is engaged, and why."""

    engaged: bool = False
    reason: EngagementReason = EngagementReason.UNSPECIFIED
    message: str = ""
    since: datetime | None = None
    assigned_elsewhere: bool = False
    """Whether another member of the shard group owns the cluster, or has not released it yet. Unless `engaged`, only
    that member knows whether the cluster is engaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A past engagement or disengagement."""

    type: EventType = EventType.UNSPECIFIED
    reason: DisengageReason = DisengageReason.UNSPECIFIED
    message: str = ""
    at: datetime | None = None
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRelease:
    """A subscriber that has not released a draining cluster yet."""

    subscriber: str = ""
    caller: str = ""
    connected: bool = False
    since: datetime | None = None
    """When the subscriber connected or, if it is not connected, when it disconnected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReport:
    """What the daemon reports about one cluster. `cluster` is None if it was never engaged."""

    cluster: Cluster | None = None
    engagement: Engagement = Engagement()
    transitions: tuple[Transition, ...] = ()
    pending_releases: tuple[PendingRelease, ...] = ()
    """The subscribers that have not released the draining cluster, as far as the caller may see them."""
    source: SourceStatus = SourceStatus()
    """The freshness of the report. UNSPECIFIED if the daemon does not send it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCounts:
    """The number of clusters in each state, and the number of the daemon's subscribers."""

    engaged: int = 0
    not_ready: int = 0
    outside_selector: int = 0
    malformed: int = 0
    unreachable: int = 0
    unassigned: int = 0
    """Ready clusters that other members of the shard group own, or that no member owns at present."""
    subscribers: int = 0
    draining: int = 0
    refused: int = 0
    """Objects of other organizations that the API server sent to a source that watches one organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A configured source of clusters. Reported by a daemon whose sources have names."""

    name: str = ""
    kind: str = ""
    context: str = ""
    """The context of Milo that it watches, such as "organization acme"."""
    status: SourceStatus = SourceStatus()
    synced: bool = False
    counts: FleetCounts = FleetCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialIssuer:
    """A configured issuer of the credentials in kubeconfigs."""

    name: str = ""
    type: str = ""
    healthy: bool = False
    message: str = ""
    expires_at: datetime | None = None
    failing_clusters: Mapping[str, int] = field(default_factory=dict)
    """Numbers of clusters that get no new credential because of a cluster-specific failure, by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The daemon's limits."""

    default_heartbeat_interval: timedelta | None = None
    stalled_timeout: timedelta | None = None
    max_kubeconfig_ttl: timedelta | None = None
    max_page_size: int = 0
    max_filter_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMember:
    """One daemon of a shard group."""

    name: str = ""
    weight: float = 0.0
    in_view: bool = False
    """Whether the member is in the current view, and so gets a share of the clusters."""
    alive: bool = False
    leaving: bool = False
    acknowledged_view: int = 0
    clusters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """The group of daemons that share the clusters, as the daemon sees it."""

    group: str = ""
    member: str = ""
    """The name under which this daemon is a member."""
    view: int = 0
    settled: bool = False
    """Whether every member has acknowledged the view, and none is joining or leaving."""
    members: tuple[ShardMember, ...] = ()
    valid_for: timedelta | None = None
    """How long the daemon's ownership remains valid; None while the daemon owns no clusters."""
    problem: str = ""
    draining: tuple[str, ...] = ()
    """The first 100 of the daemon's clusters that wait for subscribers to release them. `FleetCounts.draining` is their
    total number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The daemon's version, state and limits."""

    version: str = ""
    mode: str = ""
    context: str = ""
    """The context of Milo that a daemon's only source watches; empty for kinds of sources without a context, and for
    callers that may not see all clusters."""
    incarnation: str = ""
    started_at: datetime | None = None
    source: SourceStatus = SourceStatus()
    synced: bool = False
    counts: FleetCounts = FleetCounts()
    credential_issuers: tuple[CredentialIssuer, ...] = ()
    limits: Limits = Limits()
    sources: tuple[Source, ...] = ()
    sharding: Sharding | None = None
    """Set if the daemon shares the clusters with other daemons."""
