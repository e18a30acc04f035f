"""Who waits for a renewal, and who doesn't."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery import Kubeconfig, Unavailable
from milo_discovery._renewal import LoopRenewal, ThreadRenewal, ThroughLoop

from .eventually import eventually
from .kubeconfigs import text, value

LIFE = timedelta(minutes=10)
FRESH, DUE, OVER = timedelta(), 0.6 * LIFE, LIFE
AWAY = Unavailable("nobody answers", code="UNAVAILABLE")


def kubeconfig(token: str, age: timedelta = FRESH) -> Kubeconfig:
    return value(text(token=token), now=datetime.now(UTC), age=age, life=LIFE)


class Daemon:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[Kubeconfig] = asyncio.get_running_loop().create_future()

    async def issue(self) -> Kubeconfig:
        self.asked += 1
        return await asyncio.shield(self.answer)


@pytest.fixture
async def daemon():
    return Daemon()


@pytest.fixture
async def renewal(daemon):
    renewal = LoopRenewal(daemon.issue)
    yield renewal
    await renewal.close()


class TestOnALoop:
    async def test_a_fresh_one_is_used_and_nobody_asked(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("held"))
        assert (await renewal.access()).token == "held"
        assert daemon.asked == 0

    async def test_while_the_next_is_got_the_old_one_is_used_and_nobody_waits(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("held", DUE))
        assert {(await renewal.access()).token for _ in range(100)} == {"held"}
        await eventually(lambda: daemon.asked)
        daemon.answer.set_result(kubeconfig("next"))
        await renewal.begin()
        assert (await renewal.access()).token == "next"
        assert daemon.asked == 1

    async def test_all_who_have_none_wait_for_one_answer(self, renewal, daemon):
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(renewal.access()) for _ in range(100)]
            await eventually(lambda: daemon.asked)
            daemon.answer.set_result(kubeconfig("next"))
        assert {each.result().token for each in waiting} == {"next"}
        assert daemon.asked == 1

    async def test_one_who_stops_waiting_ends_nothing_for_the_others(self, renewal, daemon):
        impatient, patient = asyncio.create_task(renewal.access()), asyncio.create_task(renewal.access())
        await eventually(lambda: daemon.asked)
        impatient.cancel()
        await asyncio.wait([impatient])
        daemon.answer.set_result(kubeconfig("next"))
        assert (await patient).token == "next"

    async def test_a_failure_is_logged_and_hurts_nobody_who_has_a_good_one(self, renewal, daemon, caplog):
        renewal.credentials.offer(kubeconfig("held", DUE))
        daemon.answer.set_exception(AWAY)
        with caplog.at_level(logging.WARNING):
            assert (await renewal.access()).token == "held"
            await eventually(lambda: caplog.messages)
        assert caplog.messages == ["credential not renewed: nobody answers"]
        assert (await renewal.access()).token == "held"

    async def test_without_a_good_one_the_reason_is_raised(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("held", OVER))
        daemon.answer.set_exception(AWAY)
        with pytest.raises(Unavailable):
            await renewal.access()

    async def test_renewals_that_are_sent_are_taken_and_not_asked_for(self, daemon):
        sent = [kubeconfig("first")]
        renewal = LoopRenewal(daemon.issue, lambda: sent[-1])
        assert (await renewal.access()).token == "first"
        sent.append(kubeconfig("second", -timedelta(seconds=1)))
        assert (await renewal.access()).token == "second"
        assert daemon.asked == 0

    async def test_a_refused_token_is_replaced_by_what_is_newer(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("revoked"))
        daemon.answer.set_result(kubeconfig("next"))
        assert (await renewal.after_refusal("revoked")).token == "next"
        assert (await renewal.after_refusal("revoked")).token == "next"
        assert daemon.asked == 1

    async def test_a_refused_token_stays_where_nothing_newer_can_be_had(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("revoked"))
        daemon.answer.set_exception(AWAY)
        assert (await renewal.after_refusal("revoked")).token == "revoked"


class TestThroughALoop:
    async def test_a_thread_waits_for_what_the_loop_gets(self, renewal, daemon):
        daemon.answer.set_result(kubeconfig("next"))
        assert (await asyncio.to_thread(ThroughLoop(renewal).access)).token == "next"

    async def test_a_thread_with_a_good_one_does_not_wait(self, renewal, daemon):
        renewal.credentials.offer(kubeconfig("held", DUE))
        assert (await asyncio.to_thread(ThroughLoop(renewal).access)).token == "held"
        await eventually(lambda: daemon.asked == 1)

    async def test_the_loops_own_thread_is_never_blocked(self, renewal):
        with pytest.raises(RuntimeError, match=r"api_client\(\) there"):
            ThroughLoop(renewal).access()

    async def test_on_the_loops_own_thread_a_good_one_can_be_used(self, renewal):
        renewal.credentials.offer(kubeconfig("held"))
        assert ThroughLoop(renewal).access().token == "held"


class TestInThreads:
    def test_all_who_have_none_wait_for_one_answer(self):
        asked, go = threading.Semaphore(0), threading.Event()

        def issue() -> Kubeconfig:
            asked.release()
            go.wait()
            return kubeconfig("next")

        renewal = ThreadRenewal(issue)
        tokens: list[str | None] = []
        threads = [threading.Thread(target=lambda: tokens.append(renewal.access().token)) for _ in range(20)]
        for each in threads:
            each.start()
        asked.acquire()
        go.set()
        for each in threads:
            each.join()
        renewal.close()
        assert tokens == ["next"] * 20
        assert not asked.acquire(blocking=False)

    def test_who_has_a_good_one_does_not_wait(self):
        go = threading.Event()

        def issue() -> Kubeconfig:
            go.wait()
            return kubeconfig("next")

        renewal = ThreadRenewal(issue)
        renewal.credentials.offer(kubeconfig("held", DUE))
        assert renewal.access().token == "held"
        go.set()
        renewal.close()
        assert renewal.access().token == "next"

    def test_without_a_good_one_the_reason_is_raised(self):
        def issue() -> Kubeconfig:
            raise AWAY

        renewal = ThreadRenewal(issue)
        with pytest.raises(Unavailable):
            renewal.access()
        renewal.close()
