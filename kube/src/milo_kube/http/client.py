"""An HTTP client with keep-alive connections.

It follows no redirects, stores no cookies, and reads neither ~/.netrc nor the environment.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from milo_kube.costly_steps import Handshakes, Turns
from milo_kube.http.connection import Connection, Refusal, Response
from milo_kube.http.connection_memory import ConnectionMemory
from milo_kube.http.dialing import ClientTls, ContextProvider, Dialing, Http2, Origin, Proxy, dial
from milo_kube.http.errors import TransportError
from milo_kube.http.headers import SentHeaders

DIALS_PER_SERVER = 32
"""Maximum concurrent handshakes with a server.

Thousands would fragment the heap, so that freed memory is not returned to the system.
"""
_HTTP2_DIALS = 4
"""Maximum concurrent handshakes if HTTP/2 is possible: the first connection may carry all waiting requests."""
_ATTEMPTS = 4
_MOST_REMEMBERED = 10_000
"""Maximum number of servers whose protocols a client remembers: servers come and go for months."""
_Key = tuple[Origin, Proxy | None]


class Span(Protocol):
    def end(self, status: int | None) -> None:
        """End the span; `status` is None if there was no response."""


class Tracer(Protocol):
    def begin(self, method: str, url: str, headers: dict[str, str | tuple[str, ...]]) -> Span:
        """Begin a span, and add its propagation headers to `headers`."""


tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
"""The tracer for requests of the current task and the tasks that it starts."""


class Client:
    """A pool of connections with one TLS identity, to any number of servers."""

    def __init__(
        self,
        context: ContextProvider,
        *,
        user_agent: str,
        tls_server_name: str | None = None,
        idle_s: float = 15.0,
        memory: ConnectionMemory | None = None,
        http2: Http2 | None = None,
        turns: Callable[[str], Turns] | None = None,
    ) -> None:
        """`context` is called for each connection. `idle_s`: how long an idle connection is kept open. `memory` limits
        the memory of connections, of all clients that share it. `http2` (`Http2Connection`) offers HTTP/2 to servers.
        `turns`: see `ClientTls`."""
        self._memory = memory or ConnectionMemory()
        self._tls = ClientTls(context, turns or partial(Handshakes().turns, 0), self._memory)
        self._user_agent = user_agent
        self._tls_server_name = tls_server_name
        self._idle_s = idle_s
        self._http2 = http2
        self._selects_http1: set[_Key] = set()
        """Servers that did not select HTTP/2 at the last handshake."""
        self._requires_http1: set[_Key] = set()
        """Servers that selected HTTP/2, and then required HTTP/1.1 for a request."""
        self._open: set[Connection] = set()
        self._with_room: dict[_Key, dict[Connection, None]] = {}
        """Connections that accept another request, as an ordered set: the one that became available most recently is
        last."""
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._is_closed = False
        self._dialing: WeakValueDictionary[_Key, asyncio.Semaphore] = WeakValueDictionary()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: SentHeaders,
        body: bytes | None = None,
        proxy: str | None = None,
        connect_timeout_s: float,
        silence_s: float | None = None,
        sending: Callable[[], None] = lambda: None,
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request and yield its response when status and headers have arrived. Raises TransportError.

        `url` must not contain a user or a fragment. `silence_s` limits the time without data while headers are read.
        `sending` is called when the request is about to be sent, each time; an error that it raises prevents that.
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
                sending=sending,
            ),
        )

    async def _begin(
        self,
        method: str,
        url: str,
        *,
        headers: SentHeaders,
        body: bytes | None,
        proxy: str | None,
        connect_timeout_s: float,
        silence_s: float | None,
        sending: Callable[[], None],
    ) -> tuple[_Key, Connection, Response]:
        parts = urlsplit(url)
        key = _key(Origin.of(url), proxy)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent: dict[str, str | tuple[str, ...]] = {"Host": key[0].host_header, "User-Agent": self._user_agent, **headers}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        if key[1] is not None and key[0].scheme == "http":
            target = str(key[0]) + target
            if key[1].authorization is not None:
                sent["Proxy-Authorization"] = key[1].authorization
        tracing = tracer.get()
        span = None if tracing is None else tracing.begin(method, url.partition("?")[0], sent)
        status = None
        try:
            for attempt in itertools.count(1):
                connection = await self._connection(key, connect_timeout_s)
                is_kept = connection.requests > 0
                try:
                    sending()
                    response = connection.send(method, target, sent, body or b"")
                finally:
                    self._settle(key, connection)
                try:
                    await response.head(silence_s)
                except TransportError as error:
                    self.release(key, connection, response)
                    # The server may close an idle connection while the request is sent.
                    is_stale = is_kept and error.cause == "closed" and not response.has_begun
                    is_repeatable = (is_stale and method == "GET") or response.refusal is not None
                    if not is_repeatable or attempt == _ATTEMPTS or self._is_closed:
                        raise
                    if response.refusal is Refusal.REQUIRES_HTTP_1:
                        _remember(self._requires_http1, key)
                except BaseException:
                    self.release(key, connection, response)
                    raise
                else:
                    status = response.status
                    return key, connection, response
            raise AssertionError("no attempt returned or raised")
        finally:
            if span is not None:
                span.end(status)

    async def aclose(self) -> None:
        """Close every connection. Requests in flight fail."""
        self._is_closed = True
        for connection, timer in self._idle.items():
            timer.cancel()
            self._memory.remove_idle(connection)
        self._idle.clear()
        self._with_room.clear()
        for connection in tuple(self._open):
            connection.abort()
        self._open.clear()
        await asyncio.sleep(0)  # the event loop closes the sockets in its next iteration

    async def _connection(self, key: _Key, timeout_s: float) -> Connection:
        """Return a connection over which one more request can be sent at once."""
        if (connection := self._kept(key)) is not None:
            return connection
        origin, dials, dialing = key[0], self._dials(key), Dialing()
        try:
            async with asyncio.timeout(timeout_s), dials:
                if (connection := self._kept(key)) is not None:
                    return connection
                connection = await self._dialed(key, dials, dialing)
        except TimeoutError:
            message = f"no connection to {origin} within {timeout_s:g} s"
            raise TransportError("timeout", message, is_unreached=dialing.is_unreached) from None
        if self._is_closed:
            connection.abort()
            raise TransportError("closed", f"the connection to {origin} was closed by this process")
        if not connection.has_room:
            connection.abort()
            raise TransportError(
                "connect",
                f"{origin} accepts no requests: it allows 0 concurrent HTTP/2 streams",
            )
        self._open.add(connection)
        return connection

    def _kept(self, key: _Key) -> Connection | None:
        kept = self._with_room.get(key)
        while kept:
            connection = next(reversed(kept))
            if self._is_usable(key, connection) and connection.has_room:
                return connection
            self._settle(key, connection)
        return None

    async def _dialed(self, key: _Key, dials: asyncio.Semaphore, dialing: Dialing) -> Connection:
        origin, proxy = key
        http2 = None if key in self._requires_http1 else self._http2
        connection = await dial(
            origin, self._tls, server_name=self._tls_server_name, proxy=proxy, http2=http2, dialing=dialing
        )
        if connection.is_multiplexed:
            self._selects_http1.discard(key)
        elif self._http2 is not None and key not in self._selects_http1:
            _remember(self._selects_http1, key)
            for _ in range(DIALS_PER_SERVER - _HTTP2_DIALS):
                dials.release()
        return connection

    def _dials(self, key: _Key) -> asyncio.Semaphore:
        """Return the semaphore that limits the concurrent handshakes with a server."""
        dials = self._dialing.get(key)
        if dials is None:
            is_http1 = self._http2 is None or key in self._selects_http1
            dials = self._dialing[key] = asyncio.Semaphore(DIALS_PER_SERVER if is_http1 else _HTTP2_DIALS)
        return dials

    def release(self, key: _Key, connection: Connection, response: Response) -> None:
        """End the exchange, and keep the connection for further requests if that is possible."""
        response.close()
        self._settle(key, connection)

    def _settle(self, key: _Key, connection: Connection) -> None:
        """Keep the connection if it has room for a request; close it if it is idle and not usable."""
        if (timer := self._idle.pop(connection, None)) is not None:
            timer.cancel()
            self._memory.remove_idle(connection)
        is_usable = self._is_usable(key, connection)
        if is_usable and connection.has_room:
            self._with_room.setdefault(key, {})[connection] = None
        elif kept := self._with_room.get(key):
            kept.pop(connection, None)
            if not kept:
                del self._with_room[key]
        if not connection.is_idle:
            return
        if is_usable:
            expire = partial(self._expire, key, connection)
            self._idle[connection] = asyncio.get_running_loop().call_later(self._idle_s, expire)
            self._memory.add_idle(connection, expire)
        else:
            self._open.discard(connection)
            connection.abort()

    def _is_usable(self, key: _Key, connection: Connection) -> bool:
        is_refused = key in self._requires_http1 and connection.is_multiplexed
        return connection.is_usable and not is_refused and not self._is_closed

    def _expire(self, key: _Key, connection: Connection) -> None:
        connection.abort()
        self._settle(key, connection)


def _remember(servers: set[_Key], key: _Key) -> None:
    if len(servers) >= _MOST_REMEMBERED:
        servers.clear()
    servers.add(key)


def _key(origin: Origin, proxy: str | None) -> _Key:
    try:
        return origin, Proxy.of(proxy) if proxy else None
    except ValueError:  # its text may have the password
        problem = "is not http(s)://HOST[:PORT] (SOCKS is not supported)"
        raise TransportError("connect", f"the proxy for {origin} {problem}") from None


class _Exchange:
    """A request and its response. Not a generator, which would take more memory in each open watch."""

    __slots__ = ("_beginning", "_begun", "_client")

    def __init__(self, client: Client, beginning: Coroutine[Any, Any, tuple[_Key, Connection, Response]]) -> None:
        self._client = client
        self._beginning = beginning

    async def __aenter__(self) -> Response:
        self._begun = await self._beginning
        del self._beginning  # frees the request's headers
        return self._begun[2]

    async def __aexit__(self, *_: object) -> None:
        self._client.release(*self._begun)
