"""The end of a running stream's authentication, and the repeated review of its bearer token."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError, UnavailableError
from milo_discoveryd.server.calls.rpc_context import Authenticator, RpcContext

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


@asynccontextmanager
async def verified(
    authenticator: Authenticator, caller: Caller, context: RpcContext
) -> AsyncIterator[Freshness | None]:
    """End the stream when the caller's authentication expires, or its token is rejected."""
    loop = asyncio.get_running_loop()
    rejected: Exception | None = None
    expires_at = caller.expires_at

    async def verify(verification: StreamVerification) -> None:
        nonlocal rejected
        try:
            await verification.run()
        except Exception as error:  # noqa: BLE001 - raised in the stream: its caller is no longer verified
            rejected = error
            expiry.reschedule(loop.time())

    def authenticate(max_age_s: float) -> Awaitable[Caller]:
        return authenticator.identify(context, max_age_s=max_age_s)

    verification = StreamVerification(caller, authenticate, loop.time) if caller.user else None
    reviewing = None
    try:
        async with asyncio.timeout(None if expires_at is None else expires_at - time.time()) as expiry:
            reviewing = None if verification is None else loop.create_task(verify(verification))
            yield verification
    except TimeoutError:
        if not expiry.expired():
            raise
        if rejected is not None:
            raise rejected from None
        message = "the caller's certificate or token expired; authenticate again and retry"
        raise UnavailableError("IDENTITY_ENDED", message, retry_after_s=0) from None
    finally:
        if reviewing is not None:
            reviewing.cancel()
