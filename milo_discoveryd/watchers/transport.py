"""Requests of the daemon to one API server."""

import os
from collections.abc import Mapping

from milo_discoveryd import USER_AGENT
from milo_kube.api_server import CONNECT_TIMEOUT_S, ApiServer, Pools
from milo_kube.upstream import Upstream

RESPONSE_LIMIT = 128 << 20


class Transport(ApiServer):
    """Requests to one API server, over connections of its own."""

    host: str

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str] = os.environ,
        response_limit: int = RESPONSE_LIMIT,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Create the transport. The first request opens a connection."""
        super().__init__(
            upstream,
            Pools(user_agent=USER_AGENT, environ=environ),
            proxy=upstream.proxy.reveal() if upstream.proxy else None,
            response_limit=response_limit,
            connect_timeout_s=connect_timeout_s,
        )
        self.host = upstream.server

    async def drop(self) -> None:
        """Close every connection. Requests in flight fail; the next request opens a connection."""
        await self._pools.aclose()

    async def aclose(self) -> None:
        await self._pools.aclose()
