"""Events and their series."""

from datetime import UTC, datetime, timedelta
from typing import Any

from milo_controllers.event_log import CreateEvent, EventContent, EventLog, PatchEvent, in_core

START = datetime(2026, 1, 2, tzinfo=UTC)
WIDGET: dict[str, Any] = {
    "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "ns", "uid": "u"}
}  # fmt: skip
CONTENT = EventContent("Normal", "Created", "Reconcile", "made a ConfigMap")


def event_log() -> EventLog:
    return EventLog("greeter", "host-1")


def test_event_contains_a_reference_to_its_object() -> None:
    made = event_log().record("alpha", WIDGET, CONTENT, START)
    assert isinstance(made, CreateEvent)
    assert made.namespace == "ns"
    assert made.body["metadata"]["name"].startswith("w.")
    assert made.body["regarding"] == {
        "apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "namespace": "ns", "uid": "u",
        "resourceVersion": "",
    }  # fmt: skip
    assert (made.body["reason"], made.body["eventTime"]) == ("Created", "2026-01-02T00:00:00.000000Z")


def test_event_of_a_cluster_scoped_object_is_in_the_default_namespace() -> None:
    scoped = {**WIDGET, "metadata": {"name": "w", "uid": "u"}}
    made = event_log().record("alpha", scoped, CONTENT, START)
    assert isinstance(made, CreateEvent)
    assert (made.namespace, "namespace" in made.body["regarding"]) == ("default", False)


def test_repeated_event_becomes_a_series_that_is_written_periodically() -> None:
    log = event_log()
    made = log.record("alpha", WIDGET, CONTENT, START)
    assert isinstance(made, CreateEvent)
    second = log.record("alpha", WIDGET, CONTENT, START + timedelta(seconds=1))
    assert second == PatchEvent(
        "ns",
        made.body["metadata"]["name"],
        {"series": {"count": 2, "lastObservedTime": "2026-01-02T00:00:01.000000Z"}},
    )
    assert log.record("alpha", WIDGET, CONTENT, START + timedelta(seconds=2)) is None
    fourth = log.record("alpha", WIDGET, CONTENT, START + timedelta(seconds=40))
    assert isinstance(fourth, PatchEvent)
    assert fourth.body["series"]["count"] == 4


def test_event_series_ends_after_a_pause_or_a_failed_write() -> None:
    log = event_log()
    log.record("alpha", WIDGET, CONTENT, START)
    later = START + timedelta(minutes=7)
    assert isinstance(log.record("alpha", WIDGET, CONTENT, later), CreateEvent)
    log.forget("alpha", WIDGET, CONTENT)
    assert isinstance(log.record("alpha", WIDGET, CONTENT, later), CreateEvent)


def test_events_that_differ_in_cluster_or_note_are_not_in_the_same_series() -> None:
    log = event_log()
    log.record("alpha", WIDGET, CONTENT, START)
    assert isinstance(log.record("beta", WIDGET, CONTENT, START), CreateEvent)
    assert isinstance(log.record("alpha", WIDGET, CONTENT._replace(note="other"), START), CreateEvent)


def test_event_log_evicts_the_oldest_series() -> None:
    log = event_log()
    log.record("alpha", WIDGET, CONTENT, START)
    for number in range(4096):
        log.record("alpha", WIDGET, CONTENT._replace(note=str(number)), START)
    assert isinstance(log.record("alpha", WIDGET, CONTENT, START), CreateEvent)


def test_core_group_event_uses_the_field_names_of_the_core_group() -> None:
    made = event_log().record("alpha", WIDGET, CONTENT, START)
    assert isinstance(made, CreateEvent)
    body = made.body
    core = in_core(body)
    assert (core["apiVersion"], core["message"], core["involvedObject"]) == ("v1", body["note"], body["regarding"])
    assert (core["reportingComponent"], core["reason"]) == ("greeter", body["reason"])
    assert not {"note", "regarding", "reportingController"} & core.keys()
