"""The metrics of controllers."""

import itertools
import sys
from types import FrameType, SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from milo_controllers.metrics import ClusterLabels, ControllerMetrics, QueueState, StateCollector
from milo_controllers.work_queue import ObjectKey, QueuePolicy, WorkQueue


def test_clusters_beyond_the_limit_share_one_label_value() -> None:
    labels = ClusterLabels(max_clusters=2)
    found = [labels.label(name) for name in ("alpha", "beta", "gamma", "delta", "alpha")]
    assert found == ["alpha", "beta", "_other", "_other", "alpha"]


def test_state_metrics_are_collected_in_a_thread_while_the_queue_changes() -> None:
    queue = WorkQueue(QueuePolicy(), lambda: 0.0, 0.0, per_cluster=4, workers=256)
    running: dict[int, float] = {}
    numbers = itertools.count()

    def change() -> None:
        """Make a change that the event loop's thread could make between two instructions of the collecting thread."""
        number = next(numbers)
        if number % 7 == 0:
            running.clear()
            for other in range(7):
                queue.drop(f"cluster-{other}", 1)
        running[number] = 0.0
        for cluster in ("cluster-0", f"cluster-{number % 7}"):
            queue.engage(cluster, 1)
            queue.open(cluster, 1)
            queue.add(ObjectKey(cluster, 1, "default", f"object-{number}"), 0.0)

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_filename in files:
            sys.settrace(None)
            change()
            sys.settrace(trace)
        return trace

    def states() -> list[QueueState]:
        return [QueueState("widgets", queue, queue.oldest, lambda: tuple(running.values()), 4)]

    files = {sys.modules[kind.__module__].__file__ for kind in (WorkQueue, StateCollector)}
    change()
    collector = StateCollector()
    collector.sources.append(
        SimpleNamespace(queues=states, informers=tuple, clusters=lambda: 1, now=lambda: 5.0)  # type: ignore[arg-type]
    )
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = list(collector.collect())
    finally:
        sys.settrace(before)
    assert next(numbers) > 10
    [oldest] = [family for family in found if family.name == "milo_controllers_oldest_queued_seconds"]
    assert [sample.value for sample in oldest.samples] == [5.0]


def test_running_and_permitted_reconciles_of_two_sets_of_controllers_are_added_up() -> None:
    """The gauges had the values of one of them."""
    queue = WorkQueue(QueuePolicy(), lambda: 0.0, 0.0, per_cluster=4, workers=256)
    registry = CollectorRegistry()
    state = ControllerMetrics.of_registry(registry, max_clusters=1).state
    for workers, began in ((7, (1.0, 2.0)), (3, ())):
        queues = [QueueState("widgets", queue, None, began.__iter__, workers)]
        state.sources.append(
            SimpleNamespace(queues=queues.copy, informers=tuple, clusters=lambda: 1, now=lambda: 5.0)  # type: ignore[arg-type]
        )
    names = ("active_workers", "max_concurrent_reconciles")
    labels = {"controller": "widgets"}
    assert [registry.get_sample_value(f"controller_runtime_{name}", labels) for name in names] == [2, 10]
