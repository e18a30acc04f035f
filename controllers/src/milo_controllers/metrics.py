"""Metrics of controllers. Metrics that controller-runtime also has are named as there, so that its dashboards work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from milo_controllers.work_queue import Done, Failed, Interrupted, Outcome, Parked, Priority, Stopped, WorkQueue

_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE_BUCKETS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000)
_LOOP_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PRIORITIES = {Priority.LIVE: "0", Priority.RETRY: "-50", Priority.BACKGROUND: "-100"}
"""controller-runtime labels live changes 0 and initial lists -100."""
OTHER_CLUSTERS = "_other"


class QueueState(NamedTuple):
    """A controller: its queue, since when the longest-waiting object waits, when the running reconciles began, and how
    many may run."""

    controller: str
    queue: WorkQueue
    oldest: float | None
    running: Callable[[], Iterable[float]]
    workers: int


class ClusterLabels:
    """Values of the label `cluster`: the first clusters have their own value, and all others share one."""

    def __init__(self, max_clusters: int) -> None:
        self._max_clusters = max_clusters
        self._labeled: set[str] = set()

    def label(self, cluster: str) -> str:
        if cluster not in self._labeled:
            if len(self._labeled) >= self._max_clusters:
                return OTHER_CLUSTERS
            self._labeled.add(cluster)
        return cluster


class ControllerMetrics:
    """The metrics of one set of controllers, in one registry."""

    def __init__(self, registry: CollectorRegistry, *, max_clusters: int) -> None:
        """`max_clusters`: maximum number of clusters with their own label value; the others share one."""
        self.cluster_labels = ClusterLabels(max_clusters)
        by_controller = ("controller",)
        self.reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles, by controller and result.",
            ("controller", "result"),
            registry=registry,
        )
        self.errors = Counter(
            "controller_runtime_reconcile_errors_total",
            "Reconciles that failed, by controller.",
            by_controller,
            registry=registry,
        )
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors_total",
            "Reconciles that raised Permanent, by controller.",
            by_controller,
            registry=registry,
        )
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of reconciles, by controller.",
            by_controller,
            registry=registry,
            buckets=_RECONCILE_BUCKETS,
        )
        by_queue = ("controller", "name")
        self.adds = Counter(
            "workqueue_adds_total", "Objects added to the work queue, by controller.", by_queue, registry=registry
        )
        self.retries = Counter(
            "workqueue_retries_total", "Retries of failed objects, by controller.", by_queue, registry=registry
        )
        self.queue_duration = Histogram(
            "workqueue_queue_duration_seconds",
            "Time that an object was ready to be reconciled before its reconcile began, by controller.",
            by_queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self.work_duration = Histogram(
            "workqueue_work_duration_seconds",
            "Time to process an object taken from the work queue, by controller.",
            by_queue,
            registry=registry,
            buckets=_QUEUE_BUCKETS,
        )
        self.cluster_errors = Counter(
            "milo_controllers_cluster_reconcile_errors_total",
            "Reconciles that failed, by controller and cluster; clusters beyond a maximum share one label value.",
            ("controller", "cluster"),
            registry=registry,
        )

        self.loop_delay = Histogram(
            "milo_controllers_event_loop_delay_seconds",
            "How late the event loop runs callbacks that are due, because of calls that do not await.",
            registry=registry,
            buckets=_LOOP_BUCKETS,
        )
        self.state = StateCollector()
        registry.register(self.state)

    @classmethod
    def of_registry(cls, registry: CollectorRegistry, *, max_clusters: int) -> ControllerMetrics:
        """Return the metrics in this registry, which all sets of controllers share."""
        found = _METRICS.get(registry)
        if found is None:
            found = _METRICS[registry] = cls(registry, max_clusters=max_clusters)
        return found


class ReconcileMetrics:
    """The metrics of one controller."""

    def __init__(self, metrics: ControllerMetrics, controller: str) -> None:
        self._metrics = metrics
        self._controller = controller
        self._adds = metrics.adds.labels(controller, controller)
        self._retries = metrics.retries.labels(controller, controller)
        self._queue_duration = metrics.queue_duration.labels(controller, controller)
        self._work_duration = metrics.work_duration.labels(controller, controller)
        self._reconcile_time = metrics.reconcile_time.labels(controller)
        self._errors = metrics.errors.labels(controller)
        self._terminal_errors = metrics.terminal_errors.labels(controller)
        self._results = {
            result: metrics.reconciles.labels(controller, result) for result in ("success", "requeue_after", "error")
        }

    def added(self) -> None:
        self._adds.inc()

    def began(self, queued_s: float) -> None:
        self._queue_duration.observe(queued_s)

    def ended(self, cluster: str, outcome: Outcome, duration_s: float) -> None:
        self._reconcile_time.observe(duration_s)
        self._work_duration.observe(duration_s)
        match outcome:
            case Done(None) | Parked():
                self._results["success"].inc()
                return
            case Done() | Interrupted():
                self._results["requeue_after"].inc()
                return
            case Stopped():
                self._terminal_errors.inc()
            case Failed():
                self._retries.inc()
        self._results["error"].inc()
        self._errors.inc()
        label = self._metrics.cluster_labels.label(cluster)
        self._metrics.cluster_errors.labels(self._controller, label).inc()


class StateSource(Protocol):
    """A set of controllers whose state is exported as metrics."""

    def queues(self) -> Iterable[QueueState]: ...
    def informers(self) -> Iterable[InformerMetrics]: ...
    def clusters(self) -> int: ...
    def now(self) -> float: ...


class InformerMetrics(NamedTuple):
    resource: str
    state: str
    size: int


class StateCollector(Collector):
    """Metrics that are computed when they are scraped: depths, ages, and the state of informers."""

    def __init__(self) -> None:
        self.sources: list[StateSource] = []

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "workqueue_depth",
            "Objects that are ready to be reconciled, by controller and priority.",
            labels=("controller", "name", "priority"),
        )
        oldest = GaugeMetricFamily(
            "milo_controllers_oldest_queued_seconds",
            "How long the longest-waiting queued object has been ready to be reconciled, by controller.",
            labels=("controller",),
        )
        active = GaugeMetricFamily(
            "controller_runtime_active_workers", "Reconciles that are running, by controller.", labels=("controller",)
        )
        most = GaugeMetricFamily(
            "controller_runtime_max_concurrent_reconciles",
            "Reconciles that may run at the same time, by controller.",
            labels=("controller",),
        )
        unfinished = GaugeMetricFamily(
            "workqueue_unfinished_work_seconds",
            "Total time that the running reconciles have taken so far, by controller.",
            labels=("controller", "name"),
        )
        longest = GaugeMetricFamily(
            "workqueue_longest_running_processor_seconds",
            "How long the longest-running reconcile has taken so far, by controller.",
            labels=("controller", "name"),
        )
        states: dict[tuple[str, str], int] = {}
        sizes: dict[str, int] = {}
        depths: dict[tuple[str, Priority], int] = {}
        queued: dict[str, float] = {}
        ages: dict[str, list[float]] = {}
        workers: dict[str, int] = {}
        sources = tuple(self.sources)
        for source in sources:
            now = source.now()
            for name, queue, since, running, at_most in source.queues():
                # Two sets may have controllers of the same name.
                for priority in Priority:
                    depths[name, priority] = depths.get((name, priority), 0) + queue.depth(priority)
                queued[name] = max(queued.get(name, 0.0), 0.0 if since is None else now - since)
                ages.setdefault(name, []).extend(now - began for began in running())
                workers[name] = workers.get(name, 0) + at_most
            for resource, state, size in source.informers():
                states[resource, state] = states.get((resource, state), 0) + 1
                sizes[resource] = sizes.get(resource, 0) + size
        for (name, priority), count in depths.items():
            depth.add_metric((name, name, _PRIORITIES[priority]), count)
        for name, longest_queued in queued.items():
            oldest.add_metric((name,), longest_queued)
            active.add_metric((name,), len(ages[name]))
            most.add_metric((name,), workers[name])
            unfinished.add_metric((name, name), sum(ages[name]))
            longest.add_metric((name, name), max(ages[name], default=0.0))
        yield from (depth, oldest, active, most, unfinished, longest)
        informers = GaugeMetricFamily(
            "milo_controllers_informers",
            "Informers, by resource and state: synced, starting, stale, forbidden, not_served, over_budget.",
            labels=("resource", "state"),
        )
        for labels, count in sorted(states.items()):
            informers.add_metric(labels, count)
        cached = GaugeMetricFamily(
            "milo_controllers_cached_bytes",
            "Approximate bytes of cached objects and of list pages in progress, by resource.",
            labels=("resource",),
        )
        for resource, size in sorted(sizes.items()):
            cached.add_metric((resource,), size)
        yield from (informers, cached)
        engaged = sum(source.clusters() for source in sources)
        yield GaugeMetricFamily("milo_controllers_clusters", "Clusters that are engaged.", value=engaged)


_METRICS: WeakKeyDictionary[CollectorRegistry, ControllerMetrics] = WeakKeyDictionary()
