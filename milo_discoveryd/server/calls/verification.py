"""Repeated review of the bearer token of a running stream."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError, UnavailableError

HANDOUT_MAX_AGE_S = 10.0
"""The maximum age of the last review when a kubeconfig is issued, unless reviews fail: see `GRACE_S`."""
STREAM_MAX_AGE_S = 60.0
"""The interval between reviews of a running stream's token."""
GRACE_S = 300.0
"""How long after the last review a stream still gets kubeconfigs while no review is possible."""
RETRY_S = 5.0


class Freshness(Protocol):
    """The freshness of a caller's authentication, which decides whether kubeconfigs are issued."""

    wake: Callable[[], None]
    """Called after a review."""

    def is_fresh(self) -> bool:
        """Return whether the last review is recent enough. If not, request another one."""


class AlwaysFresh:
    """The freshness of callers without a bearer token: their connections stay authenticated."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None

    def is_fresh(self) -> bool:
        return True


class StreamVerification:
    """The repeated review of a stream's token, every minute and before kubeconfigs are issued."""

    def __init__(
        self, caller: Caller, authenticate: Callable[[float], Awaitable[Caller]], clock: Callable[[], float]
    ) -> None:
        """`authenticate` raises CallError. Its argument is the maximum age of the review that it may use."""
        self.wake: Callable[[], None] = lambda: None
        self._caller = caller
        self._authenticate = authenticate
        self._clock = clock
        self._reviewed_at = clock()
        self._is_failing = False
        self._requested = asyncio.Event()

    def is_fresh(self) -> bool:
        age_s = self._clock() - self._reviewed_at
        if age_s <= HANDOUT_MAX_AGE_S or (self._is_failing and age_s <= GRACE_S):
            return True
        if not self._is_failing:
            self._requested.set()
        return False

    async def run(self) -> None:
        """Review the token repeatedly until canceled.

        Raises UnavailableError if the token is rejected, or its user or groups change.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_review_in_s):
                    await self._requested.wait()
            self._requested.clear()
            await self._review()
            self.wake()

    @property
    def _next_review_in_s(self) -> float:
        return RETRY_S if self._is_failing else max(0.0, self._reviewed_at + STREAM_MAX_AGE_S - self._clock())

    async def _review(self) -> None:
        try:
            reviewed = await self._authenticate(HANDOUT_MAX_AGE_S)
        except UnavailableError:
            self._is_failing = True
            return
        except UnauthenticatedError as error:
            # Not UNAUTHENTICATED, which is final: the client may have a valid token by now, and retries with it.
            message = f"{error}; call again with a valid token"
            raise UnavailableError("IDENTITY_ENDED", message, retry_after_s=0) from None
        if (reviewed.user, reviewed.groups) != (self._caller.user, self._caller.groups):
            message = "the token's user or groups have changed; call again"
            raise UnavailableError("IDENTITY_CHANGED", message, retry_after_s=0)
        self._reviewed_at, self._is_failing = self._clock(), False
