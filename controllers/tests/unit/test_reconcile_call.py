"""Calls of reconcilers that are plain functions, in threads."""

import asyncio
import gc
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers import ApiError, NotLeading, Permanent, ProjectSuspended, reconcile_call
from milo_controllers.errors import ReconcileTimeout, cause_of
from milo_controllers.event_loop import EventLoop, ThreadCalls
from milo_controllers.reconcile_call import ReconcileCall, failed_outcome
from milo_controllers.work_queue import Done, Failed, Interrupted, Outcome, Parked, Stopped
from tests.support.eventually import eventually


class FakeRequest:
    def __init__(self) -> None:
        self.cluster = SimpleNamespace(engaged=True)
        self.is_ended = False

    def end(self, *, is_canceled: bool = False) -> None:
        self.is_ended = True


async def test_canceled_call_that_waits_for_a_thread_is_never_begun() -> None:
    called: list[FakeRequest] = []
    begun, may_end = threading.Event(), threading.Event()

    def reconcile(request: Any) -> None:
        called.append(request)
        begun.set()
        may_end.wait(60)

    call, first, second, third = ReconcileCall(reconcile, timeout_s=None, workers=1), *(FakeRequest() for _ in "123")
    async with asyncio.TaskGroup() as tasks:
        running, canceled, disengaged = (tasks.create_task(call.outcome(of)) for of in (first, second, third))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait)
        canceled.cancel()
        third.cluster.engaged = False
        may_end.set()
    call.close()
    assert called == [first]
    assert (running.result(), canceled.cancelled(), disengaged.result()) == (Done(), True, Interrupted())


async def test_call_for_which_no_thread_can_be_started_does_not_run_beside_its_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[FakeRequest] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    call, failed, retried = ReconcileCall(called.append, timeout_s=None, workers=1), FakeRequest(), FakeRequest()
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await call.outcome(failed)  # type: ignore[arg-type]
    await call.outcome(retried)  # type: ignore[arg-type]
    call.close()
    assert called == [retried]


async def test_call_that_is_sent_while_its_reconcile_is_canceled_does_not_run() -> None:
    calls = ThreadCalls(EventLoop())
    scheduled, ran = threading.Event(), []

    async def write() -> None:
        ran.append(True)

    def in_thread() -> None:
        calls.wait(write())

    schedule = calls._loop.schedule

    def schedule_and_tell(function: Any) -> None:
        schedule(function)
        scheduled.set()

    calls._loop = SimpleNamespace(  # type: ignore[assignment]
        schedule=schedule_and_tell, is_here=False, result_of=calls._loop.result_of
    )
    waiting = asyncio.get_running_loop().run_in_executor(None, in_thread)
    scheduled.wait(60)  # blocks the event loop, which has not started the call
    calls.end()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ran == []


@pytest.mark.parametrize("is_in_flight", [True, False])
async def test_cleanup_of_a_thread_may_call_until_it_may_not(*, is_in_flight: bool) -> None:
    calls, loop = ThreadCalls(EventLoop()), asyncio.get_running_loop()
    waiting, begun, may_continue = asyncio.Event(), threading.Event(), threading.Event()
    results: list[str] = []
    may_clean_up = True

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def write(what: str) -> str:
        return what

    def in_thread() -> None:
        begun.set()
        if not is_in_flight:
            may_continue.wait(60)
        try:
            calls.wait(wait())
        finally:
            results.append(calls.wait(write("cleaned up")))
            loop.call_soon_threadsafe(end)
            results.append(calls.wait(write("after the end")))

    def end() -> None:
        nonlocal may_clean_up
        may_clean_up = False

    thread = loop.run_in_executor(None, in_thread)
    await (waiting.wait() if is_in_flight else asyncio.to_thread(begun.wait))
    calls.cancel(lambda: may_clean_up)
    may_continue.set()
    with pytest.raises(asyncio.CancelledError):
        await thread
    assert results == ["cleaned up"]


async def test_except_exception_in_a_thread_does_not_catch_the_cancellation() -> None:
    """Found by a reader: a plain function with such a clause around each write did all of them in a drain."""
    calls, waiting = ThreadCalls(EventLoop()), asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    def in_thread() -> None:
        with suppress(Exception):
            calls.wait(wait())
        raise AssertionError("the thread runs on")

    thread = asyncio.get_running_loop().run_in_executor(None, in_thread)
    await waiting.wait()
    calls.cancel(lambda: True)
    with pytest.raises(asyncio.CancelledError):
        await thread


async def test_call_does_not_begin_in_a_thread_after_the_lease_was_lost() -> None:
    called: list[Any] = []
    is_leader = [True]
    begun, may_end = threading.Event(), threading.Event()

    def reconcile(request: Any) -> None:
        called.append(request)
        begun.set()
        may_end.wait(60)

    call = ReconcileCall(reconcile, timeout_s=None, workers=1, may_begin=lambda: is_leader[0])
    first, second = FakeRequest(), FakeRequest()
    async with asyncio.TaskGroup() as tasks:
        for request in (first, second):
            outcome = tasks.create_task(call.outcome(request))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait)
        is_leader[0] = False
        may_end.set()
    call.close()
    assert called == [first]
    assert first.is_ended
    assert outcome.result() == Interrupted()


