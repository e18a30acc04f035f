"""docs/controllers.md lists every metric, and its samples for Secrets and tracing work."""

import re
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from prometheus_client import CollectorRegistry

from milo_controllers import Controllers, current_cluster, current_object
from milo_controllers.metrics import ControllerMetrics
from milo_discovery import Fleet
from milo_discovery.testing import FakeDiscovery, MiloSandbox, eventually

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "controllers.md"
_SAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VERSION = {
    "name": "v1",
    "served": True,
    "storage": True,
    "subresources": {"status": {}},
    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
}
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "sites.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"kind": "Site", "listKind": "SiteList", "plural": "sites", "singular": "site"},
        "versions": [_VERSION],
    },
}
_SITES = "example.com/v1/sites"


def test_controllers_page_lists_every_metric() -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry, max_clusters=1)
    exported = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in registry.collect()}
    listed = re.findall(r"`((?:controller_runtime|workqueue|milo_controllers)_\w+)`", _PAGE.read_text())
    assert set(listed) == exported


def test_controller_spans_name_the_cluster_and_the_object() -> None:
    [sample] = (text for text in _SAMPLE.findall(_PAGE.read_text()) if "SpanProcessor" in text)
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


async def test_documented_example_reconciles_sites_when_their_secret_changes(
    milo_sandbox: MiloSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    [sample] = (text for text in _SAMPLE.findall(_PAGE.read_text()) if "sites_with_secret" in text)
    [alpha] = milo_sandbox.create_control_planes("alpha")
    alpha.install(_DEFINITION)
    for name, secret in (("one", "shared"), ("two", "shared"), ("three", "other")):
        alpha.create(
            {"apiVersion": "example.com/v1", "kind": "Site", "metadata": {"name": name}, "spec": {"secret": secret}}
        )

    def conditions() -> dict[str, tuple[str, int]]:
        found = {site["metadata"]["name"]: site["status"]["conditions"][0] for site in alpha.list(_SITES)}
        return {name: (condition["status"], condition["observedGeneration"]) for name, condition in found.items()}

    in_memory = partial(Controllers, Fleet(FakeDiscovery(alpha)), registry=CollectorRegistry())
    monkeypatch.setattr("milo_controllers.Controllers", in_memory)
    defined: dict[str, Any] = {}
    exec(sample, defined)
    async with defined["controllers"]:
        await eventually(lambda: conditions() == dict.fromkeys(("one", "two", "three"), ("False", 1)))
        alpha.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shared"}})
        await eventually(lambda: conditions() == {"one": ("True", 1), "two": ("True", 1), "three": ("False", 1)})
