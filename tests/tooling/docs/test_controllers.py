"""The page of controllers lists the metrics that there are, and its sample for traces works."""

import re
from contextvars import copy_context
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from prometheus_client import CollectorRegistry

from milo_controllers import current_cluster, current_object
from milo_controllers.metrics import ControllerMetrics

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "controllers.md"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_controllers_page_lists_every_metric() -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry, max_clusters=1)
    exported = {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    listed = re.findall(r"`((?:controller_runtime|workqueue|milo_controllers)_\w+)`", _PAGE.read_text())
    assert set(listed) == exported


def test_controller_spans_name_the_cluster_and_the_object() -> None:
    [sample] = (each for each in _SAMPLE.findall(_PAGE.read_text()) if "SpanProcessor" in each)
    defined: dict[str, Any] = {}
    exec(sample, defined)
    provider = TracerProvider()
    provider.add_span_processor(defined["ClusterAttributes"]())

    def attributes() -> dict[str, object]:
        with provider.get_tracer("tests").start_as_current_span("call") as span:
            assert isinstance(span, ReadableSpan)
            return dict(span.attributes or {})

    def in_a_reconcile() -> dict[str, object]:
        current_cluster.set("alpha")
        current_object.set("default/one")
        return attributes()

    assert attributes() == {}
    assert copy_context().run(in_a_reconcile) == {"milo.cluster": "alpha", "milo.object": "default/one"}
