"""The options that select clusters, and the options of a watch."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import TypedDict

__all__ = ["FilterOptions", "WatchOptions"]


class FilterOptions(TypedDict, total=False):
    """Options that select clusters. A cluster must match all that are set; if none is set, all clusters match."""

    label_selector: str
    """Kubernetes syntax: "env in (prod, staging),tier!=silver"."""
    names: Collection[str]
    """Clusters with one of these names."""
    organizations: Collection[str]
    """Clusters of one of these organizations."""
    sources: Collection[str]
    """Clusters of one of these sources of the daemon."""


class WatchOptions(FilterOptions, total=False):
    """Options of a watch."""

    include_kubeconfigs: bool
    """Deliver a kubeconfig with each ENGAGED event, and a new one in a KUBECONFIG event before it expires."""
    kubeconfig_ttl: timedelta
    """Requested lifetime of the kubeconfigs on the stream; the daemon may shorten it."""
    confirm_releases: bool
    """Let planned disengagements wait until the cluster is released: see `Cluster.draining` and `Watch.release`."""
    subscriber: str
    """The name under which this watch releases clusters. No other watch of the caller may have it at the same time.
    By default the hostname with a random suffix."""
    heartbeat_interval: timedelta
    """Interval of heartbeats on an idle stream, 30 s by default. Three missed heartbeats end the stream."""
