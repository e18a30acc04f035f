"""Unexpected errors of a listener or of the journal: they concern only the change that they were told of."""

import pytest

from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.objects.pending_deletions import Absent
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger


@pytest.mark.parametrize("kind", [EventType.ENGAGED, EventType.DISENGAGED])
def test_unexpected_error_of_a_listener_concerns_only_its_cluster(kind: EventType) -> None:
    source = new_source(Ledger(), readable_log())
    told: list[str] = []

    def broken(changed: Cluster) -> None:
        if changed.target.name == "a":
            raise ZeroDivisionError

    source.changes.add_listener(kind, broken)
    source.changes.add_listener(kind, lambda changed: told.append(changed.target.name))
    listed = [Listed(ready(name, uid=name)) for name in ("a", "b")]
    ended = [DeletionReported(name, name) for name in ("a", "b")]
    with capture_logs() as logs:
        for _ in source.apply(source.collections[0], [ListStarted(), *listed, ListEnded(), *ended], 0.0):
            pass
        for request in source.collections[0].pending_deletions.take_due(100.0):
            source.resolve(source.collections[0], request, Absent(), 100.0)
    assert sorted(told) == ["a", "b"]
    assert [(entry["event"], entry["cluster"]) for entry in logs if entry["log_level"] == "error"] == [
        ("change not passed on", "a")
    ]


def test_unexpected_error_of_the_journal_concerns_only_its_change() -> None:
    class Broken(Ledger):
        def changed(self, event: Event, *, is_live: bool) -> None:
            raise ZeroDivisionError

    source = new_source(Broken(), readable_log())
    told: list[str] = []
    source.changes.add_listener(EventType.ENGAGED, lambda changed: told.append(changed.target.name))
    with capture_logs() as logs:
        for _ in source.apply(source.collections[0], [ListStarted(), Listed(ready("a")), ListEnded()], 0.0):
            pass
    assert told == ["a"]
    assert "change not recorded" in [entry["event"] for entry in logs]