async def test_error_of_a_thread_during_its_cleanup_is_raised_and_its_cancellation_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def reconcile(request: Any) -> None:
        begun.set()
        may_end.wait(60)
        if request is failing:
            raise OSError("the cleanup failed")
        raise asyncio.CancelledError

    call = ReconcileCall(reconcile, timeout_s=None, workers=1)
    failing, canceled = FakeRequest(), FakeRequest()
    for request, error in ((failing, OSError), (canceled, asyncio.CancelledError)):
        task = asyncio.create_task(call.outcome(request))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait)
        task.cancel()
        may_end.set()
        with pytest.raises(error):
            await task
        begun.clear()
        may_end.clear()
    del task
    gc.collect()
    call.close()
    assert caplog.records == []


async def test_thread_that_continues_a_canceled_reconcile_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_call, "HANGS_AFTER_S", 0.01)
    may_end = threading.Event()
    call = ReconcileCall(lambda _: may_end.wait(60) and None, timeout_s=0.01, workers=1)
    calling = asyncio.create_task(call.outcome(FakeRequest()))  # type: ignore[arg-type]
    await eventually(lambda: caplog.records)
    assert "its thread still runs" in caplog.text
    may_end.set()
    with pytest.raises(ReconcileTimeout):
        await calling
    call.close()


async def test_reconcile_that_raises_stop_iteration_fails() -> None:
    def reconcile(_request: Any) -> None:
        next(iter(()))

    call = ReconcileCall(reconcile, timeout_s=None, workers=1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(10):
            await call.outcome(FakeRequest())  # type: ignore[arg-type]
    call.close()


class Panic(BaseException):
    """What an extension in Rust raises, as of pydantic or cryptography."""


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (SystemExit(2), "SystemExit"),
        (Panic("of an extension"), "Panic"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "canceled, but not by its controller"),
    ],
)
async def test_plain_reconciler_that_raises_no_exception_fails(raised: BaseException, error: str) -> None:
    def reconcile(_request: Any) -> None:
        raise raised

    call = ReconcileCall(reconcile, timeout_s=None, workers=1)
    with pytest.raises(RuntimeError, match=error):
        await call.outcome(FakeRequest())  # type: ignore[arg-type]
    call.close()


@pytest.mark.parametrize("raised", [SystemExit(2), Panic("of an extension"), GeneratorExit()])
async def test_async_reconciler_that_raises_no_exception_fails(raised: BaseException) -> None:
    async def reconcile(_request: Any) -> None:
        raise raised

    with pytest.raises(RuntimeError, match=type(raised).__name__):
        await ReconcileCall(reconcile, timeout_s=None, workers=1).outcome(FakeRequest())  # type: ignore[arg-type]


def test_reconcile_that_never_ends_is_closed_with_its_task() -> None:
    ended: list[BaseException] = []

    async def reconcile(_request: Any) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(error)
            raise

    loop = asyncio.new_event_loop()
    reconciling = ReconcileCall(reconcile, timeout_s=None, workers=1).outcome(FakeRequest())  # type: ignore[arg-type]
    task = loop.create_task(reconciling)
    loop.run_until_complete(asyncio.sleep(0))
    reconciling.close()
    assert [type(error) for error in ended] == [GeneratorExit]
    assert task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


async def test_call_of_a_thread_that_exits_fails() -> None:
    calls = ThreadCalls(EventLoop())

    async def exit_() -> None:
        sys.exit("a library ends the process")

    with pytest.raises(RuntimeError, match="SystemExit: a library ends the process"):
        await asyncio.to_thread(lambda: calls.wait(exit_()))


@pytest.mark.parametrize("waited", [None, iter(()), asyncio.Event().wait])
async def test_thread_that_waits_for_no_coroutine_does_not_wait_forever(waited: Any) -> None:
    calls = ThreadCalls(EventLoop())
    with pytest.raises(TypeError, match="takes a coroutine"):
        await asyncio.to_thread(calls.wait, waited)


BUSY = ApiError(429, "TooManyRequests", "later", retry_after_s=60.0)


class OtherError(Exception):
    """An error of an author's library, whose delay is no number."""

    retry_after_s = "60"


SUSPENDED = ProjectSuspended(403, "Forbidden", "the project is suspended")


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([Permanent("no number")], Stopped("no number")),
        ([SUSPENDED, Permanent("no number")], Parked()),
        ([SUSPENDED, BUSY, ValueError()], Failed(60.0)),
        ([ValueError(), Permanent("no number")], Failed()),
        ([Permanent("no number"), Permanent("no name")], Stopped("no number")),
        ([NotLeading("not sent"), NotLeading("not sent")], Interrupted()),
        ([SUSPENDED, NotLeading("not sent")], Interrupted()),
        ([ValueError(), NotLeading("not sent")], Failed()),
        ([OtherError(), ValueError()], Failed()),
    ],
)
async def test_errors_of_a_task_group_mean_what_they_mean_alone(errors: list[Exception], outcome: Outcome) -> None:
    async def reconcile(_request: Any) -> None:
        raise ExceptionGroup("some", errors)

    cluster: Any = SimpleNamespace(current=SimpleNamespace(suspended=True, deletion_requested_at=None))
    call = ReconcileCall(reconcile, timeout_s=None, workers=1)
    with pytest.raises(Exception) as raised:
        await call.outcome(FakeRequest())  # type: ignore[arg-type]
    assert failed_outcome(cause_of(raised.value), cluster) == outcome
