"""The parts of grpc.aio's ServicerContext and of a listener's authentication that RPC handlers use."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.review_budget import TokenOrigin

METADATA_S = 5.0
"""How long a canceled stream waits until its metadata are sent: longer only if nothing reads from the connection."""


class RpcContext(Protocol):
    """The part of grpc.aio.ServicerContext that RPC handlers use."""

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None: ...

    async def write(self, message: bytes) -> None: ...

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...


class ResponseWriter:
    """Writes the responses of a stream, which can be aborted after any write was canceled.

    gRPC sends the metadata with the first response and, if that write was canceled, again with the status. It refuses
    the second, so the call would never end for the client. The metadata are therefore sent before, and not canceled.
    """

    def __init__(self, context: RpcContext) -> None:
        self._context = context
        self._has_begun = False

    async def write(self, response: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._begin()
        await self._context.write(response)

    async def _begin(self) -> None:
        sending = asyncio.ensure_future(self._context.send_initial_metadata(()))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait((sending,), timeout=METADATA_S)
            raise


class Authenticator(Protocol):
    """The authentication of callers at a listener."""

    async def identify(self, context: RpcContext, *, max_age_s: float | None = None) -> Caller:
        """Return the caller; a bearer token's review must not be older than `max_age_s`.

        Raises CallError if authentication fails.
        """

    def origin(self, context: RpcContext) -> TokenOrigin:
        """Return the origin of a call (its connection, and the connection's owners) without authenticating the call."""

    def connected(self, context: RpcContext) -> Caller:
        """Return the caller as authenticated by the connection of a call."""

    def count_call(self, context: RpcContext, change: int) -> None:
        """Count a call that begins (1) or ends (-1) on its connection."""

    def refused(self, context: RpcContext) -> None:
        """Count a refused call. Close its connection if the connection's owner had too many refused calls."""
