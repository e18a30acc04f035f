"""Every metric of the daemon, in one place."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from milo_discoveryd.kubeconfigs.source_health import SourceHealth
from milo_discoveryd.model.cluster import ConnectivityState, DisengageReason
from milo_discoveryd.model.source import SourceState
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.registry import ObjectState

# Each counter would come with a second series, of when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

_STREAM_ENDS = (
    "ABORTED",
    "CANCELLED",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
)
_ISSUE_RESULTS = (
    "ok",
    "not_engaged",
    "other_incarnation",
    "no_credential_source",
    "credentials_unavailable",
    "no_rule",
    "kubeconfigs_denied",
    "too_many_kubeconfigs",
)
_REFUSALS = (
    "no_rule",
    "kubeconfigs_denied",
    "too_many_streams",
    "too_many_kubeconfigs",
    "never_seen",
    "not_engaged",
    "revision_of_another",
)
_RESTARTS = ("Expired", "MalformedResponse", "Silence", "StreamingListUnsupported", "Verification")
"""The usual ones: an API server has words of its own as well."""
_RELOADS = ("applied", "refused", "unchanged")
_MINT_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LATENCIES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """In a registry of its own, so that two daemons in one process (as in tests) don't share numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._transitions = Counter(
            "milo_discoveryd_transitions",
            "Engagements, updates and disengagements.",
            ("type", "reason"),
            registry=self.registry,
        )
        self._transitioned = functools.cache(self._labelled)  # to look one up costs more than to count
        self._latency = Histogram(
            "milo_discoveryd_event_latency_seconds",
            "From the bytes of a change, read upstream, to gRPC; once for each batch and subscriber.",
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self._resets = Counter(
            "milo_discoveryd_subscriber_resets", "Streams that began with a snapshot.", registry=self.registry
        )
        self._restarts = Counter(
            "milo_discoveryd_source_restarts",
            "Lists begun again after the first, by what led to it.",
            ("reason",),
            registry=self.registry,
        )
        self._oddities = Counter(
            "milo_discoveryd_source_events_ignored", "Events from upstream that made no sense.", registry=self.registry
        )
        self._source_looks = Counter(
            "milo_discoveryd_source_looks",
            "Questions to a silent API server whether it is there, by what came of them.",
            ("result",),
            registry=self.registry,
        )
        self._probes = Counter(
            "milo_discoveryd_probes",
            "Probes of clusters' API servers, by what came of them.",
            ("result",),
            registry=self.registry,
        )
        self._calls_started = Counter(
            "milo_discoveryd_grpc_server_started", "gRPC calls begun.", ("grpc_method",), registry=self.registry
        )
        self._calls_handled = Counter(
            "milo_discoveryd_grpc_server_handled",
            "gRPC calls ended.",
            ("grpc_method", "grpc_code"),
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "milo_discoveryd_grpc_server_handling_seconds",
            "How long unary gRPC calls took.",
            ("grpc_method",),
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self._issued = Counter(
            "milo_discoveryd_kubeconfigs_issued",
            "Kubeconfigs handed out, and requests for one that came to nothing.",
            ("result",),
            registry=self.registry,
        )
        self._mints = Counter(
            "milo_discoveryd_credential_mints",
            "Credentials asked of a source, by what came of it.",
            ("source", "result"),
            registry=self.registry,
        )
        self._mint_seconds = Histogram(
            "milo_discoveryd_credential_mint_seconds",
            "How long sources took to answer.",
            ("source",),
            buckets=_MINT_S,
            registry=self.registry,
        )
        self._refusals = Counter(
            "milo_discoveryd_refusals",
            "What callers asked for and may not have, as the audit has it.",
            ("reason",),
            registry=self.registry,
        )
        self._audit_losses = Counter(
            "milo_discoveryd_audit_lost", "Events that the audit's own file does not have.", registry=self.registry
        )
        self._reloads = Counter(
            "milo_discoveryd_rights_reloads",
            "Times the configuration was read again for its rules, by what came of it.",
            ("result",),
            registry=self.registry,
        )
        self._rights_current = Gauge(
            "milo_discoveryd_rights_current",
            "1 while the rules that hold are those that the configuration last had; 0 where it can't be taken.",
            registry=self.registry,
        )
        self._rights_current.set(1)
        self._rules = Gauge("milo_discoveryd_rights_rules", "Rules that stand.", registry=self.registry)
        # To Prometheus, a counter that begins with its first event has not grown.
        for code in _STREAM_ENDS:
            self._calls_handled.labels("WatchClusters", code)
        for result in _ISSUE_RESULTS:
            self._issued.labels(result)
        for reason in _REFUSALS:
            self._refusals.labels(reason)
        for result in _RELOADS:
            self._reloads.labels(result)
        for reason in _RESTARTS:
            self._restarts.labels(reason)
        for kind in (EventType.ENGAGED, EventType.UPDATED):
            self._transitioned(kind, None)
        for cause in DisengageReason:
            self._transitioned(EventType.DISENGAGED, cause)
        Gauge(
            "milo_discoveryd_start_time_seconds", "When this daemon started.", registry=self.registry
        ).set_to_current_time()
        ProcessCollector(registry=self.registry)

    def follow(self, fleet: Fleet, cluster_cap: int) -> None:
        self.registry.register(_FleetCollector(fleet, cluster_cap))

    def follow_tasks(self, count: Callable[[], int]) -> None:
        tasks = Gauge("milo_discoveryd_tasks", "Tasks of the event loop that are under way.", registry=self.registry)
        tasks.set_function(count)

    def follow_streams(self, lags: Callable[[], Iterable[int]]) -> None:
        """`lags` gives, for each open stream, how many revisions it has not taken yet."""
        self.registry.register(_StreamCollector(lags))

    def tell_build(self, version: str, mode: str) -> None:
        build = Gauge(
            "milo_discoveryd_build_info", "1; which daemon this is.", ("version", "mode"), registry=self.registry
        )
        build.labels(version, mode).set(1)

    def follow_credentials(self, health: Callable[[], Iterable[SourceHealth]]) -> None:
        self.registry.register(_CredentialCollector(health))

    def kubeconfig_issued(self, result: str) -> None:
        self._issued.labels(result).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def audit_lost(self) -> None:
        self._audit_losses.inc()

    def rights_reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()
        self._rights_current.set(result != "refused")

    def rules_stand(self, count: int) -> None:
        self._rules.set(count)

    def mint_ended(self, source: str, result: str, seconds: float) -> None:
        self._mints.labels(source, result).inc()
        self._mint_seconds.labels(source).observe(seconds)

    def transition(self, done: Event) -> None:
        self._transitioned(done.type, done.reason).inc()

    def _labelled(self, kind: EventType, reason: DisengageReason | None) -> Counter:
        return self._transitions.labels(kind.value, "" if reason is None else reason.value)

    def relisting(self, reason: str) -> None:
        self._restarts.labels(reason).inc()

    def event_ignored(self) -> None:
        self._oddities.inc()

    def liveness_checked(self, result: str) -> None:
        self._source_looks.labels(result).inc()

    def probed(self, result: str) -> None:
        self._probes.labels(result).inc()

    def batch_sent(self, latency_s: float | None) -> None:
        if latency_s is not None:
            self._latency.observe(latency_s)

    def reset_sent(self) -> None:
        self._resets.inc()

    def call_started(self, method: str) -> None:
        self._calls_started.labels(method).inc()

    def call_handled(self, method: str, code: str, seconds: float) -> None:
        self._calls_handled.labels(method, code).inc()
        if method != "WatchClusters":  # a stream lasts for as long as somebody listens
            self._call_seconds.labels(method).observe(seconds)


class _FleetCollector(Collector):
    """Reads the fleet when it is asked, so that nothing is counted twice."""

    def __init__(self, fleet: Fleet, cluster_cap: int) -> None:
        self._fleet = fleet
        self._cluster_cap = cluster_cap

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        fleet, status = self._fleet, self._fleet.status
        yield _gauge("milo_discoveryd_engaged_clusters", "Clusters that are engaged.", fleet.registry.engaged)
        known = GaugeMetricFamily(
            "milo_discoveryd_known_clusters", "Objects known, by what they are to the daemon.", labels=("state",)
        )
        for state in ObjectState:
            known.add_metric((state.value,), fleet.registry.count(state))
        yield known
        yield _gauge(
            "milo_discoveryd_deletions_unconfirmed",
            "Clusters reported as gone that are engaged until that is certain.",
            len(fleet.pending_deletions),
        )
        yield _gauge(
            "milo_discoveryd_removals_held",
            "Clusters that a list lacked, of so many at once that it was not believed; engaged until it is.",
            fleet.pending_deletions.held,
        )
        yield CounterMetricFamily(
            "milo_discoveryd_observations_outdated",
            "Observations passed over since a later one had come before.",
            value=fleet.registry.outdated,
        )
        yield _gauge("milo_discoveryd_log_revision", "The last revision.", fleet.log.head)
        yield _gauge(
            "milo_discoveryd_source_up",
            "1 while the view follows the source as it changes.",
            status.state is SourceState.STREAMING,
        )
        yield _gauge(
            "milo_discoveryd_source_last_contact_timestamp_seconds",
            "When the source last answered; 0 if it never did.",
            0.0 if status.last_contact is None else time.time() - (time.monotonic() - status.last_contact),
        )
        yield from self._clusters()

    def _clusters(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "milo_discoveryd_cluster_info", "1 for each engaged cluster.", labels=("cluster", "uid", "organization")
        )
        reachable = GaugeMetricFamily(
            "milo_discoveryd_cluster_reachable",
            "1 while the cluster's API server answers our probes; absent until that is known.",
            labels=("cluster",),
        )
        for cluster in islice(self._fleet.registry.clusters(), self._cluster_cap):
            target = cluster.target
            info.add_metric((target.name, target.uid, target.organization), 1)
            if cluster.connectivity.state is not ConnectivityState.UNKNOWN:
                reachable.add_metric((target.name,), cluster.connectivity.state is ConnectivityState.REACHABLE)
        yield info
        yield reachable
        left_out = max(0, self._fleet.registry.engaged - self._cluster_cap)
        yield _gauge("milo_discoveryd_cluster_info_left_out", "Engaged clusters beyond the cap on series.", left_out)


class _StreamCollector(Collector):
    """Of all streams together: a series for each subscriber would be one for each reconnect."""

    def __init__(self, lags: Callable[[], Iterable[int]]) -> None:
        self._lags = lags

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        lags = list(self._lags())
        yield _gauge("milo_discoveryd_subscribers", "Open streams.", len(lags))
        yield _gauge(
            "milo_discoveryd_subscriber_lag_max_revisions",
            "Revisions that the slowest subscriber has not taken yet.",
            max(lags, default=0),
        )


class _CredentialCollector(Collector):
    def __init__(self, health: Callable[[], Iterable[SourceHealth]]) -> None:
        self._health = health

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        expiry = GaugeMetricFamily(
            "milo_discoveryd_credential_expiry_timestamp_seconds",
            "When the first of the credentials ends that a source holds for handing out; 0 if it holds none.",
            labels=("source",),
        )
        healthy = GaugeMetricFamily(
            "milo_discoveryd_credential_source_up", "1 while the last attempt succeeded.", labels=("source",)
        )
        leases = GaugeMetricFamily(
            "milo_discoveryd_credential_leases", "Credentials that are kept fresh.", labels=("source",)
        )
        for each in self._health():
            expiry.add_metric((each.name,), each.expires_at or 0.0)
            healthy.add_metric((each.name,), not each.problem)
            leases.add_metric((each.name,), each.leases)
        yield from (expiry, healthy, leases)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)
