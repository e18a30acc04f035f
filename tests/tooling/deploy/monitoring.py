"""The shipped rules and dashboard, parsed."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parents[3]
COMPONENT = ROOT / "deploy" / "components" / "prometheus-monitoring"
DASHBOARD = COMPONENT / "dashboards" / "milo-discoveryd.json"
RULES = ("recording-rules.yaml", "alerts.yaml", "slo-alerts.yaml", "controllers-alerts.yaml", "objects-alerts.yaml")

Labels = frozenset[str]


@cache
def groups() -> list[dict[str, Any]]:
    """Return the rules in Prometheus' own format, without the Kubernetes resource."""
    return [
        group for file in RULES for group in yaml.safe_load((COMPONENT / file).read_text())["spec"]["groups"]
    ]  # fmt: skip


def rules() -> Iterator[dict[str, Any]]:
    for group in groups():
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> Mapping[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard() if panel["type"] != "row"]


def dashboard() -> list[dict[str, Any]]:
    """Return the panels of the dashboard, with their rows."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Yield each panel's title and its expressions, with Grafana's variables expanded."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], filled(target["expr"])


def filled(expression: str, *, rate_interval: str = "5m") -> str:
    """Expand Grafana's variables to all namespaces and pods."""
    for variable, value in {"$__rate_interval": rate_interval, "$namespace": ".*", "$pod": ".*"}.items():
        expression = expression.replace(variable, value)
    return expression


def selected(expression: str) -> Iterator[tuple[str, Labels]]:
    """Yield the metrics of an expression, with the labels of their selectors."""
    for selector in _selectors(promql.parse(expression)):
        yield selector.name, frozenset(matcher.name for matcher in selector.matchers.matchers)


def grouped(expression: str) -> Labels:
    """Return the labels of aggregations and joins in an expression."""
    return frozenset(_grouped(promql.parse(expression)))


def _selectors(expression: Any) -> Iterator[Any]:
    match expression:
        case promql.VectorSelector():
            yield expression
        case promql.MatrixSelector():
            yield expression.vector_selector
        case _:
            for part in _parts(expression):
                yield from _selectors(part)


def _grouped(expression: Any) -> Iterator[str]:
    modifier = getattr(expression, "modifier", None)
    if isinstance(expression, promql.AggregateExpr) and modifier is not None:
        yield from modifier.labels
    for part in _parts(expression):
        yield from _grouped(part)


def _parts(expression: Any) -> Iterator[Any]:
    match expression:
        case promql.BinaryExpr():
            yield from (expression.lhs, expression.rhs)
        case promql.Call():
            yield from expression.args
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield expression.expr
