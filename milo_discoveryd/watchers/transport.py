"""Requests to one API server: bytes in, bytes out, and every failure one `TransportError`.

It knows nothing of lists and watches. What it takes care of is the credential (fetched anew once when the server
answers 401), the TLS identity (a new connection when a CA or certificate was renewed; what runs on the old one is left
to end) and the bounds: every wait has a deadline, every body a size.
"""

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import aiohttp

from milo_discoveryd.credentials import Credential, Upstream
from milo_discoveryd.credentials.authentication.tls import TlsIdentity
from milo_discoveryd.daemon_errors import TransportError
from milo_discoveryd.watchers.connection import REDIRECTS, Connection
from milo_discoveryd.watchers.faults import FOREIGN, translate
from milo_discoveryd.watchers.proxy import environment_proxy

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientResponse

__all__ = ["Answer", "Query", "Stream", "Transport", "TransportError", "open_transport"]

Query: TypeAlias = Sequence[tuple[str, str]]

RESPONSE_LIMIT = 256 << 20
CONNECT_TIMEOUT_S = 10.0

# Segments of letters, digits and a little more. Names come from objects that tenants write, and a URL library that
# normalises "..", "%2e%2e", "?" or "#" would take the request, and its credential, to another place.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~:@-]+)+/?|/")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream(Protocol):
    """An answer whose body is read as it comes."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces of any size, ending when the server ends it. A cut raises TransportError."""

    async def read_error(self, limit: int) -> bytes:
        """The beginning of the body, for an answer that is not the one asked for."""


class Transport:
    host: str

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str],
        response_limit: int = RESPONSE_LIMIT,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.host = upstream.server
        self._upstream = upstream
        self._response_limit = response_limit
        self._connect_timeout_s = connect_timeout_s
        named = upstream.proxy.reveal() if upstream.proxy else None
        self._proxy = named or environment_proxy(upstream.server, environ)
        self._connection: Connection | None = None
        self._replaced: set[Connection] = set()

    async def get(self, path: str, query: Query = (), *, timeout_s: float) -> Answer:
        return await self._whole(_Request("GET", path, tuple(query)), timeout_s)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        # Decoded since the client beneath encodes; what is posted is rare and small.
        return await self._whole(_Request("POST", path, body=json.loads(body)), timeout_s)

    async def delete(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        return await self._whole(_Request("DELETE", path, body=json.loads(body)), timeout_s)

    def stream(
        self, path: str, query: Query = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        """`connect_timeout_s` is for the connection, `silence_s` for the answer's head and between any two bytes.

        None for a reader that has deadlines of its own: a timer for each chunk is a part of what a chunk costs.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_read=silence_s)
        return self._exchange(_Request("GET", path, tuple(query), encoding="identity", is_watch=True), timeout)

    async def drop(self) -> None:
        """Whatever is under way on any connection is lost; the next request makes its own."""
        await self.aclose()

    async def aclose(self) -> None:
        connections = [*self._replaced, *([self._connection] if self._connection else [])]
        self._connection = None
        self._replaced.clear()
        for connection in connections:
            await connection.aclose()

    async def _whole(self, request: "_Request", timeout_s: float) -> Answer:
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, self._connect_timeout_s))
        async with self._exchange(request, timeout) as response:
            return Answer(response.status, response.headers, await response.read(self._response_limit))

    @asynccontextmanager
    async def _exchange(self, request: "_Request", timeout: aiohttp.ClientTimeout) -> AsyncIterator["_Response"]:
        async with AsyncExitStack() as sent:
            credential = await self._credential()
            response = await sent.enter_async_context(self._sent(request, credential, timeout))
            if response.status == 401:
                renewed = await self._credential(refused=credential)
                if renewed != credential:
                    await sent.aclose()
                    response = await sent.enter_async_context(self._sent(request, renewed, timeout))
            yield response

    async def _credential(self, refused: Credential | None = None) -> Credential:
        with translated(self.host):
            return await self._upstream.credentials.credential(refused=refused)

    @asynccontextmanager
    async def _sent(
        self, request: "_Request", credential: Credential, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator["_Response"]:
        connection = self._connected(credential)
        connection.users += 1
        try:
            with translated(self.host):
                pool = connection.watches if request.is_watch else connection.requests
                response = await pool.send(
                    request.method,
                    request.path,
                    query=request.query,
                    headers=request.headers(credential),
                    body=request.body,
                    timeout=timeout,
                )
            try:
                yield _Response(response, self.host)
            finally:
                response.close()  # back to the pool where the body was read, dropped otherwise
        finally:
            connection.users -= 1
            await self._close_replaced()

    def _connected(self, credential: Credential) -> Connection:
        """Awaits nothing, so that the connection cannot be replaced and closed before its user is counted."""
        with translated(self.host):
            identity = TlsIdentity(authorities=self._upstream.trusted(), certificate=credential.certificate)
            current = self._connection
            if current is not None and current.identity == identity:
                return current
            made = Connection(self.host, identity, tls_server_name=self._upstream.tls_server_name, proxy=self._proxy)
        self._connection = made
        if current is not None:
            self._replaced.add(current)  # closed at the end of the exchange that this one is for, or of its own last
        return made

    async def _close_replaced(self) -> None:
        for connection in [connection for connection in self._replaced if not connection.users]:
            self._replaced.discard(connection)
            await connection.aclose()


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: object = None
    encoding: str = "gzip"
    is_watch: bool = False

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"not a path to send a credential to: {self.path!r}")

    def headers(self, credential: Credential) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": self.encoding}
        if credential.token is not None:
            headers["Authorization"] = f"Bearer {credential.token.reveal()}"
        return headers


class _Response:
    def __init__(self, response: "ClientResponse", host: str) -> None:
        self._response = response
        self._host = host

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self.status in REDIRECTS:
            return  # not followed, and dropped by then
        with translated(self._host):
            while chunk := await self._response.content.readany():
                yield chunk

    async def read_error(self, limit: int) -> bytes:
        body = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) >= limit:
                    break
        return bytes(body[:limit])

    async def read(self, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async with aclosing(self.chunks()) as rest:
            async for chunk in rest:
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    message = f"{self._host} answered with more than {limit} bytes; no more are read"
                    raise TransportError("closed", message)
        return b"".join(chunks)


@contextmanager
def translated(host: str) -> Iterator[None]:
    try:
        yield
    except FOREIGN as error:
        raise translate(error, host) from error


def open_transport(
    upstream: Upstream,
    *,
    response_limit: int = RESPONSE_LIMIT,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    environ: Mapping[str, str] = os.environ,
) -> Transport:
    """Opens nothing yet: the first request does, and imports the kubernetes package, which takes most of a second."""
    return Transport(upstream, environ=environ, response_limit=response_limit, connect_timeout_s=connect_timeout_s)
