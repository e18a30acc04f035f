"""The metrics of controllers that their page lists are those that there are."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from milo_discovery.controllers.metrics import ControllerMetrics, StateCollector

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "controllers.md"


def test_page_lists_every_metric() -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry, max_clusters=1)
    registry.register(StateCollector(lambda: (), lambda: (), lambda: 0, lambda: 0.0))
    exported = {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    listed = re.findall(r"`((?:controller_runtime|workqueue|milo_controllers)_\w+)`", _PAGE.read_text())
    assert set(listed) == exported
