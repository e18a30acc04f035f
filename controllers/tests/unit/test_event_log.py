"""Events and their series."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from milo_controllers.event_log import EventContent, EventLog, EventWrite, SeriesKey, in_core

START = datetime(2026, 1, 2, tzinfo=UTC)
WIDGET: dict[str, Any] = {
    "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "ns", "uid": "u"}
}  # fmt: skip
CONTENT = EventContent("Normal", "Created", "Reconcile", "made a ConfigMap")


class Recorded:
    """An event log whose clock measures seconds since START."""

    def __init__(self) -> None:
        self.log = EventLog("greeter", "host-1")

    def at(
        self, at: float, content: EventContent = CONTENT, *, cluster: str = "alpha", regarding: dict[str, Any] = WIDGET
    ) -> EventWrite | None:
        write = self.log.record(cluster, regarding, content, START + timedelta(seconds=at), at)
        return write if isinstance(write, EventWrite) else None

    def first(self, *, regarding: dict[str, Any] = WIDGET) -> dict[str, Any]:
        made = self.at(0.0, regarding=regarding)
        assert made is not None
        assert not made.is_series
        return made.event


def is_new(write: EventWrite | None) -> bool:
    return write is not None and not write.is_series


def counts(*writes: EventWrite | None) -> list[int]:
    return [write.event["series"]["count"] for write in writes if write is not None]


def test_event_contains_a_reference_to_its_object() -> None:
    made = Recorded().first()
    assert (made["metadata"]["namespace"], made["metadata"]["name"].startswith("w.")) == ("ns", True)
    assert made["regarding"] == {
        "apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "namespace": "ns", "uid": "u",
        "resourceVersion": "",
    }  # fmt: skip
    assert (made["reason"], made["eventTime"]) == ("Created", "2026-01-02T00:00:00.000000Z")


@pytest.mark.parametrize(("note", "written"), [("x" * 2000, "x" * 1024), ("x" + "é" * 600, "x" + "é" * 511)])
def test_long_note_is_cut_to_the_bytes_that_api_servers_accept(note: str, written: str) -> None:
    """Found by a reader: API servers refused notes of 1,024 characters with more bytes, and events were lost."""
    made = Recorded().at(0.0, CONTENT._replace(note=note))
    assert made is not None
    assert made.event["note"] == made.key.content.note == written


def test_event_of_a_cluster_scoped_object_is_in_the_default_namespace() -> None:
    made = Recorded().first(regarding={**WIDGET, "metadata": {"name": "w", "uid": "u"}})
    assert (made["metadata"]["namespace"], "namespace" in made["regarding"]) == ("default", False)


@pytest.mark.parametrize("name", ["system:x", "UPPER", "a_b", "-a", "a" * 250, "a..b"])
def test_event_of_an_object_whose_name_cannot_name_an_event_is_named_by_the_uid(name: str) -> None:
    made = Recorded().first(regarding={**WIDGET, "metadata": {"name": name, "uid": "6ff2-u"}})
    assert made["metadata"]["name"].startswith("6ff2-u.")
    assert made["regarding"]["name"] == name


def test_events_of_one_object_at_the_same_time_have_different_names() -> None:
    recorded = Recorded()
    others = [recorded.at(0.0, CONTENT._replace(note=str(number))) for number in range(3)]
    assert len({write.event["metadata"]["name"] for write in others if write}) == 3


def test_repeated_event_becomes_a_series_that_is_written_periodically() -> None:
    recorded = Recorded()
    made = recorded.first()
    second = recorded.at(1.0)
    assert second is not None
    assert second.event == {**made, "series": {"count": 2, "lastObservedTime": "2026-01-02T00:00:01.000000Z"}}
    assert recorded.at(2.0) is None
    assert recorded.log.record("alpha", WIDGET, CONTENT, START, 3.0) == 31.0
    assert counts(recorded.at(40.0)) == [5]


def test_series_is_due_at_its_time_however_that_is_rounded() -> None:
    recorded, at = Recorded(), 9.386
    assert (at + 30.0) - at < 30.0
    for _ in range(3):
        recorded.at(at)
    due_at = recorded.log.due_at("alpha")
    assert due_at is not None
    assert counts(*recorded.log.due("alpha", due_at)) == [3]


def test_repetitions_that_are_not_written_are_due_when_the_series_ends() -> None:
    recorded = Recorded()
    recorded.first()
    for number in range(1, 1000):
        recorded.at(0.029 * number)
    due_at = recorded.log.due_at("alpha")
    assert due_at == pytest.approx(30.029)
    assert (recorded.log.due_at("beta"), recorded.log.due("alpha", 30.0)) == (None, [])
    [last] = recorded.log.due("alpha", due_at)
    assert last.event["series"] == {"count": 1000, "lastObservedTime": "2026-01-02T00:00:28.971000Z"}
    assert (recorded.log.due_at("alpha"), recorded.log.due("alpha")) == (None, [])


def test_unwritten_repetitions_are_returned_at_the_end_or_dropped_with_the_cluster() -> None:
    recorded = Recorded()
    for at in range(3):
        recorded.at(float(at))
        recorded.at(float(at), cluster="beta")
    recorded.log.drop("beta")
    assert counts(*recorded.log.due("alpha"), *recorded.log.due("beta")) == [3]


def test_event_series_ends_after_a_pause_or_a_failed_write() -> None:
    recorded = Recorded()
    recorded.first()
    later = recorded.at(420.0)
    assert is_new(later)
    assert later is not None
    recorded.log.forget(later.key)
    assert is_new(recorded.at(421.0))


def test_events_that_differ_in_cluster_or_note_are_not_in_the_same_series() -> None:
    recorded = Recorded()
    recorded.first()
    assert is_new(recorded.at(0.0, cluster="beta"))
    assert is_new(recorded.at(0.0, CONTENT._replace(note="other")))


def test_event_log_evicts_the_oldest_series() -> None:
    recorded = Recorded()
    for at in range(3):
        recorded.at(float(at))
    for number in range(4096):
        recorded.at(0.0, CONTENT._replace(note=str(number)))
    assert recorded.log.due("alpha") == []
    assert is_new(recorded.at(0.0))


def test_events_of_one_cluster_end_no_series_of_another() -> None:
    """A cluster with thousands of failing objects made each repetition of an event of all others a new Event."""
    recorded = Recorded()
    recorded.at(0.0, cluster="beta")
    for number in range(5000):
        recorded.at(1.0, CONTENT._replace(note=f"note {number}"))
    assert counts(recorded.at(2.0, cluster="beta")) == [2]
    assert is_new(recorded.at(3.0, CONTENT._replace(note="note 0")))
    for number in range(5000, 10_000):
        recorded.at(400.0, CONTENT._replace(note=f"note {number}"))
    assert is_new(recorded.at(401.0, cluster="beta"))
    recorded.log.forget(SeriesKey("beta", "u", CONTENT))
    recorded.log.forget(SeriesKey("beta", "u", CONTENT))
    assert is_new(recorded.at(402.0, cluster="beta"))


def test_core_group_event_uses_the_field_names_of_the_core_group() -> None:
    body = Recorded().first()
    core = in_core(body)
    assert (core["apiVersion"], core["message"], core["involvedObject"]) == ("v1", body["note"], body["regarding"])
    assert (core["reportingComponent"], core["reason"]) == ("greeter", body["reason"])
    assert not {"note", "regarding", "reportingController"} & core.keys()
