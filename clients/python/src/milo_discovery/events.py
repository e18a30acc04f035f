"""The items of a watch: changes to clusters, and notices about the stream itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from milo_discovery.errors import DiscoveryError
from milo_discovery.model import Cluster, DisengageReason, EventType, Kubeconfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change to one cluster. `cluster` is complete in every type; for DISENGAGED it is the last known state."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason = DisengageReason.UNSPECIFIED
    message: str = ""
    kubeconfig: Kubeconfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """The events received so far make up a complete view."""

    clusters: int
    """The number of clusters in the view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A new stream is connected. No event was lost."""

    resumed: bool
    """Whether the stream continues from the last revision. Otherwise a snapshot follows, up to `Synced`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The stream broke, or the daemon is unreachable. The watch reconnects.

    Clusters stay engaged, unless the daemon is sharded and its ownership expires before the watch has reconnected.
    """

    error: DiscoveryError
    heard_at: datetime | None = None
    """When the daemon was last heard, up to which all changes have arrived; None if it never was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """The same cluster, with new values only in fields that the daemon assigns, such as the incarnation.

    Sent after a restart of the daemon, or if another daemon engages the cluster now. Work on the cluster can continue.
    To issue a kubeconfig for a specific incarnation, use the new one.
    """

    cluster: Cluster


StreamNotice = Synced | Refreshed | Connected | Disconnected
