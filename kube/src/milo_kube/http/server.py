"""A small HTTP/1.1 server for GET, HEAD and, if it accepts bodies, POST, with limits on connections, requests, unread
replies and idle time.

A reply is sent as a whole, with its Content-Length.
"""

import asyncio
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

import httptools
import msgspec

from milo_kube import addresses
from milo_kube.http.headers import Headers
from milo_kube.http.tls import TlsTransport

REQUEST_LIMIT = 16 << 10
"""Maximum bytes of a request without the body that its server accepts."""
FIELDS_LIMIT = 100
"""Maximum number of header fields of a request, and of fields of its query. In memory, short fields take many times
their size in the request."""
HELD_LIMIT = 8 << 20
"""Maximum bytes of request bodies, and of replies that clients have not read."""
LARGEST_HELD = 4
"""The limit is raised to this many times what the connection with the most holds, if that is more."""
ACCEPTED_AT_ONCE = 16
"""Maximum number of connections that are accepted in one iteration of the event loop: a request that follows its
connection is read before a flood of other connections can close this one."""
_CLOSED_AT_ONCE = 64
"""Maximum number of connections that are closed, because their clients have closed them, before each that is
accepted."""
_BACKLOG = 1024
HANDSHAKE_S = 10.0
IDLE_S = 120.0
"""Maximum time from the start of a connection, or its last response, to a whole request, and from there to its
response. Longer than the 90 s for which API servers, and most programs in Go, keep idle connections: a request that
meets the end of its connection fails, and they do not repeat a POST."""
_METHODS = ("GET", "HEAD")


class ServerRequest(msgspec.Struct, frozen=True):
    path: str
    query: Mapping[str, str]
    headers: Headers
    peer: str
    """The address of the client."""
    body: bytes = b""


class HttpReply(msgspec.Struct, frozen=True):
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


Handler = Callable[[ServerRequest], Awaitable[HttpReply]]


