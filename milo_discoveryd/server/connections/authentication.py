"""Authentication of callers by the listener that they call."""

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.review_budget import TokenOrigin
from milo_discoveryd.server.calls.rpc_context import RpcContext


class ListenerAuthentication:
    """Identifies a caller only by the listener that it called."""

    def __init__(self, listener: str) -> None:
        self._listener = listener

    async def identify(self, context: RpcContext, *, max_age_s: float | None = None) -> Caller:
        return self.connected(context)

    def origin(self, context: RpcContext) -> TokenOrigin:
        return TokenOrigin(context.peer())

    def connected(self, context: RpcContext) -> Caller:
        peer = context.peer()
        return Caller(listener=self._listener, peer=peer, over_tcp=not peer.startswith("unix:"))

    def count_call(self, context: RpcContext, change: int) -> None:
        """Do nothing: without an acceptor, the daemon does not evict idle connections."""

    def refused(self, context: RpcContext) -> None:
        """Do nothing: gRPC for Python cannot close a single connection."""

    def close(self, context: RpcContext) -> None:
        """Do nothing, for the same reason."""
