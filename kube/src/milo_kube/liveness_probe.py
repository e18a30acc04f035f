"""Probes the liveness of an API server while nothing arrives from it.

An API server whose etcd is unavailable keeps its watches open, opens new ones from its cache, and sends no events. Its
/livez fails then, so repeated failures count as no answer. From then on, no request is sent until a check succeeds.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError
from milo_kube.reflect.liveness_policy import LivenessCheck, LivenessPolicy, LivenessTracker
from milo_kube.reflect.messages import UNRESPONSIVE, Failure
from milo_kube.reusable_timeout import Deadline

PATH = "/livez"
_EXCERPT_BYTES = 16 << 10
"""Bytes of a failed check in which the reasons are looked for."""
_SILENCE = frozenset({"timeout", "closed"})
"""Results that count as no answer. A refused connection does not: a server that shuts down still serves its watches."""


class LivenessApi(Protocol):
    async def get_at_once(self, path: str, *, timeout_s: float) -> Answer:
        """Send a GET with the newest credential or without one, and never wait for another. Raises TransportError."""

    async def drop(self) -> None:
        """Close every connection; the next request opens a new one."""


class LivenessProbe:
    """Sends liveness checks to an API server, and ends a wait for data if the server fails the checks or is silent.

    The wait is that of `ListWatch`, which assigns `deadline` and `tracker.waiting_since`.
    """

    def __init__(self, api: LivenessApi, policy: LivenessPolicy, report: Callable[[str], None]) -> None:
        self._api = api
        self._policy = policy
        self._report = report
        self.tracker = LivenessTracker(policy)
        self.deadline: Deadline | None = None
        """Ends the wait in progress early."""
        self.is_lost = False
        """Whether the last wait was ended because the server failed checks or did not answer them."""
        self._failure = ""
        """How the server answered the last check, if that was a failure (5xx)."""
        self._is_failing = False
        """Whether a wait was ended because of a failure (5xx), and no later check has succeeded."""
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Send the checks that are due, until canceled."""
        while True:
            if (check := self.tracker.take_due(self._loop.time())) is not None:
                await self._check(check)
            await asyncio.sleep(self.tracker.next_at(self._loop.time()) - self._loop.time())

    async def outage(self) -> Failure | None:
        """Check again if a wait ended with a failure (5xx). Return the failure if no request may be sent yet."""
        if not self._is_failing:
            return None
        result = await self._send_check()
        self._is_failing = bool(self._failure) or result in _SILENCE
        return self._unresponsive() if self._is_failing else None

    async def give_up(self) -> Failure | None:
        """Close every connection if checks ended the wait, and return the failure; None if the wait timed out."""
        if not self.is_lost:
            return None
        await self._api.drop()
        self._is_failing = bool(self._failure)
        return self._unresponsive()

    async def _check(self, check: LivenessCheck) -> None:
        result = await self._send_check()
        if self.tracker.result(check, is_silent=result in _SILENCE or bool(self._failure)):
            assert self.deadline is not None, "no wait is in progress"
            self.is_lost = True
            self.deadline.give_up()

    async def _send_check(self) -> str:
        """Send a check, and return its result as a metric label."""
        result, self._failure = "answered", ""
        try:
            answer = await self._api.get_at_once(PATH, timeout_s=self._policy.timeout_s)
        except TransportError as error:
            result = error.cause
        else:
            # Any other status shows that the server is alive. 403 is common.
            if answer.status >= 500:
                result, self._failure = "failed", f"{answer.status}: {_excerpt(answer.body)}"
        self._report(result)
        return result

    def _unresponsive(self) -> Failure:
        if self._failure:
            return Failure(UNRESPONSIVE, f"the server answers {PATH} with {self._failure}")
        checks = f"{self._policy.misses} requests in a row, {self._policy.every_s:g} s apart, got no answer or an error"
        return Failure(UNRESPONSIVE, f"the server does not answer {PATH}: {checks}")


def _excerpt(body: bytes) -> str:
    """Return the failed checks, whose lines in the response begin with [-]; if there are none, its first line."""
    lines = body[:_EXCERPT_BYTES].decode(errors="replace").splitlines()
    return "; ".join([line for line in lines if line.startswith("[-]")] or lines[:1])[:300]
