"""Tables, as kubectl prints them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from milo_sandbox import selectors, tables
from milo_sandbox.records import RecordedChange, SandboxRecord
from milo_sandbox.resources import PROJECTS, ResourceDefinition
from milo_sandbox.tables import Table

NOW = datetime(2026, 1, 10, tzinfo=UTC)


def record(document: Any) -> SandboxRecord:
    return SandboxRecord(key="alpha", uid="u", version=7, labels={}, body=json.dumps(document).encode())


def cells(document: Any, resource: ResourceDefinition = PROJECTS) -> list[Any]:
    table = Table(resource, clock=lambda: NOW)
    line = json.loads(table.initial(record(document)))
    found: list[Any] = line["object"]["rows"][0]["cells"]
    return found


def aged(**ago: float) -> str:
    made = (NOW - timedelta(**ago)).isoformat()
    return str(cells({"metadata": {"creationTimestamp": made}})[-1])


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (lambda: aged(seconds=-5), "0s"),
        (lambda: aged(seconds=119), "119s"),
        (lambda: aged(minutes=2), "2m"),
        (lambda: aged(minutes=9, seconds=5), "9m5s"),
        (lambda: aged(minutes=10, seconds=5), "10m"),
        (lambda: aged(hours=3), "3h"),
        (lambda: aged(hours=7, minutes=5), "7h5m"),
        (lambda: aged(hours=47, minutes=5), "47h"),
        (lambda: aged(days=2), "2d"),
        (lambda: str(cells({"metadata": {"creationTimestamp": "soon"}})[-1]), "<invalid>"),
        (lambda: str(cells({})[-1]), "<unknown>"),
    ],
)
def test_age_column_uses_coarser_units_for_higher_ages(age: Callable[[], str], expected: str) -> None:
    assert age() == expected


@pytest.mark.parametrize("status", [None, 1, {}, {"conditions": 1}, {"conditions": [1, {"type": "Other"}]}])
def test_status_column_is_empty_for_a_status_of_unexpected_shape(status: Any) -> None:
    assert cells({"metadata": {"name": "alpha"}, "status": status})[1] is None


def test_table_watch_omits_events_outside_selector() -> None:
    event = RecordedChange(version=7, before=None, record=record({}))
    assert Table(PROJECTS, clock=lambda: NOW).event(event, selectors.parse("env=prod")) is None


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("application/json", False),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", True),
        ("application/json; as=Table; g=meta.k8s.io; v=v1", True),
        ("application/json,application/json;as=Table;v=v1;g=meta.k8s.io", False),
    ],
)
def test_table_is_returned_if_preferred(accept: str, wanted: bool) -> None:
    assert tables.is_wanted(accept) is wanted
