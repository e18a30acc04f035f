"""Confirms reported deletions by reads of the objects, and ticks the sink when something is due."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Protocol

import msgspec

from milo_discoveryd.model.observation import Observation
from milo_discoveryd.registry.pending_deletions import (
    Absent,
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_kube.reflect.messages import SourceEvent
from milo_kube.reflect.view_status import ViewStatus


class Sink(Protocol):
    """The receiver of source events and confirmation results."""

    def take(self, source_events: Iterable[SourceEvent[Observation]], read_at: float) -> Iterator[None]:
        """Apply source events in batches, so that the caller can yield to the event loop between them."""

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        """Names and UIDs of a few objects that should exist."""

    @property
    def ignores_lists(self) -> bool:
        """True while lists are older than what was seen. The server's reads may be as old."""

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> None: ...

    def source(self, status: ViewStatus) -> None: ...

    def liveness_checked(self, result: str) -> None: ...

    @property
    def due_at(self) -> float | None:
        """When to call `tick`, if nothing else happens."""

    def tick(self, now: float) -> None: ...

    @property
    def relist_at(self) -> float | None:
        """When another list is needed, whatever the watch reports."""


class Confirmations:
    """The timers of one collection.

    `read` reads one object, `trusted_from` says since when the source is trusted, or infinity while it is not, and
    `is_proven` whether the server has sent anything of this collection since the connection to it was last lost.
    """

    def __init__(
        self,
        pending_deletions: PendingDeletions,
        sink: Sink,
        read: Callable[[str], Awaitable[ConfirmationResult]],
        trusted_from: Callable[[], float],
        is_proven: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pending_deletions = pending_deletions
        self._sink = sink
        self._read = read
        self._source_trusted_from = trusted_from
        self._is_proven = is_proven
        self._has_timers = asyncio.Event()
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    def applied(self) -> None:
        """Wake the timers: source events were applied, so confirmations or ticks may be due."""
        if not self._pending_deletions.is_idle or self._sink.due_at is not None:
            self._has_timers.set()

    async def run(self) -> None:
        """Make confirmation requests and tick the sink, each when it is due, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._sink.tick(self._clock())
                self._pending_deletions.defers_rechecks = not self._is_proven()
                if self._is_trusted:
                    for request in self._pending_deletions.take_due(self._clock()):
                        tasks.create_task(self._confirm(request), name=f"confirm the deletion of {request.name}")
                confirm_at, tick_at = self._pending_deletions.next_at, self._sink.due_at
                due = min(
                    math.inf if confirm_at is None else max(confirm_at, self._trusted_from()),
                    math.inf if tick_at is None else tick_at,
                )
                try:
                    async with asyncio.timeout_at(None if due == math.inf else due):
                        await self._has_timers.wait()
                except TimeoutError:
                    pass  # something is due
                self._has_timers.clear()

    async def _confirm(self, request: ConfirmationRequest) -> None:
        result = await self._confirmed(request.name)
        if not self._is_trusted or (request.was_refuted and not self._is_proven()):
            result = Inconclusive("the source was lost before the response came")
        self._sink.resolve(request, result, self._clock())
        self._has_timers.set()

    def _trusted_from(self) -> float:
        return math.inf if self._sink.ignores_lists else self._source_trusted_from()

    @property
    def _is_trusted(self) -> bool:
        return self._clock() >= self._trusted_from()

    async def _confirmed(self, name: str) -> ConfirmationResult:
        result = await self._read(name)
        reference_objects = self._sink.reference_objects
        if not isinstance(result, Absent) or not reference_objects:
            return result
        # Another server, such as a wrong backend behind the same address, answers "not found" too, but for all objects.
        problem = "the server has none of the other objects either, and may be another server"
        refusal: Inconclusive | None = None
        for known, uid in reference_objects:
            found = await self._read(known)
            if isinstance(found, Found) and found.observation.uid == uid:
                return result
            if isinstance(found, Inconclusive):
                problem = f"the server may be another one, and reading {known} from it failed: {found.problem}"
                refusal = found if found.is_refusal else refusal
        if refusal is not None:
            return msgspec.structs.replace(refusal, problem=problem)
        return Inconclusive(problem)
