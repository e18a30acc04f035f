"""Unexpected errors about one cluster or object: they concern only its changes, or those of which a listener or the
journal was told."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet import source as source_module
from milo_discoveryd.fleet.source import ClusterSource, ObjectsAreClusters
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.contributions import ContributingObject, Contribution, ObjectContent, ObjectContribution
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.resource import NAMES
from milo_discoveryd.objects.pending_deletions import Absent
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
)
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import not_ready, readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger


@pytest.mark.parametrize("kind", [EventType.ENGAGED, EventType.DISENGAGED])
def test_unexpected_error_of_a_listener_concerns_only_its_cluster(kind: EventType) -> None:
    source = new_source(Ledger(), readable_log())
    told: list[str] = []

    def broken(event: Event) -> None:
        if event.cluster.target.name == "a":
            raise ZeroDivisionError

    source.changes.add_listener(kind, broken)
    source.changes.add_listener(kind, lambda event: told.append(event.cluster.target.name))
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
    source.changes.add_listener(EventType.ENGAGED, lambda event: told.append(event.cluster.target.name))
    with capture_logs() as logs:
        for _ in source.apply(source.collections[0], [ListStarted(), Listed(ready("a")), ListEnded()], 0.0):
            pass
    assert told == ["a"]
    assert "change not recorded" in [entry["event"] for entry in logs]


def contributing(version: str, cluster: str) -> ContributingObject:
    return ContributingObject("object", "uid", version, ObjectContent((Contribution(cluster, "content"),)))


def first(name: str, contributions: Sequence[ObjectContribution], _: str) -> Observation | None:
    return ready(name) if contributions else None


def errors(logs: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["event"], entry.get("object", "")) for entry in logs if entry["log_level"] == "error"]


class Failing:
    """A method that raises an unexpected exception for one cluster, or for one version."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
        self.name = name
        original = getattr(Engagements, method)

        def failing(engagements: Engagements, observation: Any, *others: Any) -> list[Event]:
            if self.name in (getattr(observation, "name", observation), getattr(observation, "version", None)):
                raise ZeroDivisionError
            events: list[Event] = original(engagements, observation, *others)
            return events

        monkeypatch.setattr(Engagements, method, failing)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def source(told: list[str], monkeypatch: pytest.MonkeyPatch) -> ClusterSource:
    monkeypatch.setattr(source_module, "RETRY_S", 0.01)
    made = new_source(Ledger(), readable_log(), not_ready=NotReadyClusters(10.0))
    for kind in (EventType.ENGAGED, EventType.DISENGAGED):
        made.changes.add_listener(kind, lambda event: told.append(f"{event.type.value} {event.cluster.target.name}"))
    return made


def take(source: ClusterSource, *events: SourceEvent, now: float = 0.0) -> None:
    for _ in source.apply(source.collections[0], events, now):
        pass


async def test_change_of_an_object_with_an_unexpected_error_delays_no_other_and_is_tried_again(
    source: ClusterSource, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, "_ready", "b")
    with capture_logs() as logs:
        take(source, ListStarted(), *(Listed(ready(name, uid=name)) for name in ("a", "b", "c")), ListEnded())
    assert (told, source.synced) == (["ENGAGED a", "ENGAGED c"], True)
    assert errors(logs) == [
        ("changes of objects not applied together", ""),
        ("change of an object not applied", "b"),
    ]
    failing.name = "none"
    await eventually(lambda: told == ["ENGAGED a", "ENGAGED c", "ENGAGED b"])


async def test_object_that_goes_on_changing_is_tried_again_once_in_each_interval(
    source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its changes added another timer, and each timer planned the next one."""
    Failing(monkeypatch, "_ready", "a")
    planned: list[object] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *call: planned.append(call))
    take(source, ListStarted(), Listed(ready("a", "1")), ListEnded())
    for version in ("2", "3", "4"):
        take(source, ObjectChanged(ready("a", version)))
    assert len(planned) == 1


async def test_change_of_an_object_that_was_not_applied_is_not_tried_again_after_a_later_one(
    source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "RETRY_S", 0.0)
    failing = Failing(monkeypatch, "_ready", "a")
    take(source, ListStarted(), Listed(ready("a", "1", labels={"number": "1"})), ListEnded())
    failing.name = "none"
    take(source, ObjectChanged(ready("a", "2", labels={"number": "2"})))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (engaged,) = source.engagements.clusters()
    assert dict(engaged.target.labels) == {"number": "2"}


async def test_change_of_an_object_that_was_not_applied_is_not_tried_again_after_a_later_one_of_its_batch(
    source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "RETRY_S", 0.0)
    take(source, ListStarted(), Listed(ready("a", "1")), ListEnded())
    failing = Failing(monkeypatch, "_ready", "2")
    take(source, *(ObjectChanged(ready("a", version, labels={"number": version})) for version in ("2", "3")))
    failing.name = "none"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (engaged,) = source.engagements.clusters()
    assert dict(engaged.target.labels) == {"number": "3"}


@pytest.mark.parametrize("later", ["b", "c"])
@pytest.mark.parametrize(("method", "name"), [("_ready", "b"), ("_delete", "a")])
async def test_later_change_of_an_object_concerns_the_clusters_of_the_one_that_was_not_applied(
    later: str, method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_source(Ledger(), readable_log(), keys=(NAMES,), reduce=first)
    take(source, ListStarted(), Listed(contributing("1", "a")), ListEnded())
    failing = Failing(monkeypatch, method, name)
    take(source, ObjectChanged(contributing("2", "b")))
    failing.name = "none"
    take(source, ObjectChanged(contributing("3", later)))
    assert [cluster.target.name for cluster in source.engagements.clusters()] == [later]


async def test_end_of_a_grace_period_with_an_unexpected_error_delays_no_other_and_is_tried_again(
    source: ClusterSource, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take(source, ListStarted(), *(Listed(ready(name, "1", uid=name)) for name in ("a", "b", "c")), ListEnded())
    source.set_followed(source.collections[0], ViewStatus(ViewState.STREAMING, 0.0, last_contact=0.0))
    take(source, *(ObjectChanged(not_ready(name, "2", uid=name)) for name in ("a", "b", "c")))
    failing = Failing(monkeypatch, "end_not_ready", "b")
    with capture_logs() as logs:
        source.tick(10.0)
    assert told[3:] == ["DISENGAGED a", "DISENGAGED c"]
    assert errors(logs) == [("cluster that is not ready not disengaged", "")]
    assert source.due_at == 10.01
    failing.name = "none"
    source.tick(10.01)
    assert told[3:] == ["DISENGAGED a", "DISENGAGED c", "DISENGAGED b"]


def test_unexpected_error_once_every_collection_is_listed_is_raised_until_the_next_list(
    source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ObjectsAreClusters, "states_once_listed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(source, ListStarted(), Listed(ready("a")), ListEnded())
        assert not source.synced
    take(source, ListStarted(), Listed(ready("a")), ListEnded())
    assert source.synced