class HttpServer:
    """A server that passes each request to `handler`."""

    def __init__(
        self,
        handler: Handler,
        *,
        connections: int,
        body_limit: int = 0,
        held_limit: int = HELD_LIMIT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """If more than `connections` are open, one is closed, because idle clients must not block scrapes or probes:
        the oldest that waits for its next request, or else the oldest.

        `body_limit`: maximum bytes of the body of a POST; 0 for no POST. `held_limit`: as HELD_LIMIT. `tls` can be
        replaced, for the connections that are accepted afterwards."""
        self.handler = handler
        self.body_limit = body_limit
        self._held_limit = held_limit
        self._grown = 0
        """The bytes of bodies and replies since `limit_held` looked at each connection."""
        self.tls = tls
        self._limit = connections
        self._connections: dict[_Connection, None] = {}
        self._listening: list[asyncio.Server] = []
        self.is_stopping = False
        self._last_closed = asyncio.Event()
        """Set when no connection is left while the server stops."""

    async def start(self, host: str | None, port: int) -> str:
        """Listen, and return the URL. Raises OSError."""
        loop = asyncio.get_running_loop()
        bound = await loop.create_server(self._accepted, host, port, start_serving=False)
        sockets = [_ListeningSocket(fileno=listening.dup().detach()) for listening in bound.sockets]
        bound.close()
        for listening in sockets:
            listening.setblocking(False)
            server = await loop.create_server(self._accepted, sock=listening, backlog=ACCEPTED_AT_ONCE)
            self._listening.append(server)
            listening.listen(_BACKLOG)  # asyncio has one number for this and for how many it accepts at once
        address, port = sockets[0].getsockname()[:2]
        return f"http{'s' if self.tls else ''}://{addresses.host_port(address, port)}"

    async def stop(self, *, within_s: float = 0.0) -> None:
        """Accept no more connections, answer on those that are not idle for up to `within_s`, and close all."""
        for listening in self._listening:
            for bound in listening.sockets:
                asyncio.get_running_loop().remove_reader(bound.fileno())
        try:
            # asyncio never closes a connection that it has accepted, but not yet begun to handle, as its server closes.
            await asyncio.sleep(0)
        finally:
            while self._listening:
                self._listening.pop().close()
        self.is_stopping = True
        for idle in [connection for connection in self._connections if connection.is_idle]:
            idle.end()
        if self._connections and within_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._last_closed.wait()
        handling = [task for connection in list(self._connections) if (task := connection.end()) is not None]
        await asyncio.gather(*handling, return_exceptions=True)

    def _accepted(self) -> asyncio.Protocol:
        if (excess := len(self._connections) + 1 - self._limit) > 0:
            for first in sorted(self._connections, key=lambda connection: not connection.is_idle)[:excess]:
                first.end()
        made = _Connection(self)
        self._connections[made] = None
        return made if self.tls is None else made.secured(self.tls)

    def serves(self, connection: "_Connection") -> bool:
        """Return whether the connection has not been closed."""
        return connection in self._connections

    def closed(self, connection: "_Connection") -> None:
        self._connections.pop(connection, None)
        if self.is_stopping and not self._connections:
            self._last_closed.set()

    def limit_held(self, newest: "_Connection", size: int) -> None:
        """Close the connections that hold most, of these the oldest first, while all together hold too much memory.

        `size`: how much more the newest holds. What each holds is looked at only after a sixteenth of the limit: a
        client chooses how small the pieces of a body are."""
        self._grown += size
        if self._grown < self._held_limit // 16:
            return
        self._grown = 0
        held = {connection: connection.held for connection in self._connections if connection.held}
        excess = sum(held.values()) - max(self._held_limit, LARGEST_HELD * max(held.values(), default=0))
        for connection in sorted(held, key=held.__getitem__, reverse=True):
            if excess > 0 and connection is not newest:
                excess -= held[connection]
                connection.end()


class _ListeningSocket(socket.socket):
    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and close those before it that their clients have closed already: in a flood of them,
        the transports that asyncio makes would take so long that the kernel drops others."""
        for _ in range(_CLOSED_AT_ONCE):
            accepted, address = super().accept()
            try:
                if accepted.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return accepted, address
            except BlockingIOError:
                return accepted, address
            except OSError:
                pass
            accepted.close()
        raise BlockingIOError


class _Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._securing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_replied = False
        self._begin()
        self._wait()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers = Headers()
        self._fields = 0
        self._size = 0
        self._body = bytearray()
        self._is_complete = False
        self._keep_alive = False

    def secured(self, context: ssl.SSLContext) -> TlsTransport:
        """Return the TLS connection below this one, which is made once the handshake is complete."""
        self._transport = secured = TlsTransport(lambda _: self, context, None)
        self._securing = asyncio.get_running_loop().create_task(self._secure(secured), name="secure an HTTP connection")
        return secured

    async def _secure(self, secured: TlsTransport) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await secured.handshake()
        except OSError:
            self.end()
        except BaseException:
            self.end()
            raise

    @property
    def is_idle(self) -> bool:
        """Whether the last request was answered, and no other has begun to arrive."""
        return self._has_replied and self._task is None and not self._size and not self.unread

    @property
    def held(self) -> int:
        """The bytes of the request's body, and of replies that the client has not read."""
        return len(self._body) + self.unread

    @property
    def unread(self) -> int:
        """The bytes of replies that the client has not read."""
        # Before the first reply, what is buffered belongs to TLS.
        return self._transport.get_write_buffer_size() if self._transport is not None and self._has_replied else 0

    def end(self) -> asyncio.Task[None] | None:
        """Close at once, and return the canceled task of the handler, if any."""
        self._server.closed(self)
        self._body = bytearray()  # the parser refers to this object, so it exists until the garbage collector runs
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Of many connections that are accepted at once, the first are closed before they have a transport.
        if not self._server.serves(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()

    def data_received(self, data: bytes) -> None:
        if self.unread:
            # Close the connection: otherwise replies to a client that does not read them would accumulate.
            assert self._transport is not None
            self._transport.close()
            return
        self._size += len(data)
        if self._is_complete:
            self._keep_alive = False  # pipelining is not supported; the client may retry the next request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # a request to switch protocols, which is ignored
        except httptools.HttpParserError:
            if not self._is_complete:
                self._refuse(HTTPStatus.BAD_REQUEST)
            return
        if self._size - min(len(self._body), self._server.body_limit) > REQUEST_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._keep_alive = False
            raise ValueError("a second request before the response to the first")

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > FIELDS_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise ValueError("too many header fields")
        self._headers.add(name, value)

    def on_body(self, body: bytes) -> None:
        if self._server.body_limit:
            self._body += body
            if len(self._body) > self._server.body_limit:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                raise ValueError("the body is too large")
            self._server.limit_held(self, len(body))

    def on_message_complete(self) -> None:
        self._is_complete = True
        assert self._transport is not None
        method = self._parser.get_method().decode("latin-1")
        methods = (*_METHODS, "POST") if self._server.body_limit else _METHODS
        if method not in methods:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": ", ".join(methods)})
            return
        path, _, query = self._target.decode("latin-1").partition("?")
        try:
            fields = parse_qsl(query, keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        request = ServerRequest(
            path=unquote(path),
            query=dict(fields),
            headers=self._headers,
            peer=str((self._transport.get_extra_info("peername") or ("",))[0]),
            body=bytes(self._body),
        )
        self._keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._wait()
        answering = self._answer(request, with_body=method != "HEAD")
        self._task = asyncio.get_running_loop().create_task(answering, name="answer an HTTP request")

    async def _answer(self, request: ServerRequest, *, with_body: bool) -> None:
        try:
            response = await self._server.handler(request)
        except BaseException as error:
            # A timeout refers to its task, and so to this error and its frames: what the handler held, such as a large
            # object, would exist until the garbage collector runs.
            traceback.clear_frames(error.__traceback__)
            self._task = None
            self.end()
            raise
        assert self._transport is not None
        self._keep_alive = self._keep_alive and not self._server.is_stopping
        self._write(response, with_body=with_body, keep_alive=self._keep_alive)
        self._task = None
        if not self._keep_alive:
            self._transport.close()
            return
        self._begin()
        self._wait()

    def _refuse(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._is_complete = True
        response = HttpReply(f"{status.value} {status.phrase}\n".encode(), status=status, headers=headers or {})
        self._write(response, with_body=True, keep_alive=False)
        self._transport.close()

    def _write(self, response: HttpReply, *, with_body: bool, keep_alive: bool) -> None:
        assert self._transport is not None
        fields = {
            **response.headers,
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Connection": "keep-alive" if keep_alive else "close",
        }
        head = _head(response.status, fields)
        self._has_replied = True
        self._transport.write(head + response.body if with_body else head)
        self._server.limit_held(self, len(response.body))

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self.end)


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
