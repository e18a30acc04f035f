"""Credentials that are renewed where they are used: on an event loop, in threads, and from threads through a loop.

Who has a credential that is good doesn't wait: the next one is got meanwhile. Who has none waits for it, and all who
wait at once wait for the same answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from milo_discovery._access import Access
from milo_discovery._credential import Credentials, Standing
from milo_discovery.errors import DiscoveryError
from milo_discovery.model import Kubeconfig

log = logging.getLogger("milo_discovery.credentials")

_PATIENCE_S = 30.0

Newest = Callable[[], Kubeconfig | None]
"""The last kubeconfig that was sent, where they are."""


class ThreadAccess(Protocol):
    """What a blocking client needs. Both may be called in any thread, and may block it."""

    def access(self) -> Access:
        """What to use now. Raises why there is nothing."""

    def after_refusal(self, refused: str | None) -> Access:
        """What to use after this token was refused: the same, if there is nothing newer."""


class LoopRenewal:
    """For one event loop."""

    def __init__(self, issue: Callable[[], Awaitable[Kubeconfig]], newest: Newest | None = None) -> None:
        self.credentials = Credentials()
        self._issue = issue
        self._newest = newest
        self._renewing: asyncio.Task[None] | None = None

    async def access(self) -> Access:
        """What to use now. Raises why there is nothing."""
        match self.look():
            case Standing.DUE:
                self.begin()
            case Standing.OVER:
                await self._renewed()
        return self.credentials.current.access

    async def after_refusal(self, refused: str | None) -> Access:
        """What to use after this token was refused: the same, if there is nothing newer."""
        self.look()
        if self.credentials.current.access.token == refused:
            with suppress(DiscoveryError):  # which is logged; the refusal itself says more to whoever made the request
                await self._renewed()
        return self.credentials.current.access

    def look(self) -> Standing:
        _take_newest(self.credentials, self._newest)
        return self.credentials.standing(_now())

    def begin(self) -> asyncio.Task[None]:
        """The attempt that is under way, or another one."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), name="milo-discovery credential")
            self._renewing.add_done_callback(_log_failure)
        return self._renewing

    async def close(self) -> None:
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _renewed(self) -> None:
        # Shielded: it is everybody's, and one who stops waiting doesn't end it for the others.
        await asyncio.shield(self.begin())

    async def _renew(self) -> None:
        try:
            self.credentials.offer(await self._issue())
        except DiscoveryError:
            self.credentials.failed(_now())
            raise


class ThroughLoop:
    """For threads beside an event loop, on which the renewing is done. On the loop's own thread it never waits."""

    def __init__(self, renewal: LoopRenewal) -> None:
        self._renewal = renewal
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def access(self) -> Access:
        match self._renewal.look():
            case Standing.DUE:
                self._loop.call_soon_threadsafe(self._renewal.begin)
            case Standing.OVER:
                return self._wait_for(self._renewal.access)
        return self._renewal.credentials.current.access

    def after_refusal(self, refused: str | None) -> Access:
        return self._wait_for(lambda: self._renewal.after_refusal(refused))

    def _wait_for(self, access: Callable[[], Awaitable[Access]]) -> Access:
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                "a blocking API client was used on the event loop's own thread, and needs a new credential, which only "
                "that loop can get: use api_client() there, or the blocking one by asyncio.to_thread()"
            )

        async def waited() -> Access:
            return await access()

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result(_PATIENCE_S)


class ThreadRenewal:
    """For threads, with one of its own to ask in."""

    def __init__(self, issue: Callable[[], Kubeconfig]) -> None:
        self.credentials = Credentials()
        self._issue = issue
        self._lock = threading.Lock()
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="milo-discovery credential")
        self._renewing: Future[None] | None = None

    def access(self) -> Access:
        standing = self.credentials.standing(_now())
        if standing is not Standing.FRESH:
            renewing = self._begin(lambda: self.credentials.standing(_now()) is not Standing.FRESH)
            if standing is Standing.OVER and renewing is not None:
                renewing.result()
        return self.credentials.current.access

    def after_refusal(self, refused: str | None) -> Access:
        renewing = self._begin(lambda: self.credentials.current.access.token == refused)
        if renewing is not None:
            with suppress(DiscoveryError):  # which is logged; the refusal itself says more to whoever made the request
                renewing.result()
        return self.credentials.current.access

    def close(self) -> None:
        self._asking.shutdown(cancel_futures=True)

    def _begin(self, is_needed: Callable[[], bool]) -> Future[None] | None:
        """The attempt that is under way, or a new one; none where another thread's has just made it needless."""
        with self._lock:
            if self._renewing is None or self._renewing.done():
                if not is_needed():
                    return None
                self._renewing = self._asking.submit(self._renew)
                self._renewing.add_done_callback(_log_failure)
            return self._renewing

    def _renew(self) -> None:
        try:
            self.credentials.offer(self._issue())
        except DiscoveryError:
            self.credentials.failed(_now())
            raise


def _take_newest(credentials: Credentials, newest: Newest | None) -> None:
    kubeconfig = None if newest is None else newest()
    if kubeconfig is not None:
        credentials.offer(kubeconfig, sent=True)


def _log_failure(attempt: asyncio.Task[None] | Future[None]) -> None:
    """Those who wait for it are told as well, but often nobody does."""
    if not attempt.cancelled() and (error := attempt.exception()) is not None:
        log.warning("credential not renewed: %s", error)


def _now() -> datetime:
    return datetime.now(UTC)
