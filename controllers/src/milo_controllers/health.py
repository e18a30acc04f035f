"""The health of a set of controllers, for probes and debug pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from milo_discovery.fleet import DiscoveryState
from milo_kube.collection_follower import FollowerState


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProblem:
    """A cache of one kind in one cluster that is not current, or lacks objects."""

    cluster: str
    kind: str
    state: FollowerState
    """`forbidden`: the rights are missing; `not_served`: the cluster does not have the kind; `over_budget`: it is too
    large to be cached; `stale`: list or watch fails for another reason; `starting`: its first list is being read;
    `synced`: some objects are invalid, as those for which `transform=` raises an error."""
    is_synced: bool
    """Whether the cache contains a complete list, which may be out of date."""
    problem: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProblem:
    """A cluster whose informers and reconcilers failed as a whole, and are restarted."""

    cluster: str
    problem: str
    failures: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingObject:
    """An object whose last reconcile failed."""

    controller: str
    cluster: str
    namespace: str
    name: str
    error: str
    attempts: int
    since: datetime
    next_try: datetime | None
    """None if the object is not retried before it changes, because its reconciler raised Permanent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of the controllers."""

    ready: bool
    """Whether the first clusters were received, and the caches of those that respond were filled. Never reset."""
    discovery: DiscoveryState
    clusters: int
    synced: bool
    """Whether discovery and every cache of every cluster are synced."""
    problems: tuple[CacheProblem, ...]
    crashing: tuple[ClusterProblem, ...]
    failing: int
    """Number of objects whose last reconcile failed: `Controllers.failing` lists them."""
    oldest_queued: timedelta
    """How long the longest-waiting object has been ready to be reconciled."""
