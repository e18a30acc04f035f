"""Metrics that the journal derives from events."""

import pytest

from milo_discoveryd.fleet.source import RESTORED
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.metrics import Metrics
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.logs import capture_logs

CLUSTER = Cluster(target=Target(name="a", uid="u", place=()), source_version="1", engaged_at=0.0, incarnation=1)
CREATED, READY = "2026-01-01T00:00:00Z", "2026-01-01T00:00:07Z"


@pytest.mark.parametrize(
    ("readiness", "is_live", "count", "total"),
    [
        ((CREATED, READY), True, 1, 7.0),
        ((READY, CREATED), True, 1, 0.0),
        ((CREATED, READY), False, 0, 0.0),
        ((CREATED, "soon"), True, 0, 0.0),
        ((CREATED, "2026-01-01T00:00:07"), True, 0, 0.0),
        (None, True, 0, 0.0),
    ],
    ids=["live", "clocks differ", "first list", "not a time", "no time zone", "engaged before"],
)
def test_time_until_ready_is_observed_only_for_first_engagements_reported_by_a_watch(
    readiness: tuple[str, str] | None, is_live: bool, count: int, total: float
) -> None:
    metrics = Metrics()
    event = Event(EventType.ENGAGED, CLUSTER, readiness=readiness)
    Journal(metrics.sources, Audit(metrics.audit)).changed(event, is_live=is_live)
    value = metrics.registry.get_sample_value
    name = "milo_discoveryd_project_ready_duration_seconds"
    assert (value(f"{name}_count"), value(f"{name}_sum")) == (count, total)


def test_restored_clusters_are_logged_at_info() -> None:
    journal = Journal(Metrics().sources, Audit(Metrics().audit))
    with capture_logs() as logs:
        journal.source_status_changed(ViewStatus(ViewState.STALE, 0.0, RESTORED, "as last known"))
        journal.source_status_changed(ViewStatus(ViewState.STALE, 0.0, "Unreachable", "refused"))
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("info", "clusters restored"),
        ("warning", "source unreachable"),
    ]


@pytest.mark.parametrize(("reason", "lines"), [(DisengageReason.MOVED, 1), (DisengageReason.OWNERSHIP_LOST, 0)])
def test_disengaged_cluster_is_logged_unless_all_are_lost_together(reason: DisengageReason, lines: int) -> None:
    journal = Journal(Metrics().sources, Audit(Metrics().audit))
    with capture_logs() as logs:
        journal.changed(Event(EventType.DISENGAGED, CLUSTER, reason, "why"), is_live=True)
    assert [entry["event"] for entry in logs] == ["disengaged"] * lines
    assert [change.reason for change in journal.recent] == [reason.value]
