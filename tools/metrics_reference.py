"""Writes docs/metrics.md from the metrics themselves."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from milo_discoveryd.reflect.pending_deletions import PendingDeletions
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"

_HEAD = """\
# Metrics

Served at `/metrics` of the HTTP port (`http_listen`, by default `:9464`).
There are as many series whatever the number of clusters and subscribers, but for those of a cluster's own, which
`metrics.cluster_info_cap` holds down (`milo_discoveryd_cluster_info_left_out` says how many it left out).
[Rules, alerts and a dashboard](../deploy/README.md#prometheus) made of them come with the manifests.

This page is generated from the metrics themselves: `./dev gen` writes it.

| metric | type | labels | what it is |
|---|---|---|---|
"""


class Family(NamedTuple):
    name: str
    """As Prometheus has it: with `_total` where it is a counter."""
    type: str
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """The names under which samples are found, each with its labels."""
        labels = frozenset(self.labels)
        if self.type == "histogram":
            yield f"{self.name}_bucket", labels | {"le"}
            yield f"{self.name}_sum", labels
            yield f"{self.name}_count", labels
        else:
            yield self.name, labels


def families() -> list[Family]:
    """Of a daemon to which nothing has happened yet."""
    metrics = Metrics()
    fleet = Fleet(
        ChangeLog(lambda event: b"", Retention()), PendingDeletions(lambda: 0.0), Journal(metrics, Audit(metrics))
    )
    metrics.tell_build("", "")
    metrics.follow(fleet, 0)
    metrics.follow_streams(lambda: ())
    metrics.follow_tasks(lambda: 0)
    metrics.follow_credentials(lambda: ())
    return sorted(_families(metrics.registry))


def _families(registry: CollectorRegistry) -> Iterator[Family]:
    for collector in list(registry._collector_to_names):  # a registry lists samples, and unused metrics have none
        wrapped = collector._labelnames if isinstance(collector, MetricWrapperBase) else None
        for metric in collector.collect():
            yield _family(metric, metric._labelnames if wrapped is None else wrapped)  # type: ignore[attr-defined]


def _family(metric: Metric, labels: tuple[str, ...]) -> Family:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return Family(name, metric.type, tuple(labels), metric.documentation)


def render() -> str:
    rows = (
        f"| `{family.name}` | {family.type} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in families()
    )
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if DOCUMENT.read_text() != render():
            sys.exit("docs/metrics.md is not what the metrics are: run ./dev gen")
    else:
        DOCUMENT.write_text(render())
