"""An HTTP client with keep-alive connections.

It follows no redirects, stores no cookies, and reads neither ~/.netrc nor the environment.
"""

import asyncio
import ssl
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from milo_kube.http.connection import Connection, Response
from milo_kube.http.dialing import Origin, Proxy, dial
from milo_kube.http.errors import TransportError

DIALS_PER_SERVER = 32
"""Handshakes in flight: what those of thousands of watches hold at the same time stays in the process as fragments."""
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
        self._dialing: WeakValueDictionary[_Key, asyncio.Semaphore] = WeakValueDictionary()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        proxy: str | None = None,
        connect_timeout_s: float,
        silence_s: float | None = None,
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request and yield its response when status and headers have arrived. Raises TransportError.

        `url` has no user and no fragment. `silence_s` bounds the wait for the head of the response.
        """
        return _Exchange(
            self,
            self._begin(
                method,
                url,
                headers=headers,
                body=body,
                proxy=proxy,
                connect_timeout_s=connect_timeout_s,
                silence_s=silence_s,
            ),
        )

    async def _begin(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        proxy: str | None,
        connect_timeout_s: float,
        silence_s: float | None,
    ) -> tuple[_Key, Connection, Response]:
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
        connection = status = None
        try:
            while True:
                connection = await self._connection(key, connect_timeout_s)
                is_kept = connection.requests > 0
                response = connection.send(method, target, sent, body or b"")
                try:
                    await response.head(silence_s)
                except TransportError as error:
                    # The server may close an idle connection while the request is sent: retry on another one.
                    is_stale = is_kept and error.cause == "closed" and not response.has_begun
                    if not is_stale or self._is_closed or method not in _REPEATABLE:
                        raise
                    self.release(key, connection, None)
                    connection = None
                else:
                    status = response.status
                    return key, connection, response
        except BaseException:
            if connection is not None:
                self.release(key, connection, None)
            raise
        finally:
            if span is not None:
                span.end(status)

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
            async with asyncio.timeout(timeout_s), self._dials(key):
                connection = await dial(origin, self._context, server_name=self._tls_server_name, proxy=proxy)
        except TimeoutError:
            raise TransportError("timeout", f"{origin} did not accept a connection in time") from None
        if self._is_closed:
            connection.abort()
            raise TransportError("closed", f"the connection to {origin} was closed by this process")
        self._busy.add(connection)
        return connection

    def _dials(self, key: _Key) -> asyncio.Semaphore:
        """Return what limits the connections to a server that are made at the same time."""
        dials = self._dialing.get(key)
        if dials is None:
            dials = self._dialing[key] = asyncio.Semaphore(DIALS_PER_SERVER)
        return dials

    def release(self, key: _Key, connection: Connection, response: Response | None) -> None:
        """Keep the connection for further requests, or close it if the response was not read to its end."""
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


class _Exchange:
    """A request and its response. A class rather than a generator, since there is one for each open watch."""

    __slots__ = ("_beginning", "_begun", "_client")

    def __init__(self, client: Client, beginning: Coroutine[Any, Any, tuple[_Key, Connection, Response]]) -> None:
        self._client = client
        self._beginning = beginning

    async def __aenter__(self) -> Response:
        self._begun = await self._beginning
        del self._beginning  # with the headers of the request
        return self._begun[2]

    async def __aexit__(self, *_: object) -> None:
        self._client.release(*self._begun)
