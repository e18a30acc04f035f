"""An HTTP client with keep-alive connections.

It follows no redirects, stores no cookies, and reads neither ~/.netrc nor the environment.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Protocol
from urllib.parse import urlsplit

from milo_kube.http.connection import Connection, Response
from milo_kube.http.dialing import Origin, Proxy, dial
from milo_kube.http.errors import TransportError

_REPEATABLE = frozenset({"GET", "DELETE"})
_Key = tuple[Origin, Proxy | None]


class Span(Protocol):
    def end(self, status: int | None) -> None:
        """End the span; `status` is None if there was no response."""


class Tracer(Protocol):
    def begin(self, method: str, url: str, headers: dict[str, str]) -> Span:
        """Begin a span, and add its propagation headers to `headers`."""


tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""The tracer for requests of the current task and the tasks that it starts."""


class Client:
    """A pool of connections with one TLS identity, to any number of servers."""

    def __init__(
        self, context: ssl.SSLContext, *, user_agent: str, tls_server_name: str | None = None, idle_s: float = 15.0
    ) -> None:
        """`idle_s`: how long an idle connection is kept open."""
        self._context = context
        self._user_agent = user_agent
        self._tls_server_name = tls_server_name
        self._idle_s = idle_s
        self._idle: dict[_Key, list[tuple[Connection, asyncio.TimerHandle]]] = {}
        self._busy: set[Connection] = set()
        self._is_closed = False

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        proxy: str | None = None,
        connect_timeout_s: float,
        silence_s: float | None = None,
    ) -> AsyncIterator[Response]:
        """Send a request and yield its response when status and headers have arrived. Raises TransportError.

        `url` has no user and no fragment. `silence_s` bounds the wait for the head of the response.
        """
        parts = urlsplit(url)
        key = Origin.of(url), Proxy.of(proxy) if proxy else None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"Host": key[0].host_header, "User-Agent": self._user_agent, **headers}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        if key[1] is not None and key[0].scheme == "http":
            target = str(key[0]) + target
            if key[1].authorization is not None:
                sent["Proxy-Authorization"] = key[1].authorization
        tracing = tracer.get()
        span = None if tracing is None else tracing.begin(method, url.partition("?")[0], sent)
        connection = response = None
        try:
            while response is None:
                connection = await self._connection(key, connect_timeout_s)
                is_kept = connection.requests > 0
                sending = connection.send(method, target, sent, body or b"")
                try:
                    await sending.head(silence_s)
                except TransportError as error:
                    # The server may close an idle connection while the request is sent: retry on another one.
                    is_stale = is_kept and error.cause == "closed" and not sending.has_begun
                    if not is_stale or self._is_closed or method not in _REPEATABLE:
                        raise
                    self._release(key, connection, None)
                    connection = None
                else:
                    response = sending
            # A watch stays here for minutes: what it holds is multiplied by the number of clusters.
            del parts, target, sent, headers, url, body
            if span is not None:
                span.end(response.status)
                span = None
            yield response
        finally:
            if span is not None:
                span.end(None)
            if connection is not None:
                self._release(key, connection, response)

    async def aclose(self) -> None:
        """Close every connection. Requests in flight fail."""
        self._is_closed = True
        idle, self._idle = self._idle, {}
        for kept in idle.values():
            for connection, timer in kept:
                timer.cancel()
                connection.abort()
        for connection in self._busy:
            connection.abort()
        await asyncio.sleep(0)  # the event loop closes the sockets in its next iteration

    async def _connection(self, key: _Key, timeout_s: float) -> Connection:
        kept = self._idle.get(key, [])
        while kept:
            connection, timer = kept.pop()
            timer.cancel()
            if connection.is_usable:
                self._busy.add(connection)
                return connection
        origin, proxy = key
        try:
            async with asyncio.timeout(timeout_s):
                connection = await dial(origin, self._context, server_name=self._tls_server_name, proxy=proxy)
        except TimeoutError:
            raise TransportError("timeout", f"{origin} did not accept a connection in time") from None
        if self._is_closed:
            connection.abort()
            raise TransportError("closed", f"the connection to {origin} was closed by this process")
        self._busy.add(connection)
        return connection

    def _release(self, key: _Key, connection: Connection, response: Response | None) -> None:
        self._busy.discard(connection)
        if response is None:
            connection.abort()
            return
        response.close()
        if self._is_closed or not (response.is_reusable and connection.is_usable):
            connection.abort()
            return
        kept = self._idle.setdefault(key, [])
        timer = asyncio.get_running_loop().call_later(self._idle_s, self._expire, key, connection)
        kept.append((connection, timer))

    def _expire(self, key: _Key, connection: Connection) -> None:
        connection.abort()
        kept = [each for each in self._idle.get(key, ()) if each[0] is not connection and each[0].is_usable]
        if kept:
            self._idle[key] = kept
        else:
            self._idle.pop(key, None)
