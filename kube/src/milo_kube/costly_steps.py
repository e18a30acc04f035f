"""Costly steps of an event loop, one after the other, so that they do not add up in one iteration.

A server determines what a handshake costs its client: up to 0.08 s, for a chain of large certificates; and a page of a
list, or an event of a watch, as much. A tenant may have thousands of clusters, so tenants take turns.
"""

import asyncio
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from milo_kube.tenants import Tenant, TenantTurns, working_for

AT_ONCE_S = 0.002
"""CPU time after which further steps wait for another iteration of the event loop."""
COSTLY_S = 0.01
"""A step that took this long is followed by as much time for everything else."""
CHEAP_S = 0.005
"""CPU time of a cheap handshake; most take 1 ms, and with an RSA key of 4096 bits as client certificate 6 ms."""
KEPT_SERVERS = 10_000
"""Number of servers whose handshakes are remembered."""
SMALL_PAGE = 4 << 10
"""Bytes of a page of a list, or of lines of a watch, below which they are decoded at once: that takes up to 2 ms."""
LARGE_PAGE = 32 << 10
"""Bytes whose decoding can take 10 ms; that of one object of any size takes up to 50 ms."""
_RECENT = 1 / 16
"""The share of a handshake in the average of its server: a server is cheap again after some 30 cheap handshakes."""

T = TypeVar("T")
Turns: TypeAlias = Callable[[Callable[[], None]], None]
"""Calls the steps of one handshake when their turn comes."""


class Precedence(IntEnum):
    """What a step waits for: all steps of smaller values, those of its own and its tenant that came before, and as many
    of each other tenant."""

    CHEAP = 0
    UNKNOWN = 1
    COSTLY = 2


class _WaitingStep(NamedTuple):
    tenant: Tenant
    number: int
    step: Callable[[], None]


class CostlySteps:
    """A queue of costly steps."""

    def __init__(self) -> None:
        self._waiting = tuple(TenantTurns[_WaitingStep](lambda waiting: waiting.tenant) for _ in Precedence)
        self._added = 0
        self._is_planned = False
        self._free_at = 0.0
        self._spent_at_once = 0.0
        """Time of the steps that did not wait, since others last had to."""

    def add(self, step: Callable[[], None], precedence: Precedence = Precedence.CHEAP) -> None:
        """Call the step when its turn comes."""
        self._added += 1
        self._waiting[precedence].add(_WaitingStep(working_for.get(), self._added, step))
        self._plan()

    async def result(self, step: Callable[[], T]) -> T:
        """Return what the step returns, or raise what it raises, when its turn has come: at once, if no other waits."""
        loop = asyncio.get_running_loop()
        if not self._is_planned and self._free_at <= loop.time():
            return self._result_at_once(step)
        result: asyncio.Future[T] = loop.create_future()

        def take() -> None:
            if result.cancelled():
                return
            try:
                result.set_result(step())
            except Exception as error:  # noqa: BLE001  (raised by the caller's task)
                result.set_exception(error)

        self.add(take)
        return await result

    def _result_at_once(self, step: Callable[[], T]) -> T:
        began = time.monotonic()  # nearly all steps are short, and the CPU time is a system call
        try:
            return step()
        finally:
            self._count(spent := time.monotonic() - began)
            self._spent_at_once += spent
            if self._spent_at_once >= AT_ONCE_S:
                self._spent_at_once = 0.0
                self._plan_run()

    def _count(self, spent: float) -> None:
        if spent >= COSTLY_S:
            self._free_at = asyncio.get_running_loop().time() + spent

    def _plan(self) -> None:
        if any(self._waiting) and not self._is_planned:
            self._plan_run()

    def _plan_run(self) -> None:
        self._is_planned = True
        loop = asyncio.get_running_loop()
        loop.call_at(max(self._free_at, loop.time()), self._run)

    def _run(self) -> None:
        self._is_planned = False
        began = time.thread_time()
        spent = 0.0
        try:
            while spent < AT_ONCE_S and (waiting := next(filter(None, self._waiting), None)):
                waiting.pop().step()
                spent = time.thread_time() - began
        finally:
            self._count(time.thread_time() - began)
            self._plan()


class Handshakes:
    """Handshakes as a client, in turns: those with servers that were costly before wait for all others."""

    def __init__(self) -> None:
        self._steps = CostlySteps()
        self._average_s: dict[int, float] = {}
        """CPU time of a handshake, by identity and server; that of the most recent handshake is the last."""

    def turns(self, identity: int, server: str) -> Turns:
        """Return the turns of one handshake. `identity` is the hash of the CAs and the client certificate, which
        determine the cost too: another user's must not make a server costly."""
        key = hash((identity, server))
        average = self._average_s.get(key)
        precedence = Precedence.UNKNOWN
        if average is not None:
            precedence = Precedence.CHEAP if average <= CHEAP_S else Precedence.COSTLY
        weight = 0.0
        """The share of this handshake in the average; 0 until its first step."""

        def measured(step: Callable[[], None]) -> None:
            nonlocal weight
            weight = weight or self._begin(key)
            began = time.thread_time()
            try:
                step()
            finally:
                if key in self._average_s:
                    self._average_s[key] += (time.thread_time() - began) * weight

        return lambda step: self._steps.add(lambda: measured(step), precedence)

    def _begin(self, key: int) -> float:
        """Count one more handshake, and return the share of its cost in the average."""
        average = self._average_s.pop(key, None)
        self._average_s[key] = 0.0 if average is None else average * (1 - _RECENT)
        if len(self._average_s) > KEPT_SERVERS:
            del self._average_s[next(iter(self._average_s))]
        return 1.0 if average is None else _RECENT


_PAGES: "WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[CostlySteps, CostlySteps]]" = WeakKeyDictionary()


def page_steps(size: int) -> CostlySteps:
    """Return the queue of the running event loop for decoding so many bytes, of at least `SMALL_PAGE`. Small pages do
    not wait for large ones, nor these for an endless number of small ones."""
    loop = asyncio.get_running_loop()
    queues = _PAGES.get(loop)
    if queues is None:
        queues = _PAGES[loop] = CostlySteps(), CostlySteps()
    small, large = queues
    return small if size < LARGE_PAGE else large
