"""Metrics of the fleet, streams, the log and credentials, which are computed at each scrape."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.model.cluster import Reachability
from milo_discoveryd.model.object_state import ObjectState
from milo_kube.reflect.view_status import ViewState


class FleetCollector(Collector):
    """Reads the fleet at each scrape, so that no count is kept twice."""

    def __init__(self, fleet: Fleet, cluster_cap: int) -> None:
        self._fleet = fleet
        self._cluster_cap = cluster_cap

    def collect(self) -> Iterator[Metric]:
        fleet = self._fleet
        yield self._by_source(
            "milo_discoveryd_engaged_clusters", "Engaged clusters.", lambda of: of.engagements.engaged
        )
        labels = self._labels
        yield self._by_source(
            "milo_discoveryd_draining_clusters",
            "Engaged clusters that wait for subscribers to release them before they are disengaged.",
            lambda of: of.engagements.draining_count,
        )
        known = GaugeMetricFamily(
            "milo_discoveryd_known_clusters",
            "Known clusters, engaged or not, by the state of their objects.",
            labels=(*labels, "state"),
        )
        for of in fleet.sources:
            for state in ObjectState:
                known.add_metric((*self._values(of), state.value), of.engagements.count(state))
        yield known
        yield self._by_source(
            "milo_discoveryd_unconfirmed_deletions",
            "Objects that seem to be deleted; their clusters are left unchanged until the deletion is confirmed.",
            lambda of: of.deletions_unconfirmed,
        )
        yield self._by_source(
            "milo_discoveryd_removals_held",
            "Clusters that the API server seems to lack, but that stay engaged because the removals exceed the "
            "mass-removal limit, or because the server's resource versions went back.",
            lambda of: of.deletions_held,
        )
        yield self._by_source(
            "milo_discoveryd_not_ready_held",
            "Clusters that stay engaged although they are not ready, because more became not ready than the "
            "mass-removal limit allows.",
            lambda of: of.engagements.not_ready.held_count,
        )
        outdated = CounterMetricFamily(
            "milo_discoveryd_stale_observations",
            "Observations discarded because a newer version of the object was already known.",
            labels=labels,
        )
        for of in fleet.sources:
            outdated.add_metric(self._values(of), of.outdated)
        yield outdated
        yield _gauge("milo_discoveryd_log_revision", "Latest revision of the change log.", fleet.log.head)
        yield self._by_source(
            "milo_discoveryd_source_up",
            "1 while the discovery source is followed live, 0 while the view is catching up or stale.",
            lambda of: of.status.state is ViewState.STREAMING,
        )
        yield self._by_source(
            "milo_discoveryd_source_last_contact_timestamp_seconds",
            "Time of the last answer from the discovery source; 0 if there was none.",
            lambda of: _wall(of.status.last_contact),
        )
        yield self._by_source(
            "milo_discoveryd_unreachable_clusters",
            "Engaged clusters whose API server does not answer connectivity probes.",
            lambda of: of.engagements.unreachable,
        )
        yield from self._clusters()
        yield from self._organizations()

    @property
    def _labels(self) -> tuple[str, ...]:
        """The label `source` exists only if the sources have names."""
        return ("source",) if any(of.name for of in self._fleet.sources) else ()

    def _values(self, of: ClusterSource) -> tuple[str, ...]:
        return (of.name,) if self._labels else ()

    def _by_source(self, name: str, documentation: str, value: Callable[[ClusterSource], float]) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=self._labels)
        for of in self._fleet.sources:
            family.add_metric(self._values(of), value(of))
        return family

    def _clusters(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "milo_discoveryd_cluster_info",
            "Constant 1 for each engaged cluster; metrics.cluster_info_cap limits the number of clusters.",
            labels=("cluster", "uid", "organization"),
        )
        reachable = GaugeMetricFamily(
            "milo_discoveryd_cluster_reachable",
            "1 if the cluster's API server answers connectivity probes, 0 if not; absent before the first result.",
            labels=("cluster",),
        )
        for cluster in islice(self._fleet.clusters(), self._cluster_cap):
            target = cluster.target
            info.add_metric((target.name, target.uid, target.organization), 1)
            if cluster.connectivity.state is not Reachability.UNKNOWN:
                reachable.add_metric((target.name,), cluster.connectivity.state is Reachability.REACHABLE)
        yield info
        yield reachable
        engaged = sum(of.engagements.engaged for of in self._fleet.sources)
        left_out = max(0, engaged - self._cluster_cap)
        yield _gauge(
            "milo_discoveryd_cluster_info_omitted",
            "Engaged clusters that the per-cluster metrics omit because of metrics.cluster_info_cap.",
            left_out,
        )

    def _organizations(self) -> Iterator[Metric]:
        counts = Counter(cluster.target.organization for cluster in self._fleet.clusters())
        clusters = GaugeMetricFamily(
            "milo_discoveryd_organization_clusters",
            "Engaged clusters by organization, for the organizations with the most engaged clusters; "
            "metrics.cluster_info_cap limits the number of organizations.",
            labels=("organization",),
        )
        for organization, count in counts.most_common(self._cluster_cap):
            clusters.add_metric((organization,), count)
        yield clusters
        yield _gauge(
            "milo_discoveryd_organization_clusters_omitted",
            "Organizations that the per-organization metric omits because of metrics.cluster_info_cap.",
            max(0, len(counts) - self._cluster_cap),
        )


def _wall(steady: float | None) -> float:
    return 0.0 if steady is None else time.time() - (time.monotonic() - steady)


class StreamCollector(Collector):
    """Aggregates over all streams: with a series per subscriber, each reconnect would leave a series behind."""

    def __init__(self, lags: Callable[[], Iterable[int]]) -> None:
        self._lags = lags

    def collect(self) -> Iterator[Metric]:
        lags = list(self._lags())
        yield _gauge("milo_discoveryd_subscribers", "Open watch streams.", len(lags))
        yield _gauge(
            "milo_discoveryd_subscriber_lag_max_revisions",
            "Revisions, or clusters of a snapshot, that have not been sent to the slowest subscriber yet.",
            max(lags, default=0),
        )


class LogCollector(Collector):
    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "milo_discoveryd_log_lines_dropped",
            "Log lines that could not be formatted, queued or written.",
            value=self._dropped(),
        )


class CredentialCollector(Collector):
    def __init__(
        self, health: Callable[[], Iterable[IssuerHealth]], certificates: Callable[[], Iterable[tuple[str, float]]]
    ) -> None:
        self._health = health
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        expiry = GaugeMetricFamily(
            "milo_discoveryd_credential_expiry_timestamp_seconds",
            "Earliest expiry of the credentials that an issuer holds, 0 if it holds none. For `listener NAME`, the "
            "expiry of the listener's server certificate; for `source NAME`, of the client certificate for the source.",
            labels=("credential_issuer",),
        )
        healthy = GaugeMetricFamily(
            "milo_discoveryd_credential_issuer_up",
            "0 while the credential issuer fails for all clusters, otherwise 1.",
            labels=("credential_issuer",),
        )
        leases = GaugeMetricFamily(
            "milo_discoveryd_credential_leases",
            "Credential leases, with or without a valid credential, by issuer.",
            labels=("credential_issuer",),
        )
        failing = GaugeMetricFamily(
            "milo_discoveryd_credential_failing_clusters",
            "Engaged clusters that get no new credential because of a failure specific to the cluster, by reason.",
            labels=("credential_issuer", "reason"),
        )
        for issuer in self._health():
            for reason, count in issuer.failing.items():
                failing.add_metric((issuer.name, reason), count)
            expiry.add_metric((issuer.name,), issuer.expires_at or 0.0)
            healthy.add_metric((issuer.name,), not issuer.problem)
            leases.add_metric((issuer.name,), issuer.leases)
        for holder, expires_at in self._certificates():
            expiry.add_metric((holder,), expires_at)
        yield from (expiry, healthy, leases, failing)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)
