"""The daemon's Prometheus metrics."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics import MetricWrapperBase

from milo_discoveryd.kubeconfigs.issuer_health import IssuerHealth
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.telemetry.collectors import CredentialCollector, FleetCollector, LogCollector, StreamCollector
from milo_discoveryd.telemetry.shard_metrics import MeasuredShard, ShardCollector, Unsharded

# Without this, each counter has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]

RpcLabels: TypeAlias = tuple[str, str, str]
"""Type, service and method."""
_RPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")
"""The metrics with these labels have the names of the common gRPC interceptors, so that existing dashboards work."""
_WATCH: RpcLabels = ("server_stream", "milo.discovery.v1.DiscoveryService", "WatchClusters")
_STREAM_CODES = (
    "Aborted",
    "Canceled",
    "Internal",
    "InvalidArgument",
    "PermissionDenied",
    "ResourceExhausted",
    "Unavailable",
)
_ISSUE_RESULTS = (
    "ok",
    "not_engaged",
    "other_incarnation",
    "no_credential_issuer",
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
"""The reasons known in advance; an API server adds its own."""
_DRAIN_RESULTS = ("released", "expired")
_CONFIRMATIONS = ("not_found", "found", "inconclusive", "refused")
_RELOADS = ("applied", "refused", "unchanged")
_MINT_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_READINESS_S = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_LOOP_DELAYS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LATENCIES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The metrics of one daemon, in a registry of their own: tests run several daemons in one process."""

    def __init__(self, sources: Sequence[str] = ("",)) -> None:
        """`sources` are the names of the sources of clusters. The label `source` exists only if they have names."""
        self.registry = CollectorRegistry()
        self._of_source = {name: (name,) if name else () for name in sources}
        labels = ("source",) if any(sources) else ()
        self._transitions = Counter(
            "milo_discoveryd_transitions",
            "Engagements, updates and disengagements of clusters, by type and reason.",
            (*labels, "type", "reason"),
            registry=self.registry,
        )
        self._transitioned = functools.cache(self._labelled)  # looking a child up costs more than counting
        self._latency = Histogram(
            "milo_discoveryd_event_latency_seconds",
            "Time from reading a change from the API server to handing it to gRPC, observed per batch and subscriber.",
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self._loop_delay = Histogram(
            "milo_discoveryd_event_loop_delay_seconds",
            "Delay of due callbacks of the event loop, caused by steps that take long.",
            buckets=_LOOP_DELAYS_S,
            registry=self.registry,
        )
        self._time_to_ready = Histogram(
            "milo_discoveryd_project_ready_duration_seconds",
            "Time from the creation of a project to its readiness, by the timestamps of the object, observed when a "
            "project that became ready while the daemon runs is first engaged.",
            labels,
            buckets=_READINESS_S,
            registry=self.registry,
        )
        self._resets = Counter(
            "milo_discoveryd_subscriber_resets",
            "Watch streams that started with a full snapshot.",
            registry=self.registry,
        )
        self._restarts = Counter(
            "milo_discoveryd_source_restarts",
            "Relists of the discovery source after the first list, by reason.",
            (*labels, "reason"),
            registry=self.registry,
        )
        self._drains = Counter(
            "milo_discoveryd_drains",
            "Drains of clusters that ended: released by all subscribers, or expired at their deadline.",
            (*labels, "result"),
            registry=self.registry,
        )
        self._lease_requests = Counter(
            "milo_discoveryd_shard_lease_requests",
            "Requests to the Leases of the shard group, by action and result.",
            ("action", "result"),
            registry=self.registry,
        )
        self._events_ignored = Counter(
            "milo_discoveryd_source_events_ignored",
            "Watch events of the discovery source that were ignored as invalid.",
            labels,
            registry=self.registry,
        )
        self._liveness_probes = Counter(
            "milo_discoveryd_source_liveness_probes",
            "Liveness probes of a silent API server, by result.",
            (*labels, "result"),
            registry=self.registry,
        )
        self._confirmations = Counter(
            "milo_discoveryd_deletion_confirmations",
            "GETs that confirm an apparent deletion, by result; while the API server refuses them, all wait.",
            (*labels, "result"),
            registry=self.registry,
        )
        self._probes = Counter(
            "milo_discoveryd_probes",
            "Connectivity probes of engaged clusters' API servers or of their hosts (connectivity.per), by result.",
            ("result",),
            registry=self.registry,
        )
        self._calls_started = Counter(
            "grpc_server_started", "RPCs started on the server.", _RPC_LABELS, registry=self.registry
        )
        self._calls_handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, by status code.",
            (*_RPC_LABELS, "grpc_code"),
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of unary RPCs on the server.",
            _RPC_LABELS,
            buckets=_LATENCIES_S,
            registry=self.registry,
        )
        self._issued = Counter(
            "milo_discoveryd_kubeconfigs_issued",
            "Kubeconfigs issued and requests for one that failed, by result.",
            ("result",),
            registry=self.registry,
        )
        self._mints = Counter(
            "milo_discoveryd_credential_requests",
            "Requests for a credential to a credential issuer, by result.",
            ("credential_issuer", "result"),
            registry=self.registry,
        )
        self._mint_seconds = Histogram(
            "milo_discoveryd_credential_request_duration_seconds",
            "Duration of requests to a credential issuer.",
            ("credential_issuer",),
            buckets=_MINT_S,
            registry=self.registry,
        )
        self._refusals = Counter(
            "milo_discoveryd_requests_denied",
            "Requests denied by authorization rules, quotas or visibility, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._audit_losses = Counter(
            "milo_discoveryd_audit_events_lost",
            "Audit events that could not be written to the audit file.",
            registry=self.registry,
        )
        self._reloads = Counter(
            "milo_discoveryd_config_reloads",
            "Reloads of the configuration file, by result.",
            ("result",),
            registry=self.registry,
        )
        self._rights_current = Gauge(
            "milo_discoveryd_config_last_reload_successful",
            "1 if the last reload of the configuration file succeeded, 0 if it was rejected.",
            registry=self.registry,
        )
        self._rights_current.set(1)
        self._rules = Gauge(
            "milo_discoveryd_authorization_rules", "Authorization rules in force.", registry=self.registry
        )
        # increase() misses the first event of a series that did not exist before it.
        for code in _STREAM_CODES:
            self._calls_handled.labels(*_WATCH, code)
        for result in _ISSUE_RESULTS:
            self._issued.labels(result)
        for reason in _REFUSALS:
            self._refusals.labels(reason)
        for result in _RELOADS:
            self._reloads.labels(result)
        for name, of in self._of_source.items():
            self._prepare(name, of)
        ProcessCollector(registry=self.registry)

    def _prepare(self, source: str, of: tuple[str, ...]) -> None:
        """Create the series of a source: increase() misses the first event of one that did not exist before it."""
        for result in _DRAIN_RESULTS:
            self._drains.labels(*of, result)
        for result in _CONFIRMATIONS:
            self._confirmations.labels(*of, result)
        for reason in _RESTARTS:
            self._restarts.labels(*of, reason)
        for kind in (EventType.ENGAGED, EventType.UPDATED):
            self._transitioned(kind, None, source)
        for cause in DisengageReason:
            self._transitioned(EventType.DISENGAGED, cause, source)
        if of:
            self._events_ignored.labels(*of)
            self._time_to_ready.labels(*of)

    def follow(self, fleet: Fleet, cluster_cap: int) -> None:
        self.registry.register(FleetCollector(fleet, cluster_cap))

    def follow_tasks(self, count: Callable[[], int]) -> None:
        tasks = Gauge("milo_discoveryd_asyncio_tasks", "asyncio tasks that are not done.", registry=self.registry)
        tasks.set_function(count)

    def follow_log(self, dropped: Callable[[], int]) -> None:
        self.registry.register(LogCollector(dropped))

    def follow_streams(self, lags: Callable[[], Iterable[int]]) -> None:
        """Export the streams. `lags` returns, for each open stream, the number of revisions it has not received yet."""
        self.registry.register(StreamCollector(lags))

    def follow_group(self, shard: MeasuredShard | None) -> None:
        self.registry.register(ShardCollector(shard or Unsharded()))

    def lease_request(self, action: str, result: str) -> None:
        self._lease_requests.labels(action, result).inc()

    def set_build_info(self, version: str, mode: str) -> None:
        build = Gauge(
            "milo_discoveryd_build_info",
            "Constant 1, labeled by version and mode.",
            ("version", "mode"),
            registry=self.registry,
        )
        build.labels(version, mode).set(1)

    def follow_credentials(
        self,
        health: Callable[[], Iterable[IssuerHealth]],
        certificates: Callable[[], Iterable[tuple[str, float]]] = tuple,
    ) -> None:
        """Report the issuers' credentials, and the server certificates of listeners."""
        self.registry.register(CredentialCollector(health, certificates))

    def kubeconfig_issued(self, result: str) -> None:
        self._issued.labels(result).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def audit_lost(self) -> None:
        self._audit_losses.inc()

    def rights_reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()
        self._rights_current.set(result != "refused")

    def rules_loaded(self, count: int) -> None:
        self._rules.set(count)

    def mint_ended(self, issuer: str, result: str, seconds: float) -> None:
        self._mints.labels(issuer, result).inc()
        self._mint_seconds.labels(issuer).observe(seconds)

    def transition(self, done: Event, source: str = "") -> None:
        self._transitioned(done.type, done.reason, source).inc()

    def project_became_ready(self, after_s: float, source: str = "") -> None:
        _child(self._time_to_ready, self._of_source[source]).observe(after_s)

    def _labelled(self, kind: EventType, reason: DisengageReason | None, source: str) -> Counter:
        return self._transitions.labels(*self._of_source[source], kind.value, "" if reason is None else reason.value)

    def relisting(self, reason: str, source: str = "") -> None:
        self._restarts.labels(*self._of_source[source], reason).inc()

    def drained(self, result: str, source: str = "") -> None:
        self._drains.labels(*self._of_source[source], result).inc()

    def event_ignored(self, source: str = "") -> None:
        _child(self._events_ignored, self._of_source[source]).inc()

    def liveness_checked(self, result: str, source: str = "") -> None:
        self._liveness_probes.labels(*self._of_source[source], result).inc()

    def confirmed(self, result: str, source: str = "") -> None:
        self._confirmations.labels(*self._of_source[source], result).inc()

    def probed(self, result: str) -> None:
        self._probes.labels(result).inc()

    def batch_sent(self, latency_s: float | None) -> None:
        if latency_s is not None:
            self._latency.observe(latency_s)

    def loop_was_late(self, seconds: float) -> None:
        self._loop_delay.observe(seconds)

    def reset_sent(self) -> None:
        self._resets.inc()

    def call_started(self, rpc: RpcLabels) -> None:
        self._calls_started.labels(*rpc).inc()

    def call_handled(self, rpc: RpcLabels, code: str, seconds: float) -> None:
        """Count a completed RPC. `code` is the name of a status code as in the proto enum: `NOT_FOUND`."""
        self._calls_handled.labels(*rpc, _code_label(code)).inc()
        if rpc[0] == "unary":  # the duration of a stream says nothing about the server
            self._call_seconds.labels(*rpc).observe(seconds)


Child = TypeVar("Child", bound=MetricWrapperBase)


def _child(of: Child, labels: tuple[str, ...]) -> Child:
    """Return the metric itself if it has no labels."""
    return of.labels(*labels) if labels else of


def _code_label(code: str) -> str:
    """Spell a status code as the common gRPC interceptors do: `NotFound`, `Canceled`, `OK`."""
    if code == "OK":
        return code
    return "Canceled" if code == "CANCELLED" else code.title().replace("_", "")
