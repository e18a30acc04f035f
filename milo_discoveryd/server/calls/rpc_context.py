"""The parts of grpc.aio's ServicerContext and of a listener's authentication that RPC handlers use."""

from collections.abc import Sequence
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.review_budget import TokenOrigin


class RpcContext(Protocol):
    """The part of grpc.aio.ServicerContext that RPC handlers use."""

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None: ...

    async def write(self, message: bytes) -> None: ...

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...


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

    def taken(self, context: RpcContext) -> None:
        """Note that gRPC took a call from its queue."""

    def count_call(self, context: RpcContext, change: int) -> None:
        """Count a call that begins (1) or ends (-1) on its connection."""

    def refused(self, context: RpcContext) -> None:
        """Count a refused call. Close its connection if the connection's owner had too many refused calls."""

    def close(self, context: RpcContext) -> None:
        """Close the connection of a call, whose client reads nothing."""
