"""The HTTPS listener, which can be killed and started again like a process."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from aiohttp import web

from milo_sandbox.certificates import ServerIdentity, issue_identity

_BODY_LIMIT = 3 * 1024 * 1024  # bytes, the limit of a real API server

_FINISHING_S = 5.0
_DYING_S = 1.0


class ServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address on which a sandbox listens, and the identity of its certificate."""

    host: str = "127.0.0.1"
    port: int = 0
    """The port; 0 for any free port."""
    identity: ServerIdentity | None = None
    """The certificates; issued for the host by default."""


class _Http(web.Server):
    has_ended = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self.has_ended:  # the connection was in its TLS handshake during the shutdown
            transport.abort()


class HttpsServer:
    """The HTTPS listener. It binds at the first start; later starts use the same port."""

    def __init__(self, address: ServerAddress) -> None:
        self.identity = address.identity or issue_identity(address.host)
        self._tls = self.identity.ssl_context()
        self._host = address.host
        self.port = address.port
        self._http: _Http | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self.port}"

    async def start(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        if self._listener is not None:
            return
        loop = asyncio.get_running_loop()
        self._http = _Http(
            handle,
            request_factory=partial(web.BaseRequest, loop=loop, client_max_size=_BODY_LIMIT),
            # Otherwise a watch whose client has disconnected would stay open until its next write.
            handler_cancellation=True,
            access_log=None,
        )
        self._listener = await loop.create_server(
            self._http, self._host, self.port, ssl=self._tls, reuse_address=True, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse_new(self) -> None:
        """Close the listener and idle connections."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            for listening in listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            # asyncio never closes a connection that it has accepted, but not yet begun to handle, as its server closes.
            await asyncio.sleep(0)
            listener.close()
        if self._http is not None:
            self._http.pre_shutdown()

    async def finish(self) -> None:
        """Wait for requests in flight to finish, up to a timeout."""
        await self._shut_down(_FINISHING_S)

    async def kill(self) -> None:
        """Stop as a killed process does: break connections, and refuse new ones."""
        await self.refuse_new()
        for connection in self._http.connections if self._http is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self._shut_down(_DYING_S)

    async def _shut_down(self, timeout: float) -> None:
        if self._http is not None:
            http, self._http = self._http, None
            http.has_ended = True
            await http.shutdown(timeout=timeout)
