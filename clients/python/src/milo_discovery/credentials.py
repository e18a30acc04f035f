"""Renews credentials on the event loop on which they are used, and on behalf of other threads.

A caller with a valid credential does not wait: the next credential is fetched in the background. Callers whose
credential is not valid, or was rejected, share one fetch, and continue earlier if the stream delivers a kubeconfig.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from milo_discovery._credential_cache import CredentialCache, CredentialState
from milo_discovery.errors import DiscoveryError, StatusError, UnusableKubeconfig
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.model import Kubeconfig

__all__ = ["AsyncRenewer"]

log = logging.getLogger("milo_discovery.credentials")

_LOOP_WAIT_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class PushedKubeconfigs:
    """The kubeconfigs that a stream delivers for one engagement.

    `newest` and `following` raise once the engagement has ended.
    """

    newest: Callable[[], Kubeconfig | None]
    following: Callable[[], Coroutine[Any, Any, Kubeconfig]]
    """Waits for the kubeconfig after the newest one."""
    endpoint: Callable[[], str]
    """Returns the present endpoint of the cluster. Kubeconfigs for a former endpoint are not used."""


class AsyncRenewer:
    """Renews a credential on one event loop. Entering it as a context manager waits for a valid credential."""

    __slots__ = ("_failure", "_issue", "_name", "_pushed", "_renewal", "cache")

    def __init__(
        self, name: str, issue: Callable[[], Awaitable[Kubeconfig]], pushed: PushedKubeconfigs | None = None
    ) -> None:
        """`name` is that of the cluster, for the log."""
        self.cache = CredentialCache()
        self._name = name
        self._issue = issue
        self._pushed = pushed
        self._renewal: asyncio.Task[None] | None = None
        self._failure: DiscoveryError | None = None
        """Why the last request failed; None if it succeeded."""

    async def __aenter__(self) -> Self:
        try:
            await self.access()
        except BaseException:  # including CancelledError: nothing else stops the renewal, as __aexit__ is not called
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def access(self) -> KubeconfigAccess:
        """Return the credential to use now. Raises the DiscoveryError of the renewal if there is no valid one.

        While the daemon must not be asked again yet, that is the error of the last renewal, or, if it succeeded, its
        credential, which had expired on arrival by this machine's clock.
        """
        is_renewed = False
        while (state := self.state()) is CredentialState.EXPIRED and not is_renewed:
            if not self._may_renew:
                if self._failure is not None:
                    raise self._failure.with_traceback(None)
                break
            is_renewed = await self._renewed_before_push()
        if state is CredentialState.REFRESH_DUE:
            self.start_renewal()
        return self.cache.current.access

    async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
        """Return the credential to use after the server rejected a token: the same one if no newer one exists."""
        self.state()  # raises if the engagement has ended
        if self.cache.current.access.token == refused and self._may_renew:
            with suppress(DiscoveryError):  # The error is logged. The caller gets the 401, which is more specific.
                await self._renewed_before_push()
            self.state()  # raises if the engagement ended during the renewal
        return self.cache.current.access

    def state(self) -> CredentialState:
        """Store the kubeconfig that the stream delivered, if any, and return the state."""
        pushed = None if self._pushed is None else self._pushed.newest()
        if pushed is not None:
            try:
                self.cache.offer(pushed, _now(), endpoint=self._endpoint(), pushed=True)
            except UnusableKubeconfig as error:  # the one before is used until it expires, and then one is requested
                log.warning("credential of cluster %s not renewed: %s", self._name, error)
        return self.cache.state(_now(), self._endpoint())

    def is_present(self, server: str) -> bool:
        """Return whether the engaged cluster still has this server: a request may wait for a connection while it
        moves. Always true without an engagement, since only that has the endpoint."""
        current = self.cache.current
        is_same = current.endpoint == self._endpoint() and current.access.server == server
        return is_same or self._pushed is None

    def require_present(self, server: str) -> None:
        """Raise ClusterNotFound if the engagement has ended, and UnusableKubeconfig if the server is a former one."""
        self.state()
        if not self.is_present(server):
            raise UnusableKubeconfig(f"the request was not sent: cluster {self._name} has moved from {server}; retry")

    def start_renewal(self) -> asyncio.Task[None]:
        """Return the renewal in flight, or start one."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew(), name="milo-discovery credential")
            # Retrieves the error, so that asyncio does not log it again.
            self._renewal.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return self._renewal

    @property
    def _may_renew(self) -> bool:
        is_renewing = self._renewal is not None and not self._renewal.done()
        return is_renewing or self.cache.may_request(_now(), self._endpoint())

    async def close(self) -> None:
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            await asyncio.wait([renewal])

    async def _renewed_before_push(self) -> bool:
        """Wait for the renewal, or until the stream delivers a kubeconfig; return whether the renewal finished first.

        Cancellation of one caller does not cancel the renewal, because other callers may wait for it. Raises the
        renewal's error, or an error if the engagement has ended.
        """
        renewal = self.start_renewal()
        pushing = None if self._pushed is None else asyncio.create_task(self._pushed.following())
        try:
            await asyncio.wait([renewal, *([pushing] if pushing else [])], return_when=asyncio.FIRST_COMPLETED)
            if pushing is not None and pushing.done():
                pushing.result()
                return False
        finally:
            if pushing is not None:
                pushing.cancel()
        renewal.result()
        return True

    def _endpoint(self) -> str:
        return "" if self._pushed is None else self._pushed.endpoint()

    async def _renew(self) -> None:
        endpoint = self._endpoint()
        try:
            issued = await self._issue()
            while endpoint != (present := self._endpoint()):
                endpoint = present
                issued = await self._issue()
            self.cache.requested(issued, _now(), endpoint)
        except Exception as error:
            retry_after = error.retry_after if isinstance(error, StatusError) else None
            self.cache.request_failed(_now(), endpoint, retry_after)
            self._log_failure(error)
            if isinstance(error, DiscoveryError):
                self._failure = error
                raise
            # Such as that no thread can be started. Callers expect only errors of this package.
            self._failure = UnusableKubeconfig(f"no kubeconfig was issued: {type(error).__name__}: {error}")
            raise self._failure from error
        if self._failure is not None:
            log.info("credential of cluster %s renewed", self._name)
        self._failure = None

    def _log_failure(self, error: Exception) -> None:
        """Log the first of consecutive failures: callers with a valid credential do not see the error."""
        level = logging.WARNING if self._failure is None else logging.DEBUG
        stack = None if isinstance(error, DiscoveryError) else error
        log.log(level, "credential of cluster %s not renewed; retrying: %s", self._name, error, exc_info=stack)


class LoopBridge:
    """Access to an AsyncRenewer from other threads. Its methods may block, so the event loop must not call them."""

    def __init__(self, renewer: AsyncRenewer) -> None:
        self._renewer = renewer
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    def access(self) -> KubeconfigAccess:
        match self._renewer.state():
            case CredentialState.REFRESH_DUE:
                self._loop.call_soon_threadsafe(self._renewer.start_renewal)
            case CredentialState.EXPIRED:
                return self._wait_for(self._renewer.access)
        return self._renewer.cache.current.access

    def require_present(self, server: str) -> None:
        self._renewer.require_present(server)

    def access_after_401(self, refused: str | None) -> KubeconfigAccess:
        return self._wait_for(lambda: self._renewer.access_after_401(refused))

    def _wait_for(self, access: Callable[[], Awaitable[KubeconfigAccess]]) -> KubeconfigAccess:
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError(
                "a blocking API client needs a new credential, but was called on the event loop's thread, which has to "
                "fetch it: use api_client(), or call it through asyncio.to_thread()"
            )

        async def awaited() -> KubeconfigAccess:
            return await access()

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(_LOOP_WAIT_LIMIT_S)


def _now() -> datetime:
    return datetime.now(UTC)
