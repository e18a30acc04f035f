"""One call of an author's reconciler: its time limit, its thread if it is a plain function, and its result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from milo_controllers.errors import Permanent, ReconcileTimeout, text_of
from milo_controllers.event_loop import EventLoop
from milo_controllers.functions import call_in_thread, is_async
from milo_controllers.request import Request, Result
from milo_controllers.work_queue import Done, Failed, Interrupted, Outcome, Parked, Stopped
from milo_discovery.api_errors import ApiError, NotLeading, ProjectSuspended
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.model import Cluster
from milo_kube.task_groups import cancelled_from_outside, closed_from_outside, wait_uninterrupted
from milo_kube.user_code import not_an_exception

log = logging.getLogger("milo_controllers")

HANGS_AFTER_S = 10.0
"""How long a thread may continue a canceled call before that is logged."""

T = TypeVar("T")
Reconciler = Callable[[Request[T]], Awaitable[Result | None] | Result | None]
"""An async function, or a plain one, which is called in a thread."""


class ReconcileCall:
    """Calls a reconciler with its timeout, in a thread if it is a plain function."""

    def __init__(
        self,
        reconciler: Reconciler[Any],
        *,
        timeout_s: float | None,
        workers: int,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """`workers`: maximum concurrent calls. Each has a thread, so that no call of a plain function waits for one.

        `may_begin` is asked in the event loop when a thread is about to call the function.
        """
        self._reconciler = reconciler
        self._timeout_s = timeout_s
        self._may_begin = may_begin
        self.context = copy_context()
        """To copy for each task that calls. The present one may be of an earlier call, even for another cluster."""
        self._threads = None if is_async(reconciler) else ThreadPoolExecutor(workers, thread_name_prefix="reconcile")

    def close(self) -> None:
        """Start no further threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    async def outcome(self, request: Request[Any]) -> Done | Interrupted:
        """Call the reconciler, and return the outcome of its success. Raises its errors, and ReconcileTimeout."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                result = await self._called(request)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ReconcileTimeout(
                f"the reconcile was canceled after {self._timeout_s:g} s; pass timeout= if it needs longer"
            ) from error
        except asyncio.CancelledError as cancelled:
            if cancelled_from_outside():
                raise
            raise RuntimeError("the reconcile was canceled, but not by its controller") from cancelled
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and closed_from_outside(task):
                raise
            raise not_an_exception(error) from None
        finally:
            request.end()  # also for a thread that an async reconciler has started
        if result is None:
            return Done()
        if isinstance(result, Interrupted):
            return result
        if not isinstance(result, Result):
            raise TypeError(f"the reconciler returned {result!r}: return None or a Result")
        after = result.requeue_after
        return Done(None if after is None else after.total_seconds())

    async def _called(self, request: Request[Any]) -> Any:
        if self._threads is None:
            return await self._reconciler(request)  # type: ignore[misc]  # checked at registration
        task, loop, has_failed = asyncio.current_task(), EventLoop(), False
        assert task is not None

        def may_begin() -> bool:
            is_over = has_failed or task.cancelling()
            return not is_over and request.cluster.engaged and self._may_begin()

        def call() -> Any:
            # The event loop decides, which also cancels: so a call that it has canceled never begins.
            return call_in_thread(self._reconciler, request) if loop.call(may_begin) else Interrupted()

        try:
            calling = asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, call)
        except RuntimeError:
            has_failed = True  # no thread can be started, but the call stays in the queue for the next one
            raise
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            # A thread cannot be canceled: instead, its current and further calls of request.wait raise.
            request.end(is_canceled=True)
            hanging = asyncio.get_running_loop().call_later(HANGS_AFTER_S, _log_hanging, request)
            try:
                await wait_uninterrupted(calling)
            finally:
                hanging.cancel()
            error = None if calling.cancelled() else calling.exception()
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error from None  # of its cleanup, as an async reconciler raises it
            raise


def _log_hanging(request: Request[Any]) -> None:
    log.warning(
        "%r was canceled, but its thread still runs, and occupies a worker: call request.wait where it waits", request
    )


def failed_outcome(error: Exception, cluster: EngagedCluster) -> Outcome:
    """Return the outcome of a reconcile that raised an error."""
    match error:
        case Permanent():
            return Stopped(text_of(error))
        case ProjectSuspended() if stays_suspended(cluster.current):
            return Parked()
        case NotLeading():
            return Interrupted()
        case ApiError():
            return Failed(error.retry_after_s)
        case ExceptionGroup():
            return _outcome_of_several(error, cluster)
        case _:
            return Failed()


def _outcome_of_several(errors: ExceptionGroup[Exception], cluster: EngagedCluster) -> Outcome:
    """Return the outcome of a reconcile that raised errors of several types."""
    outcomes = [failed_outcome(error, cluster) for error in errors.exceptions]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if failed:
        stated = (outcome.retry_after_s for outcome in failed if outcome.retry_after_s is not None)
        return Failed(max(stated, default=None))
    return next((other for other in (Interrupted(), Parked()) if other in outcomes), Stopped(text_of(errors)))


def stays_suspended(cluster: Cluster) -> bool:
    """Return whether the project is suspended and the suspension can end: it cannot while Milo deletes the project."""
    return cluster.suspended and cluster.deletion_requested_at is None
