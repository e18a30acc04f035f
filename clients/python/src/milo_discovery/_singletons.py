"""Work that one replica of an operator does at a time: claimed every few seconds, and run while it is granted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._grpc_status import NOT_RETRYABLE
from milo_discovery._ownership import boottime
from milo_discovery._singleton_grants import HeldGrants, claimed_state
from milo_discovery._task_groups import cancelled_from_outside, unwrap_single_error
from milo_discovery.errors import DiscoveryError
from milo_discovery.model import SingletonGrants, SingletonState

log = logging.getLogger("milo_discovery.fleet")

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
    def has_ended(self) -> bool:
        return self.task is None or self.task.done()

    @property
    def state(self) -> SingletonState:
        return claimed_state(is_granted=self.is_granted, has_ended=self.has_ended)


class Singletons:
    """The singleton work of one Fleet."""

    def __init__(self, client: SingletonClient, works: Mapping[str, SingletonWork], backoff: BackoffPolicy) -> None:
        self._client = client
        self._backoff_policy = backoff
        self._singletons = [_Singleton(name, work) for name, work in works.items()]
        self._grants = HeldGrants()

    async def run(self, subscriber: str) -> None:
        """Claim the work, and run what is granted, until canceled. Raises errors that a retry cannot fix."""
        with unwrap_single_error():
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._claim(subscriber)
                    self._settle(tasks)
                    await asyncio.sleep(self._grants.pause_s(boottime()))
                    self._settle(tasks)  # end work whose grant has expired before it is claimed again

    async def _claim(self, subscriber: str) -> None:
        """Claim the work. A failure leaves the last grants to expire."""
        asked_at = boottime()
        claims = {each.name: each.state for each in self._singletons}
        try:
            async with asyncio.timeout(self._grants.pause_s(asked_at)):
                grants = await self._client.claim_singletons(subscriber, claims)
        except NOT_RETRYABLE:
            raise
        except (DiscoveryError, TimeoutError) as error:
            log.debug("singleton work could not be claimed: %s", error)
        else:
            self._grants.answered(grants, asked_at)

    def _settle(self, tasks: asyncio.TaskGroup) -> None:
        """Start the work that is granted, and end the work that no longer is."""
        granted = self._grants.held(boottime())
        for each in self._singletons:
            was_granted, each.is_granted = each.is_granted, each.name in granted
            if each.is_granted and not was_granted:
                if each.has_ended:
                    each.task = tasks.create_task(self._work(each), name=f"singleton {each.name}")
                else:
                    each.is_granted = False  # the work of the last grant still runs: start when it has ended
            elif was_granted and not each.is_granted and each.task is not None:
                each.task.cancel()

    async def _work(self, each: _Singleton) -> None:
        """Call the work until it returns or is canceled. An error is logged, and the work restarted."""
        backoff = Backoff(self._backoff_policy)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await each.work()
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                error: Exception = RuntimeError("the work was canceled, but not by its Fleet")
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
