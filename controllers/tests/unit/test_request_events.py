"""Requests that record events in an API server without events.k8s.io, such as Milo's."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.errors import NotServed
from milo_controllers.event_log import EventLog
from milo_controllers.event_recorder import EventRecorder
from milo_controllers.kinds import Document, Kind
from milo_controllers.request import Request
from milo_controllers.work_queue import ObjectKey, Work
from tests.support.eventually import eventually

OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default", "uid": "u"}}


class CoreEventsApi:
    """An API server that responds to events of events.k8s.io with 404, in the order that the test chooses."""

    def __init__(self) -> None:
        self.name = "shop"
        self.refused: list[asyncio.Event] = []
        self.created: list[str] = []

    async def send(self, method: str, path: str, query: object, body: Document, **_: object) -> Document:
        del method, query
        if "events.k8s.io" in path:
            answers = asyncio.Event()
            self.refused.append(answers)
            await answers.wait()
            raise NotServed(404, "", "404 page not found")
        self.created.append(body["reason"])
        return body


class FixedRequest(Request[Document]):
    async def _whole_document(self) -> Document:
        return OBJECT


def requests_to(api: Any, count: int) -> list[FixedRequest]:
    """Return requests of reconciles in one cluster, which share its events."""
    view: Any = SimpleNamespace(cluster=SimpleNamespace(name="shop"))
    member: Any = SimpleNamespace(api=api, view=view, events=EventRecorder(api, EventLog("operator", "pod")))
    work = Work(ObjectKey("shop", 1, "default", "a"), 0.0, 0)
    kind = Kind("v1/configmaps")
    return [FixedRequest(kind, work, member, clusters=view, field_manager="m") for _ in range(count)]


async def test_event_is_resent_to_core_group_after_another_reconcile_switched_to_that_group() -> None:
    api = CoreEventsApi()
    requests = requests_to(api, 2)
    async with asyncio.TaskGroup() as tasks:
        for request, reason in zip(requests, ("First", "Second"), strict=True):
            tasks.create_task(request.event(reason, "note"))
        await eventually(lambda: len(api.refused) == 2)
        api.refused[0].set()
        await eventually(lambda: api.created == ["First"])
        api.refused[1].set()
    assert api.created == ["First", "Second"]


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
    api = CoreEventsApi()
    [request] = requests_to(api, 1)
    for _ in range(2):
        with pytest.raises(error, match=message):
            await request.event(**{"reason": "Created", "note": "note", **content})
    assert (api.created, api.refused) == ([], [])
