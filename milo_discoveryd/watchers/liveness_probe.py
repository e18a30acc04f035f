"""Waits for an API server's responses, and probes its liveness while it is silent.

An API server whose etcd does not answer keeps its watches open, opens others from its cache, and sends nothing. Its
liveness check fails then, so repeated failures count as silence, and no response is waited for until a check succeeds.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from milo_kube.http.errors import TransportError
from milo_kube.list_watch import Answer, UnresponsiveError
from milo_kube.reflect.liveness_policy import LivenessCheck, LivenessPolicy, LivenessTracker
from milo_kube.reflect.messages import UNRESPONSIVE, Failure
from milo_kube.reusable_timeout import Deadline

T = TypeVar("T")
PATH = "/livez"
_SILENCE = frozenset({"timeout", "closed"})
"""Results that count as no answer. A refused connection does not: a server that shuts down still serves its watches."""


class LivenessApi(Protocol):
    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer: ...

    async def drop(self) -> None:
        """Close every connection; the next request opens a new one."""


class LivenessProbe:
    """Sends liveness checks to an API server, and cancels requests that wait for one that does not answer."""

    def __init__(self, api: LivenessApi, policy: LivenessPolicy, report: Callable[[str], None]) -> None:
        self._api = api
        self._policy = policy
        self._report = report
        self._tracker = LivenessTracker(policy)
        self._deadline: Deadline | None = None
        self._is_lost = False
        self._failure = ""
        """How the server answered the last check, if that was a failure (5xx)."""
        self._is_failing = False
        """Whether a wait was ended because checks failed, and none has succeeded since."""
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Make the checks that are due, until cancelled."""
        while True:
            if (check := self._tracker.take_due(self._clock())) is not None:
                await self._check(check)
            await asyncio.sleep(self._tracker.next_at(self._clock()) - self._clock())

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Enclose consecutive calls of `wait`.

        Raises TimeoutError at the deadline of a wait, and UnresponsiveError, with every connection closed, when the
        server does not answer checks.
        """
        try:
            async with Deadline() as self._deadline:
                yield
        except TimeoutError:
            if not self._is_lost:
                raise
            await self._api.drop()
            self._is_failing = bool(self._failure)
            raise self._unresponsive() from None
        finally:
            self._deadline = None
            self._tracker.end_wait()

    async def wait(self, response: Awaitable[T], until: float | None = None) -> T:
        """Wait for one response; only within `waiting`."""
        assert self._deadline is not None, "waits are made within `waiting`"
        self._is_lost = False
        if self._is_failing:
            result = await self._ask()
            if self._failure or result in _SILENCE:
                if asyncio.iscoroutine(response):
                    response.close()
                raise self._unresponsive()
            self._is_failing = False
        self._tracker.start_wait(self._clock())
        if until is not None:
            self._deadline.set(until)
        found = await response
        self._deadline.lift()
        self._tracker.end_wait()
        return found

    async def _check(self, check: LivenessCheck) -> None:
        result = await self._ask()
        if self._tracker.result(check, is_silent=result in _SILENCE or bool(self._failure)):
            assert self._deadline is not None, "only a wait can be ended early"
            self._is_lost = True
            self._deadline.give_up()

    async def _ask(self) -> str:
        """Send a check, and return its result as a metric label."""
        result, self._failure = "answered", ""
        try:
            answer = await self._api.get(PATH, timeout_s=self._policy.timeout_s)
        except TransportError as error:
            result = error.cause
        else:
            # Any other status shows that the server is alive, and a denied request is a usual one.
            if answer.status >= 500:
                result, self._failure = "failed", f"{answer.status}: {_excerpt(answer.body)}"
        self._report(result)
        return result

    def _unresponsive(self) -> UnresponsiveError:
        error = UnresponsiveError(self._policy, PATH)
        if self._failure:
            error.failure = Failure(UNRESPONSIVE, f"the server answers {PATH} with {self._failure}")
        return error


def _excerpt(body: bytes) -> str:
    """Return what failed, as far as the server says so: a line for each failed check begins with [-]."""
    lines = body.decode(errors="replace").splitlines()
    return "; ".join([line for line in lines if line.startswith("[-]")] or lines[:1])[:300]
