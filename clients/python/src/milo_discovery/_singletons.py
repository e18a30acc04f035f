"""Work that one replica of an operator does at a time: claimed every few seconds, and run while it is granted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Protocol

from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._grpc_status import NOT_RETRYABLE
from milo_discovery._ownership import boottime
from milo_discovery._task_groups import cancelled_from_outside, unwrap_single_error
from milo_discovery.errors import DiscoveryError
from milo_discovery.model import SingletonGrants, SingletonState

log = logging.getLogger("milo_discovery.fleet")

CLAIM_INTERVAL_S = 3.0

SingletonWork = Callable[[], Awaitable[None]]


class SingletonClient(Protocol):
    async def claim_singletons(self, subscriber: str, claims: Mapping[str, SingletonState]) -> SingletonGrants: ...


@dataclass(slots=True)
class _Singleton:
    name: str
    work: SingletonWork
    is_granted: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> SingletonState:
        if self.is_granted:
            return SingletonState.WORKING
        return SingletonState.WAITING if self.task is None or self.task.done() else SingletonState.ENDING


class Singletons:
    """The singleton work of one Fleet."""

    def __init__(self, client: SingletonClient, works: Mapping[str, SingletonWork], backoff: BackoffPolicy) -> None:
        self._client = client
        self._backoff_policy = backoff
        self._singletons = [_Singleton(name, work) for name, work in works.items()]
        self._until = -inf
        """When the grants expire, as `boottime`."""

    async def run(self, subscriber: str) -> None:
        """Claim and work until cancelled. Raises errors that a retry cannot fix."""
        with unwrap_single_error():
            async with asyncio.TaskGroup() as tasks:
                while True:
                    granted = await self._claim(subscriber)
                    for each in self._singletons:
                        self._apply(each, each.name in granted, tasks)
                    left_s = self._until - boottime()
                    await asyncio.sleep(min(CLAIM_INTERVAL_S, left_s) if left_s > 0 else CLAIM_INTERVAL_S)

    async def _claim(self, subscriber: str) -> frozenset[str]:
        """Return what is granted at present: without an answer, what was granted before, until it expires."""
        asked_at = boottime()
        left_s = self._until - asked_at
        claims = {each.name: each.state for each in self._singletons}
        granted = frozenset(each.name for each in self._singletons if each.is_granted)
        try:
            async with asyncio.timeout(min(CLAIM_INTERVAL_S, left_s) if left_s > 0 else CLAIM_INTERVAL_S):
                grants = await self._client.claim_singletons(subscriber, claims)
        except NOT_RETRYABLE:
            raise
        except (DiscoveryError, TimeoutError) as error:
            log.debug("singleton work could not be claimed: %s", error)
        else:
            granted = grants.granted
            self._until = asked_at + grants.valid_for.total_seconds()
        return granted if boottime() < self._until else frozenset()

    def _apply(self, each: _Singleton, is_granted: bool, tasks: asyncio.TaskGroup) -> None:
        was_granted, each.is_granted = each.is_granted, is_granted
        if is_granted and not was_granted:
            each.task = tasks.create_task(self._work(each), name=f"singleton {each.name}")
        elif was_granted and not is_granted and each.task is not None:
            each.task.cancel()

    async def _work(self, each: _Singleton) -> None:
        """Call the work until it returns or is cancelled. An error is logged, and the work begins again."""
        backoff = Backoff(self._backoff_policy)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await each.work()
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                error: Exception = RuntimeError("the work was cancelled, but not by its Fleet")
            except Exception as raised:  # noqa: BLE001  (the top of a task: it is logged, and retried)
                error = raised
            else:
                return
            if cancelled_from_outside():
                log.error("singleton work %s failed during its cleanup", each.name, exc_info=error)
                return
            delay = backoff.failed(ran=timedelta(seconds=clock() - began))
            seconds = delay.total_seconds()
            log.error("singleton work %s failed; restarting it in %.1f s", each.name, seconds, exc_info=error)
            await asyncio.sleep(seconds)
