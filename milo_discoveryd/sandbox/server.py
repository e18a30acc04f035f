"""The listener: HTTPS on one address, that can be killed and come back as a process would."""

import asyncio
import ssl
from functools import partial

from aiohttp import web

from milo_discoveryd.sandbox.gateway import Gateway

_BODY_LIMIT = 3 * 1024 * 1024  # what a real API server takes


class Server:
    """Binds at the first start; each later start is on the same port."""

    def __init__(self, gateway: Gateway, tls: ssl.SSLContext, host: str, port: int) -> None:
        self._gateway = gateway
        self._tls = tls
        self.host = host
        self.port = port
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def is_listening(self) -> bool:
        return self._listener is not None

    async def start(self) -> None:
        if self._listener is not None:
            return
        loop = asyncio.get_running_loop()
        self._http = web.Server(
            self._gateway.handle,
            request_factory=partial(web.BaseRequest, loop=loop, client_max_size=_BODY_LIMIT),
            # A watch that nobody reads any more would wait for ever otherwise.
            handler_cancellation=True,
            access_log=None,
        )
        self._listener = await loop.create_server(
            self._http, self.host, self.port, ssl=self._tls, reuse_address=True, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse_new(self) -> None:
        """Close the listener, and nothing else."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def kill(self) -> None:
        """Stop as a killed process does: refused connections, and broken ones."""
        self.refuse_new()
        if self._http is None:
            return
        http, self._http = self._http, None
        for connection in http.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await http.shutdown(timeout=1.0)
