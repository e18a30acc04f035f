"""Requests that record events, in API servers with and without events.k8s.io, and behind Milo's proxy of events."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.event_log import EventLog
from milo_controllers.event_recorder import EventRecorder
from milo_controllers.kinds import Document, Kind
from milo_controllers.request import Request
from milo_controllers.work_queue import ObjectKey, Work
from milo_discovery.api_errors import AlreadyExists, ApiError, NotFound, NotLeading, NotServed, Unreachable
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.testing import fake_clock
from milo_kube.failure_log import FailureLog
from tests.support.eventually import eventually

OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default", "uid": "u"}}


class EventsApi:
    """An API server with events, without the group events.k8s.io unless `groups` has it."""

    def __init__(
        self, *, groups: str = "events.k8s.io", patches: bool = True, failures: Sequence[Exception] = ()
    ) -> None:
        """`failures`: raised by the first calls."""
        self.name = "shop"
        self.responds = asyncio.Event()
        self.responds.set()
        self.stored: dict[str, Document] = {}
        self.calls: list[str] = []
        self._groups = groups
        self._patches = patches
        self.failures = list(failures)

    async def send(self, method: str, path: str, _query: object, body: Document, **_: object) -> Document:
        await self.responds.wait()
        self.calls.append(method)
        if self.failures:
            raise self.failures.pop(0)
        if "events.k8s.io" in path and not self._groups:
            raise NotServed(404, "", "404 page not found")
        name = path.rpartition("/")[2] if method != "POST" else body["metadata"]["name"]
        if method != "POST" and (name not in self.stored or (method == "PATCH" and not self._patches)):
            raise NotFound(404, "NotFound", f"events {name} not found")
        self.stored[name] = {**self.stored.get(name, {}), **body}
        return body

    @property
    def counts(self) -> list[int]:
        return [event.get("series", {}).get("count", 1) for event in self.stored.values()]

    @property
    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.stored.values()]


class FixedRequest(Request[Document]):
    async def _whole_document(self) -> Document:
        return OBJECT


def requests_to(api: Any, count: int) -> list[FixedRequest]:
    """Return requests of reconciles in one cluster, which share its events."""
    view: Any = SimpleNamespace(cluster=SimpleNamespace(name="shop"))
    events = EventRecorder(api, EventLog("operator", "pod"), FailureLog())
    member: Any = SimpleNamespace(api=api, view=view, loop=None, events=events)
    work = Work(ObjectKey("shop", 1, "default", "a"), 0.0, 0)
    kind = Kind("v1/configmaps")
    return [FixedRequest(kind, work, member, clusters=view, field_manager="m") for _ in range(count)]


async def test_event_is_resent_to_the_core_group_if_events_k8s_io_is_not_served() -> None:
    api = EventsApi(groups="")
    [request] = requests_to(api, 1)
    for reason in ("First", "Second"):
        await request.event(reason, "note")
    await eventually(lambda: api.reasons == ["First", "Second"])
    assert {event["apiVersion"] for event in api.stored.values()} == {"v1"}
    assert api.calls == ["POST", "POST", "POST"]


async def test_repetition_of_a_removed_event_is_created_again() -> None:
    api = EventsApi()
    [request] = requests_to(api, 1)
    await request.event("Created", "note")
    await eventually(lambda: api.counts == [1])
    api.stored.clear()
    await request.event("Created", "note")
    await eventually(lambda: api.counts == [2])
    assert api.reasons == ["Created"]
    assert api.calls == ["POST", "PATCH", "PUT", "POST"]


async def test_series_is_replaced_if_events_cannot_be_patched() -> None:
    api = EventsApi(patches=False)
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for count in (1, 2):
            await request.event("Created", "note")
            await eventually(lambda: api.counts == [count])  # noqa: B023  (awaited)
        await request.event("Created", "note")
        clock.advance(timedelta(seconds=31))
        await eventually(lambda: api.counts == [3])
    assert api.calls == ["POST", "PATCH", "PUT", "PUT"]


async def test_last_count_of_a_series_is_written_when_its_repetitions_end() -> None:
    api = EventsApi()
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for _ in range(1000):
            await request.event("Created", "note")
        await eventually(lambda: api.counts == [2])
        clock.advance(timedelta(seconds=31))
        await eventually(lambda: api.counts == [1000])
    assert api.calls == ["POST", "PATCH", "PATCH"]


async def test_repetition_of_an_event_does_not_look_at_all_series_of_its_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    due = EventLog.due

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return due(*arguments)

    api = EventsApi()
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for count in (1, 2):
            for number in range(50):
                await request.event("Seen", f"note {number}")
            await eventually(lambda: api.counts == [count] * 50)  # noqa: B023  (awaited)
        monkeypatch.setattr(EventLog, "due", counted)
        for number in range(50):
            await request.event("Seen", f"note {number}")
        assert looks == 0
        clock.advance(timedelta(seconds=31))
        await eventually(lambda: api.counts == [3] * 50)


async def test_events_are_written_in_the_background_in_their_order() -> None:
    api = EventsApi()
    api.responds.clear()
    [request] = requests_to(api, 1)
    for number in range(20):
        await request.event(f"Seen{number}", "note")
        await request.event(f"Seen{number}", "note")
    assert api.calls == []
    api.responds.set()
    await eventually(lambda: api.counts == [2] * 20)
    assert api.reasons == [f"Seen{number}" for number in range(20)]


async def test_event_is_lost_with_a_warning_if_the_api_server_is_too_slow(caplog: pytest.LogCaptureFixture) -> None:
    api = EventsApi()
    api.responds.clear()
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for number in range(256):
            await request.event("Seen", f"note {number}")
        lost = asyncio.create_task(request.event("Lost", "note"))
        await asyncio.sleep(0)
        clock.advance(timedelta(seconds=6))
        await lost
    assert "event Lost of a was not recorded: the API server is too slow" in caplog.text


async def test_failed_write_of_an_event_does_not_stop_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    api = EventsApi(failures=[ApiError(422, "Invalid", "the event is invalid"), ValueError("'/' is not a name")])
    [request] = requests_to(api, 1)
    for reason in ("First", "Second", "Third"):
        await request.event(reason, "note")
    await eventually(lambda: api.reasons == ["Third"])
    assert caplog.text.count("was not recorded") == 2


UNAVAILABLE = ApiError(503, "ServiceUnavailable", "try again")


@pytest.mark.parametrize(
    "failure",
    [
        UNAVAILABLE,
        ApiError(429, "TooManyRequests", "slow down"),
        Unreachable("closed", "the connection was closed"),
        UnusableKubeconfig("no credential"),
        NotLeading("the cluster moved"),
    ],
)
async def test_event_is_retried_after_a_transient_failure(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    api = EventsApi(failures=[failure])
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for reason in ("First", "Second"):
            await request.event(reason, "note")
        await eventually(lambda: len(api.calls) == 1)
        clock.advance(timedelta(seconds=2))
        await eventually(lambda: api.reasons == ["First", "Second"])
    assert "was not recorded" not in caplog.text


async def test_event_is_not_retried_before_the_time_that_the_api_server_states() -> None:
    api = EventsApi(failures=[ApiError(429, "TooManyRequests", "slow down", retry_after_s=60.0)])
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        await request.event("Created", "note")
        await eventually(lambda: len(api.calls) == 1)
        clock.advance(timedelta(seconds=59))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(api.calls) == 1
        clock.advance(timedelta(seconds=3))
        await eventually(lambda: api.counts == [1])


async def test_event_whose_response_was_lost_is_not_reported_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    api = EventsApi(failures=[Unreachable("closed", "closed"), AlreadyExists(409, "AlreadyExists", "it exists")])
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for reason in ("First", "Second"):
            await request.event(reason, "note")
        await eventually(lambda: len(api.calls) == 1)
        clock.advance(timedelta(seconds=2))
        await eventually(lambda: api.reasons == ["Second"])
    assert "was not recorded" not in caplog.text


async def test_events_are_lost_together_when_they_were_retried_for_two_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = EventsApi(failures=[UNAVAILABLE] * 100)
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        for number in range(256):
            await request.event("Seen", f"note {number}")
        attempts = 0
        while "was not recorded" not in caplog.text:
            await eventually(lambda: len(api.calls) > attempts)  # noqa: B023  (awaited)
            attempts = len(api.calls)
            clock.advance(timedelta(seconds=10))
        assert 12 <= attempts <= 14
        api.failures.clear()
        await request.event("Last", "note")
        clock.advance(timedelta(seconds=10))
        await eventually(lambda: api.reasons == ["Last"])


async def test_reconcile_does_not_wait_for_an_api_server_that_refuses_events(caplog: pytest.LogCaptureFixture) -> None:
    api = EventsApi(failures=[UNAVAILABLE])
    with fake_clock():
        [request] = requests_to(api, 1)
        await request.event("Seen", "first")
        await eventually(lambda: len(api.calls) == 1)
        for number in range(255):
            await request.event("Seen", f"note {number}")
        await request.event("Lost", "note")
    assert "event Lost of a was not recorded: try again" in caplog.text


async def test_pending_events_that_cannot_be_written_at_the_end_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milo_controllers.event_recorder._FLUSH_S", 0.0)
    api = EventsApi(failures=[UNAVAILABLE])
    [request] = requests_to(api, 1)
    for number in range(3):
        await request.event("Seen", f"note {number}")
    await eventually(lambda: len(api.calls) == 1)
    await request._member.events.aclose(is_engaged=True)
    assert "shop: 3 events were not recorded: try again" in caplog.text


@pytest.mark.parametrize("refuses", [True, False])
async def test_cluster_that_records_no_events_delays_neither_the_lead_of_another_replica_nor_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, refuses: bool
) -> None:
    monkeypatch.setattr("milo_controllers.event_recorder._FLUSH_S", 3600.0)
    api = EventsApi(failures=[ApiError(503, "ServiceUnavailable", "try again", retry_after_s=3600)])
    [request] = requests_to(api, 1)
    events = request._member.events
    if refuses:
        monkeypatch.setattr("milo_controllers.event_recorder._FLUSH_LEADING_S", 3600.0, raising=False)
    else:
        api.responds.clear()
    await request.event("Seen", "note")
    await eventually(lambda: not refuses or events._retried is not None)
    async with asyncio.timeout(20):
        await events.flush()
        await events.aclose(is_engaged=True)
    assert "shop: 1 events were not recorded" in caplog.text


async def test_events_that_are_lost_for_one_cause_are_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Forbidding(EventsApi):
        async def send(self, method: str, *_arguments: Any, **_options: Any) -> Document:
            self.calls.append(method)
            raise ApiError(403, "Forbidden", f"events {len(self.calls)} is forbidden")

    api, failures = Forbidding(), FailureLog()
    with fake_clock() as clock:
        [request] = requests_to(api, 1)
        request._member.events._failures = failures
        for number in range(20):
            await request.event("Seen", f"note {number}")
        await eventually(lambda: len(api.calls) == 20)
        clock.advance(timedelta(seconds=31))
        [summary] = failures.summaries(asyncio.get_running_loop().time())
    assert caplog.text.count("was not recorded") == 1
    assert (summary.failures, summary.what) == (19, "shop: event Seen of a was not recorded: events 20 is forbidden")


@pytest.mark.parametrize("is_engaged", [True, False])
async def test_pending_events_are_written_at_the_end_while_the_cluster_is_engaged(*, is_engaged: bool) -> None:
    api = EventsApi()
    [request] = requests_to(api, 1)
    for _ in range(5):
        await request.event("Created", "note")
    await request._member.events.aclose(is_engaged=is_engaged)
    assert api.counts == ([5] if is_engaged else [])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"note": 5}, TypeError, r"event: note=5: write a string, such as str\(error\)"),
        ({"note": ValueError("no")}, TypeError, r"note=ValueError\('no'\)"),
        ({"reason": ""}, ValueError, "event: reason='': write a string that is not empty"),
        ({"reason": None}, TypeError, "reason=None"),
        ({"type": "Error"}, ValueError, 'event: type=\'Error\': write "Normal" or "Warning"'),
        ({"action": ""}, ValueError, "action=''"),
    ],
)
async def test_invalid_event_is_refused_at_each_call_and_starts_no_series(
    content: dict[str, Any], error: type[Exception], message: str
) -> None:
    api = EventsApi()
    [request] = requests_to(api, 1)
    for _ in range(2):
        with pytest.raises(error, match=message):
            await request.event(**{"reason": "Created", "note": "note", **content})
    assert api.calls == []


async def test_recorder_that_is_canceled_while_it_ends_leaves_no_task_that_writes_events() -> None:
    api = EventsApi()
    api.responds.clear()
    [request] = requests_to(api, 1)
    await request.event("Created", "made it")
    before = asyncio.all_tasks()
    ending = asyncio.create_task(request._member.events.aclose(is_engaged=True))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not [task for task in before if task is not asyncio.current_task() and not task.done()]
