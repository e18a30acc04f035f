"""A server that holds its connections and answers nobody, and one that is merely quiet."""

import asyncio

import pytest
from aiohttp import web

from milo_kube import list_watch
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.source_status import SourceState
from tests.integration.watchers.test_driver import (
    QUICK,
    Played,
    Said,
    answering,
    bookmark,
    line,
    listing,
    project,
    running,
)
from tests.support.eventually import eventually

OFTEN = LivenessPolicy(every_s=0.06)
SELDOM = LivenessPolicy(every_s=0.15)
"""Leaves a busy machine the time to answer."""
PAGES = ReflectorPolicy(streaming_lists=False, backoff=QUICK)


async def test_watch_of_hung_server_is_abandoned_and_resumed() -> None:
    played = Played()
    hung, resumed = Said(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)), Said()
    played.watches = [hung, resumed]
    async with running(played, liveness=OFTEN) as run:
        await run.synced()
        await resumed.asked.wait()
        assert hung.gone.is_set(), "its connection is dropped before another is made"
        assert played.queries[-1]["resourceVersion"] == "5"
        resumed.say(line("ADDED", project("beta", 6)))
        await run.tells("ENGAGED alpha", "ENGAGED beta")


async def test_hung_server_is_reported_as_unresponsive() -> None:
    played = Played()
    played.watches = [Said(bookmark(5, ends_list=True))]
    patient = ReflectorPolicy(backoff=Backoff(first_s=60.0))
    async with running(played, patient, OFTEN) as run:
        await run.synced()
        await eventually(lambda: run.fleet.status.state is SourceState.STALE)
        assert run.fleet.status.reason == "Unresponsive"
        assert run.fleet.status.message == "the server did not answer 3 requests for /livez in a row, 0.06 s apart"


async def test_hung_server_before_first_answer_is_abandoned() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    played = Played()
    then = Said(bookmark(5, ends_list=True))
    played.watches = [never, then]
    async with running(played, liveness=OFTEN) as run:
        await run.synced()


async def test_hung_watch_of_otherwise_live_server_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    monkeypatch.setattr(list_watch, "WATCH_RESPONSE_TIMEOUT_S", 0.1)
    played = Played()
    played.alive = answering(web.Response)
    played.watches = [never]
    async with running(played, ReflectorPolicy(backoff=Backoff(first_s=60.0))) as run:
        await eventually(lambda: run.fleet.status.reason == "Timeout")
        assert run.fleet.status.message == "no response to the watch request within 0.1 s"


async def test_hung_list_is_abandoned() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    played = Played()
    played.lists = [never, listing(7, project("alpha", 1))]
    async with running(played, PAGES, OFTEN) as run:
        await run.tells("ENGAGED alpha")


@pytest.mark.parametrize("status", [200, 403, 500])
async def test_any_answer_proves_liveness(status: int) -> None:
    played = Played()
    played.alive = answering(lambda: web.Response(status=status))
    watch = Said(bookmark(5, ends_list=True))
    played.watches = [watch]
    async with running(played, liveness=SELDOM) as run:
        await run.synced()
        await eventually(lambda: len(run.looks) > SELDOM.misses)
        assert set(run.looks) == {"answered"}
        assert run.fleet.status.state is SourceState.STREAMING
        assert not watch.gone.is_set()


async def test_watch_survives_closed_listener_of_terminating_server() -> None:
    # As after SIGTERM: new connections are refused, and open ones are served for another minute.
    played = Played()
    watch = Said(bookmark(5, ends_list=True))
    played.watches = [watch]
    played.alive = answering(lambda: web.Response(headers={"Connection": "close"}))
    async with running(played, liveness=OFTEN) as run:
        await run.synced()
        await run.server.refuse()
        await eventually(lambda: run.looks.count("connect") > 2 * OFTEN.misses)
        watch.say(line("ADDED", project("alpha", 6)))
        await run.tells("ENGAGED alpha")
        assert run.fleet.status.state is SourceState.STREAMING
