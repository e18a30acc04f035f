"""Metrics that the measured code updates itself, in one class per component."""

from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# Without this, each counter has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]

RpcLabels: TypeAlias = tuple[str, str, str]
"""The type, service and method of an RPC."""
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
_RELOADS = ("applied", "refused", "unchanged", "waiting")
_MINT_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LATENCIES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class CallMetrics:
    """Counts and durations of RPCs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls_started = Counter(
            "grpc_server_started", "RPCs started on the server.", _RPC_LABELS, registry=registry
        )
        self._calls_handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, by status code.",
            (*_RPC_LABELS, "grpc_code"),
            registry=registry,
        )
        self._call_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of unary RPCs on the server.",
            _RPC_LABELS,
            buckets=_LATENCIES_S,
            registry=registry,
        )
        # Create the series: PromQL's increase() misses the first event of a series that did not exist before.
        for code in _STREAM_CODES:
            self._calls_handled.labels(*_WATCH, code)

    def call_started(self, rpc: RpcLabels) -> None:
        self._calls_started.labels(*rpc).inc()

    def call_handled(self, rpc: RpcLabels, code: str, seconds: float) -> None:
        """Count a completed RPC. `code` is the name of a status code as in the proto enum: `NOT_FOUND`."""
        self._calls_handled.labels(*rpc, _code_label(code)).inc()
        if rpc[0] == "unary":  # how long a stream lasts depends on the client
            self._call_seconds.labels(*rpc).observe(seconds)


class StreamMetrics:
    """The latency of the events that were sent to subscribers, and the number of full snapshots."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latency = Histogram(
            "milo_discoveryd_event_latency_seconds",
            "Time from reading a change from the API server to handing it to gRPC, observed per batch and subscriber.",
            buckets=_LATENCIES_S,
            registry=registry,
        )
        self._resets = Counter(
            "milo_discoveryd_subscriber_resets",
            "Full snapshots sent to subscribers.",
            registry=registry,
        )

    def batch_sent(self, latency_s: float | None) -> None:
        if latency_s is not None:
            self._latency.observe(latency_s)

    def reset_sent(self) -> None:
        self._resets.inc()


class CredentialMetrics:
    """Issued kubeconfigs, and requests to credential issuers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._issued = Counter(
            "milo_discoveryd_kubeconfigs_issued",
            "Requests for kubeconfigs by result: ok, or the reason of the failure.",
            ("result",),
            registry=registry,
        )
        self._mints = Counter(
            "milo_discoveryd_credential_requests",
            "Requests to credential issuers for a credential, by result.",
            ("credential_issuer", "result"),
            registry=registry,
        )
        self._mint_seconds = Histogram(
            "milo_discoveryd_credential_request_duration_seconds",
            "Duration of requests to a credential issuer.",
            ("credential_issuer",),
            buckets=_MINT_S,
            registry=registry,
        )
        # Create the series: PromQL's increase() misses the first event of a series that did not exist before.
        for result in _ISSUE_RESULTS:
            self._issued.labels(result)

    def kubeconfig_issued(self, result: str) -> None:
        self._issued.labels(result).inc()

    def mint_ended(self, issuer: str, result: str, seconds: float) -> None:
        self._mints.labels(issuer, result).inc()
        self._mint_seconds.labels(issuer).observe(seconds)


class AuditMetrics:
    """Denied requests and connections, and lost audit events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusals = Counter(
            "milo_discoveryd_requests_denied",
            "Requests and connections that were denied, by reason.",
            ("reason",),
            registry=registry,
        )
        self._audit_losses = Counter(
            "milo_discoveryd_audit_events_lost",
            "Audit events that could not be written to the audit file.",
            registry=registry,
        )
        # Create the series: PromQL's increase() misses the first event of a series that did not exist before.
        for reason in _REFUSALS:
            self._refusals.labels(reason)

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def audit_lost(self) -> None:
        self._audit_losses.inc()


class ReloadMetrics:
    """Reloads of the configuration file, and the rules in force."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reloads = Counter(
            "milo_discoveryd_config_reloads",
            "Reloads of the configuration file, by result.",
            ("result",),
            registry=registry,
        )
        self._rights_current = Gauge(
            "milo_discoveryd_config_last_reload_successful",
            "1 if the last reload of the configuration file succeeded, 0 if it was rejected or waits for the restart.",
            registry=registry,
        )
        self._rules = Gauge("milo_discoveryd_authorization_rules", "Authorization rules in force.", registry=registry)
        self._rights_current.set(1)
        # Create the series: PromQL's increase() misses the first event of a series that did not exist before.
        for result in _RELOADS:
            self._reloads.labels(result)

    def rights_reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()
        self._rights_current.set(result not in ("refused", "waiting"))

    def rules_loaded(self, count: int) -> None:
        self._rules.set(count)


class ProbeMetrics:
    """Connectivity probes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._probes = Counter(
            "milo_discoveryd_probes",
            "Connectivity probes of engaged clusters' API servers or of their hosts (connectivity.per), by result.",
            ("result",),
            registry=registry,
        )

    def probed(self, result: str) -> None:
        self._probes.labels(result).inc()


class ShardLeaseMetrics:
    """Requests to the Leases of the shard group."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lease_requests = Counter(
            "milo_discoveryd_shard_lease_requests",
            "API requests for the Leases of the shard group, by action and result.",
            ("action", "result"),
            registry=registry,
        )

    def lease_request(self, action: str, result: str) -> None:
        self._lease_requests.labels(action, result).inc()


def _code_label(code: str) -> str:
    """Spell a status code as the common gRPC interceptors do: `NotFound`, `Canceled`, `OK`."""
    if code == "OK":
        return code
    return "Canceled" if code == "CANCELLED" else code.title().replace("_", "")
