"""The rules and the dashboard: every expression parses, and names only existing metrics and labels."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from milo_controllers.metrics import ControllerMetrics
from milo_objects.publication import StreamPublication
from milo_objects.publisher_pages import PublicationCollector
from tests.end_to_end.process.conftest import Workspace
from tests.tooling.deploy import monitoring
from tests.tooling.deploy.manifests import of_kind, with_components
from tests.tooling.deploy.web import get
from tools import metrics_reference

# Metrics of Prometheus itself, and labels that the PodMonitor sets.
SCRAPE_LABELS = frozenset({"namespace", "pod", "container", "job", "instance"})
EXPORTED = {name: labels for family in metrics_reference.families() for name, labels in family.series}
OF_PROMETHEUS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
_OF_CONTROLLERS = ControllerMetrics(CollectorRegistry(), max_clusters=1)
OF_CONTROLLERS = {
    **{family.name: frozenset(family._labelnames) for family in _OF_CONTROLLERS.state.collect()},
    "milo_controllers_cluster_reconcile_errors_total": frozenset(_OF_CONTROLLERS.cluster_errors._labelnames),
    "milo_controllers_event_loop_delay_seconds_bucket": frozenset({"le"}),
}
OF_OBJECTS = {
    f"{family.name}_total" if family.type == "counter" else family.name: frozenset(
        label for sample in family.samples for label in sample.labels
    )
    for family in PublicationCollector(StreamPublication([], lambda _: True, 0.0)).collect()
}
KNOWN = (
    EXPORTED
    | OF_CONTROLLERS
    | OF_OBJECTS
    | OF_PROMETHEUS
    | dict.fromkeys(monitoring.recorded(), frozenset({"type", "reason"}))
)

EXPRESSIONS = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in monitoring.rules()]
EXPRESSIONS += monitoring.dashboard_expressions()


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_expressions_use_only_exported_or_recorded_metrics(name: str, expression: str) -> None:
    allowed = set(SCRAPE_LABELS)
    for metric, labels in monitoring.selected(expression):
        assert metric in KNOWN, f"{metric} is not exported"
        assert labels <= KNOWN[metric] | SCRAPE_LABELS, f"{metric} has no such labels"
        allowed |= KNOWN[metric]
    assert monitoring.grouped(expression) <= allowed


async def test_exported_metrics_match_reference(workspace: Workspace) -> None:
    async with workspace.daemon(http_listen="127.0.0.1:0") as daemon:
        await daemon.start()
        await daemon.wait_for_output('"started"')
        page = await get(f"{daemon.events('started')[-1]['http']}/metrics")
    found = text_string_to_metric_families(page.decode())
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in found}
    assert names == {family.name for family in metrics_reference.families()}


@pytest.mark.parametrize("alert", monitoring.alerts(), ids=lambda alert: alert["alert"])
def test_alert_has_severity_summary_and_a_runbook(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["labels"]["service"] == "milo-discoveryd"
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    _, _, path = alert["annotations"]["runbook_url"].partition("/blob/main/")
    runbook = (monitoring.ROOT / path).read_text()
    for heading in ("## Meaning", "## Effect on subscribers", "## Diagnosis", "## Resolution"):
        assert heading in runbook
    assert f"`{alert['alert']}`" in runbook


def test_milo_alert_labels_component_labels_every_alert(tmp_path: Path) -> None:
    directory = with_components(tmp_path / "overlay", "sidecar", "prometheus-monitoring", "milo-alert-labels")
    rules = [
        (manifest["metadata"]["name"], rule["labels"])
        for manifest in of_kind(directory, "PrometheusRule")
        for group in manifest["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(rules) == len(monitoring.alerts())
    for name, labels in rules:
        assert labels["team"] == "platform"
        assert labels.get("slo_violation") == ("true" if "-slo-" in name else None)


def test_alerts_link_exactly_the_existing_runbooks() -> None:
    named = {alert["annotations"]["runbook_url"].rpartition("/")[2] for alert in monitoring.alerts()}
    assert {path.name for path in (monitoring.ROOT / "docs" / "runbooks").glob("*.md")} == named


def test_dashboard_panels_have_unique_titles_and_do_not_overlap() -> None:
    panels = monitoring.panels()
    assert len({panel["title"] for panel in panels}) == len(panels)
    squares = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(squares) == len(set(squares))
