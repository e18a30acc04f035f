"""The daemon's Prometheus metrics."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.instruments import (
    AuditMetrics,
    CallMetrics,
    CredentialMetrics,
    ProbeMetrics,
    ReloadMetrics,
    ShardLeaseMetrics,
    StreamMetrics,
)
from milo_discoveryd.kubeconfigs.credential_lease import IssuerHealth
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.telemetry.collectors import CredentialCollector, FleetCollector, LogCollector, StreamCollector
from milo_discoveryd.telemetry.shard_metrics import MeasuredShard, ShardCollector, Unsharded

_RESTARTS = ("Expired", "MalformedResponse", "Silence", "StreamingListUnsupported", "Verification")
"""The reasons for relists whose series exist from the start. API servers may return other reasons."""
_MAX_OTHER_REASONS = 20
_OTHER_REASON = "Other"
_DRAIN_RESULTS = ("released", "expired")
_CONFIRMATIONS = ("not_found", "found", "inconclusive", "refused")
_READINESS_S = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_LOOP_DELAYS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class SourceMetrics:
    """Metrics of fleet changes and of the state of the sources, labeled by source if the sources have names."""

    def __init__(self, registry: CollectorRegistry, sources: Sequence[str]) -> None:
        self._of_source = {name: (name,) if name else () for name in sources}
        labels = ("source",) if any(sources) else ()
        self._transitions = Counter(
            "milo_discoveryd_transitions",
            "Engagements, updates and disengagements of clusters, by type and reason.",
            (*labels, "type", "reason"),
            registry=registry,
        )
        # Cached, because `labels()` takes longer than `inc()`.
        self._transitioned = functools.cache(self._transition_counter)
        self._time_to_ready = Histogram(
            "milo_discoveryd_project_ready_duration_seconds",
            "Time from the creation of a project to its readiness, according to the object's timestamps; observed when "
            "a project that became ready while the daemon was running is first engaged.",
            labels,
            buckets=_READINESS_S,
            registry=registry,
        )
        self._restarts = Counter(
            "milo_discoveryd_source_restarts",
            "Relists of the discovery source after the first list, by reason.",
            (*labels, "reason"),
            registry=registry,
        )
        self._other_reasons: set[str] = set()
        """The reasons that API servers gave for relists."""
        self._drains = Counter(
            "milo_discoveryd_drains",
            "Completed drains of clusters, by result: released by all subscribers, or expired at the deadline.",
            (*labels, "result"),
            registry=registry,
        )
        self._events_ignored = Counter(
            "milo_discoveryd_source_events_ignored",
            "Watch events of the discovery source that were ignored as invalid.",
            labels,
            registry=registry,
        )
        self._liveness_probes = Counter(
            "milo_discoveryd_source_liveness_probes",
            "Liveness probes of a silent API server, by result.",
            (*labels, "result"),
            registry=registry,
        )
        self._confirmations = Counter(
            "milo_discoveryd_deletion_confirmations",
            "GETs that check whether a missing object was deleted, by result; "
            "while they are denied, no deletion is confirmed.",
            (*labels, "result"),
            registry=registry,
        )
        for name, of in self._of_source.items():
            self._prepare(name, of)

    def _prepare(self, source: str, of: tuple[str, ...]) -> None:
        """Create a source's series: PromQL's increase() misses the first event of a series that did not exist
        before."""
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

    def transition(self, done: Event, source: str = "") -> None:
        self._transitioned(done.type, done.reason, source).inc()

    def project_became_ready(self, after_s: float, source: str = "") -> None:
        _child(self._time_to_ready, self._of_source[source]).observe(after_s)

    def _transition_counter(self, kind: EventType, reason: DisengageReason | None, source: str) -> Counter:
        return self._transitions.labels(*self._of_source[source], kind.value, "" if reason is None else reason.value)

    def relisting(self, reason: str, source: str = "") -> None:
        if reason not in _RESTARTS and reason not in self._other_reasons:
            if len(self._other_reasons) < _MAX_OTHER_REASONS:
                self._other_reasons.add(reason)
            else:
                reason = _OTHER_REASON
        self._restarts.labels(*self._of_source[source], reason).inc()

    def drained(self, result: str, source: str = "") -> None:
        self._drains.labels(*self._of_source[source], result).inc()

    def event_ignored(self, source: str = "") -> None:
        _child(self._events_ignored, self._of_source[source]).inc()

    def liveness_checked(self, result: str, source: str = "") -> None:
        self._liveness_probes.labels(*self._of_source[source], result).inc()

    def confirmed(self, result: str, source: str = "") -> None:
        self._confirmations.labels(*self._of_source[source], result).inc()


class MeasuredDaemon(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the metrics that are computed at each scrape."""

    fleet: Fleet
    cluster_cap: int
    """Maximum number of clusters with series of their own."""
    version: str = ""
    mode: str = ""
    lags: Callable[[], Iterable[int]] = lambda: ()
    """Returns the lag of each open stream: the unsent revisions plus, during a snapshot, the unsent clusters."""
    tasks: Callable[[], int] = lambda: 0
    """Returns the number of asyncio tasks that are not done."""
    dropped_lines: Callable[[], int] = lambda: 0
    """Returns the number of log lines that were dropped."""
    issuer_health: Callable[[], Iterable[IssuerHealth]] = lambda: ()
    certificates: Callable[[], Iterable[tuple[str, float]]] = lambda: ()
    """Returns a pair for each certificate: the name of its listener or source, and its expiry as a Unix timestamp."""
    shard: MeasuredShard | None = None


class Metrics:
    """The metrics of one daemon, in a separate registry, because tests run several daemons in one process."""

    def __init__(self, sources: Sequence[str] = ("",)) -> None:
        """`sources` are the names of the sources of clusters. The label `source` exists only if they have names."""
        self.registry = registry = CollectorRegistry()
        self.sources = SourceMetrics(registry, sources)
        self.calls = CallMetrics(registry)
        self.streams = StreamMetrics(registry)
        self.credentials = CredentialMetrics(registry)
        self.audit = AuditMetrics(registry)
        self.reloads = ReloadMetrics(registry)
        self.probes = ProbeMetrics(registry)
        self.leases = ShardLeaseMetrics(registry)
        self._loop_delay = Histogram(
            "milo_discoveryd_event_loop_delay_seconds",
            "Event loop lag: how late callbacks run, because earlier ones blocked the event loop.",
            buckets=_LOOP_DELAYS_S,
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def loop_was_late(self, seconds: float) -> None:
        self._loop_delay.observe(seconds)

    def follow(self, daemon: MeasuredDaemon) -> None:
        """Export the state of a daemon. Must be called once."""
        for collector in (
            FleetCollector(daemon.fleet, daemon.cluster_cap),
            StreamCollector(daemon.lags),
            LogCollector(daemon.dropped_lines),
            CredentialCollector(daemon.issuer_health, daemon.certificates),
            ShardCollector(daemon.shard or Unsharded()),
        ):
            self.registry.register(collector)
        tasks = Gauge("milo_discoveryd_asyncio_tasks", "asyncio tasks that are not done.", registry=self.registry)
        tasks.set_function(daemon.tasks)
        build = Gauge(
            "milo_discoveryd_build_info",
            "Constant 1, labeled by version and mode.",
            ("version", "mode"),
            registry=self.registry,
        )
        build.labels(daemon.version, daemon.mode).set(1)


Child = TypeVar("Child", bound=MetricWrapperBase)


def _child(of: Child, labels: tuple[str, ...]) -> Child:
    """Return the metric with these labels, or the metric itself if there are none."""
    return of.labels(*labels) if labels else of
