"""A server that keeps its connections open without responding, and one that is merely idle."""

import asyncio
import math
from datetime import timedelta

import pytest
from aiohttp import web

from milo_discovery.testing import fake_clock
from milo_kube import list_watch
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from tests.integration.watchers.test_driver import (
    QUICK,
    ScriptedResponse,
    ScriptedServer,
    answering,
    bookmark,
    line,
    listing,
    project,
    running,
)
from tests.support.eventually import LIMIT_S, eventually

OFTEN = LivenessPolicy(every_s=0.06)
SELDOM = LivenessPolicy(every_s=60.0)
"""An interval that does not elapse during a test, even on a busy machine; the test advances the clock."""
PAGES = ReflectorPolicy(streaming_lists=False, backoff=QUICK, liveness=OFTEN)


async def test_watch_of_hung_server_is_abandoned_and_resumed() -> None:
    server_script = ScriptedServer()
    hung, resumed = (
        ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(5, ends_list=True)),
        ScriptedResponse(),
    )
    server_script.watches = [hung, resumed]
    async with running(server_script, ReflectorPolicy(backoff=QUICK, liveness=OFTEN)) as run:
        await run.synced()
        await resumed.asked.wait()
        assert hung.gone.is_set(), "a connection was opened before the hung one was closed"
        assert server_script.queries[-1]["resourceVersion"] == "5"
        resumed.send(line("ADDED", project("beta", 6)))
        await run.expect_events("ENGAGED alpha", "ENGAGED beta")


async def test_hung_server_is_reported_as_unresponsive() -> None:
    server_script = ScriptedServer()
    server_script.watches = [ScriptedResponse(bookmark(5, ends_list=True))]
    patient = ReflectorPolicy(backoff=Backoff(first_s=60.0), liveness=OFTEN)
    async with running(server_script, patient) as run:
        await run.synced()
        await eventually(lambda: run.source.status.state is ViewState.STALE)
        assert run.source.status.reason == "Unresponsive"
        assert run.source.status.message == (
            "the server does not answer /livez: 3 requests in a row, 0.06 s apart, got no answer or an error"
        )


async def test_watch_of_server_that_hangs_before_its_first_response_is_abandoned() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    server_script = ScriptedServer()
    then = ScriptedResponse(bookmark(5, ends_list=True))
    server_script.watches = [never, then]
    async with running(server_script, ReflectorPolicy(backoff=QUICK, liveness=OFTEN)) as run:
        await run.synced()


async def test_watch_request_without_response_from_a_live_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    monkeypatch.setattr(list_watch, "WATCH_RESPONSE_TIMEOUT_S", 0.1)
    server_script = ScriptedServer()
    server_script.alive = answering(web.Response)
    server_script.lists, server_script.watches = [listing(7)], [never]
    policy = ReflectorPolicy(streaming_lists=False, backoff=Backoff(first_s=60.0))
    async with running(server_script, policy) as run:
        await eventually(lambda: run.source.status.reason == "Timeout")
        assert run.source.status.message == "no response to the watch request within 0.1 s"


async def test_source_is_stale_once_a_silent_watch_is_resumed_without_a_response_for_the_time_between_bookmarks() -> (
    None
):
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    server_script = ScriptedServer()
    server_script.alive = answering(web.Response)
    server_script.watches = [ScriptedResponse(bookmark(5, ends_list=True)), never]
    async with running(server_script, ReflectorPolicy(silence_s=0.1, backoff=Backoff(first_s=60.0))) as run:
        await eventually(lambda: run.source.status.reason == "Timeout")
        assert run.source.status.message == "no response to the watch request within 0.1 s"


async def test_list_is_read_in_pages_if_a_live_server_does_not_answer_the_streaming_list() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    server_script = ScriptedServer()
    server_script.alive = answering(web.Response)
    server_script.watches, server_script.lists = [never], [listing(7, project("alpha", 1))]
    async with running(server_script, ReflectorPolicy(fill_silence_s=0.1, backoff=Backoff(first_s=60.0))) as run:
        await run.expect_events("ENGAGED alpha")


async def test_watch_whose_refusal_does_not_end_is_refused_by_its_status() -> None:
    async def refusing(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=410, headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"kind": "Status", ')
        return await asyncio.Future()

    server_script = ScriptedServer()
    listed, again = (
        ScriptedResponse(line("ADDED", project("alpha", 1)), bookmark(version, ends_list=True)) for version in (5, 7)
    )
    server_script.watches = [listed, refusing, again]
    async with running(server_script, ReflectorPolicy(backoff=QUICK, liveness=SELDOM), request_timeout_s=0.1) as run:
        await run.synced()
        listed.cut()
        async with asyncio.timeout(LIMIT_S):
            await again.asked.wait()
        assert "resourceVersion" not in server_script.queries[-1]


async def test_hung_list_is_abandoned() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    server_script = ScriptedServer()
    server_script.lists = [never, listing(7, project("alpha", 1))]
    async with running(server_script, PAGES) as run:
        await run.expect_events("ENGAGED alpha")


@pytest.mark.parametrize("status", [200, 403, 404])
async def test_liveness_probe_accepts_responses_that_are_not_server_errors(status: int) -> None:
    server_script = ScriptedServer()
    server_script.alive = answering(lambda: web.Response(status=status))
    watch = ScriptedResponse(bookmark(5, ends_list=True))
    server_script.watches = [watch]
    never_silent = ReflectorPolicy(backoff=QUICK, silence_s=math.inf, liveness=SELDOM)
    with fake_clock() as clock:
        async with running(server_script, never_silent) as run:
            await run.synced()
            for checks in range(1, SELDOM.misses + 2):
                clock.advance(timedelta(seconds=SELDOM.every_s))
                await eventually(lambda: len(run.reads) >= checks)  # noqa: B023 - awaited in this iteration
            assert set(run.reads) == {"answered"}
            assert run.source.status.state is ViewState.STREAMING
            assert not watch.gone.is_set()


async def test_server_whose_liveness_check_fails_is_stale_until_it_succeeds() -> None:
    server_script = ScriptedServer()
    checks = [b"[+]ping ok\n[-]etcd failed: reason withheld\nlivez check failed\n"]
    server_script.alive = answering(
        lambda: web.Response(status=500, body=checks[0]) if checks else web.Response(text="ok")
    )
    # The watch cache of such a server serves watches, and has nothing new.
    watches = [ScriptedResponse(bookmark(5, ends_list=True)), *(ScriptedResponse() for _ in range(20))]
    server_script.watches = list(watches)
    async with running(server_script, ReflectorPolicy(backoff=QUICK, liveness=OFTEN)) as run:
        await run.synced()
        # On a busy machine, some checks may time out before one is answered with status 500. Then the watch is opened
        # again.
        failure = "the server answers /livez with 500: [-]etcd failed: reason withheld"
        await eventually(lambda: run.source.status.message == failure)
        opened = sum(watch.asked.is_set() for watch in watches)
        failed = run.reads.count("failed")
        await eventually(lambda: run.reads.count("failed") > failed + 4 * OFTEN.misses)
        status = run.source.status
        assert (status.state, status.reason) == (ViewState.STALE, "Unresponsive")
        assert sum(watch.asked.is_set() for watch in watches) == opened
        checks.clear()
        await watches[opened].asked.wait()
        await eventually(lambda: run.source.status.state is ViewState.STREAMING)
