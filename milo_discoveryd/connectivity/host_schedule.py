"""Probes of hosts instead of clusters, for clusters that are paths of one API server.

One probe of a host represents all clusters of a source behind that host. Each source has its own probes, because they
also try the credentials of the source's issuers. A cluster that is engaged later takes over the connectivity of its
host.
A host that answers makes no cluster REACHABLE, since it answers under the path of every cluster, existing or not.
"""

import math
from collections.abc import Callable

import msgspec

from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    Probe,
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeSchedule,
)
from milo_discoveryd.model.cluster import ConnectivityStatus, Reachability, source_of
from milo_kube.moment import Moment

HOST_ANSWERS = "the API server answers; a probe of its host does not show whether the project exists"


class _HostClusters(msgspec.Struct):
    """The clusters of a source behind a host, by name and incarnation."""

    host: str
    tenant: str
    """The tenant of the first of them: where tenants have hosts of their own, that of all."""
    incarnations: dict[str, int] = msgspec.field(default_factory=dict)
    connectivity: ConnectivityStatus | None = None


class HostSchedule:
    """A `ProbeSchedule` of hosts. Each probe names one cluster behind its host, whose endpoint contains the host."""

    def __init__(self, policy: ProbePolicy, jitter: Callable[[], float]) -> None:
        # Clusters that share the probe of a host are never disengaged as unreachable.
        self._schedule = ProbeSchedule(msgspec.structs.replace(policy, give_up_after_s=None), jitter)
        self._hosts: dict[str, _HostClusters] = {}
        """The clusters, keyed by source and host."""
        self._host_of: dict[str, str] = {}
        self._in_flight: dict[Probe, Probe] = {}
        """In-flight probes of hosts, keyed by the cluster probe that represents the host."""
        self._known: list[ConnectivityChange] = []

    def watch(self, name: str, host: str, incarnation: int, now: float, tenant: str = "") -> None:
        self.forget(name)
        key = f"{source_of(name)} {host}"
        if key not in self._hosts:
            self._hosts[key] = _HostClusters(host, tenant)
            self._schedule.watch(key, host, 0, now, tenant)
        clusters = self._hosts[key]
        clusters.incarnations[name] = incarnation
        self._host_of[name] = key
        if clusters.connectivity is not None:
            self._known.append(ConnectivityChange(name, incarnation, clusters.connectivity))

    def forget(self, name: str) -> None:
        key = self._host_of.pop(name, None)
        if key is None:
            return
        del self._hosts[key].incarnations[name]
        if not self._hosts[key].incarnations:
            del self._hosts[key]
            self._schedule.forget(key)

    def known_changes(self) -> list[ConnectivityChange]:
        """Return, once, the connectivity of clusters that were added after their host had been probed."""
        known, self._known = self._known, []
        return known

    def due(self, now: float) -> list[Probe]:
        return [self._cluster_probe_for(probe) for probe in self._schedule.due(now)]

    def _cluster_probe_for(self, probe: Probe) -> Probe:
        name, incarnation = next(iter(self._hosts[probe.name].incarnations.items()))
        cluster_probe = Probe(name, incarnation, probe.watch)
        self._in_flight[cluster_probe] = probe
        return cluster_probe

    def drop(self, probe: Probe) -> None:
        """Withdraw a probe that was not sent, and remove its cluster. The host's next probe is due at once."""
        of_host = self._in_flight.pop(probe)
        self._schedule.drop(of_host)
        self.forget(probe.name)
        if of_host.name in self._hosts:
            clusters = self._hosts[of_host.name]
            self._schedule.watch(of_host.name, clusters.host, 0, -math.inf, clusters.tenant)

    @property
    def next_at(self) -> float | None:
        return self._schedule.next_at

    def record(self, probe: Probe, outcome: ProbeOutcome, now: Moment) -> list[ConnectivityChange]:
        of_host = self._in_flight.pop(probe)
        if isinstance(outcome, ProbeFailed) and not outcome.is_of_host:
            self._represent_by_another(of_host.name, probe)
        changes = self._schedule.record(of_host, outcome, now)
        found: list[ConnectivityChange] = []
        for change in filter(None, changes):
            clusters = self._hosts[change.name]
            clusters.connectivity = connectivity = _of_clusters(change.connectivity)
            found += (
                ConnectivityChange(name, incarnation, connectivity)
                for name, incarnation in clusters.incarnations.items()
            )
        return found

    def _represent_by_another(self, key: str, probe: Probe) -> None:
        """Let another cluster represent the host next: this one may have failed for itself, by its CA or credential."""
        if self._host_of.get(probe.name) == key:
            incarnations = self._hosts[key].incarnations
            incarnations[probe.name] = incarnations.pop(probe.name)


def _of_clusters(host: ConnectivityStatus) -> ConnectivityStatus:
    """Return the connectivity of a host's clusters."""
    if host.state is not Reachability.REACHABLE:
        return host
    return ConnectivityStatus(Reachability.UNKNOWN, host.since, host.message or HOST_ANSWERS)
