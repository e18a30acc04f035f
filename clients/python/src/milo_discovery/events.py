"""What a watch tells: what happened to clusters, and, for those who ask, to the stream itself."""

from __future__ import annotations

from dataclasses import dataclass

from milo_discovery.errors import DiscoveryError
from milo_discovery.model import Cluster, DisengageReason, EventType, Kubeconfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change to one cluster. `cluster` is complete in every type; as last known for DISENGAGED."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason = DisengageReason.UNSPECIFIED
    message: str = ""
    kubeconfig: Kubeconfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """All events up to here make up a complete view, of so many clusters."""

    clusters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The daemon answers, for the first time or again. Nothing was lost meanwhile."""

    resumed: bool
    """It goes on where it stopped; otherwise the differences are worked out, and told with the next `Synced`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The daemon doesn't answer. Every cluster stays as it was; the watch goes on trying."""

    error: DiscoveryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """The same cluster, with nothing new about it but how the daemon counts it: its incarnation, for one.

    It comes when another daemon took over. Whoever works on the cluster goes on; who asks for a kubeconfig of just this
    incarnation needs the new one.
    """

    cluster: Cluster


Mark = Synced | Refreshed | Connected | Disconnected
