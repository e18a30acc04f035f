"""Authenticated requests to one API server. A request without a usable response raises `TransportError`.

Renews the credential once when the server responds 401, opens new connections when a CA or certificate was renewed
(requests on the old ones may finish), and limits the duration and the size of each response, except for streams.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from milo_kube.api_request import JSON, Access, Answer, ApiRequest, Stream
from milo_kube.costly_steps import Handshakes
from milo_kube.credential import Credential, CredentialError
from milo_kube.http import errors
from milo_kube.http.client import Client
from milo_kube.http.connection import Response, ResponseBody
from milo_kube.http.connection_memory import ConnectionMemory
from milo_kube.http.dialing import Http2
from milo_kube.http.errors import TransportError
from milo_kube.http.proxy import environment_proxy
from milo_kube.tls_identity import ClientContexts, TlsIdentity

Query: TypeAlias = Sequence[tuple[str, str]]

CONNECT_TIMEOUT_S = 10.0


class AccessProvider(Protocol):
    async def access(self, *, within_s: float, refused: Credential | None = None) -> Access:
        """Return the server, its CAs and the credential to use now.

        Raises TransportError if there is no credential `within_s`.

        `refused` is a credential that was rejected with 401. A provider that can obtain another credential does so; any
        other provider returns the same one again.
        """


def no_credential(error: CredentialError, server: str) -> TransportError:
    return TransportError("credential", f"no credential for {server}: {error}")


class Pool(msgspec.Struct, eq=False):
    """The connections with one TLS identity, and the number of requests and API servers that use them."""

    identity: TlsIdentity
    client: Client
    users: int = 0


class Pools:
    """Connection pools by TLS identity. API servers with equal identities share a pool.

    A pool that has users stays open until `aclose`, so that requests in flight can finish when a CA is renewed.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        idle_s: float = 15.0,
        memory: ConnectionMemory | None = None,
        kept: int = 0,
        environ: Mapping[str, str] = os.environ,
        http2: Http2 | None = None,
    ) -> None:
        """`idle_s`: how long an idle connection is kept open.

        `memory` limits the memory of connections.
        `kept`: if there are more pools than this, the least recently used pools without users are closed.
        Proxies are read from the variables in `environ`.
        `http2` (`Http2Connection`) offers HTTP/2 to servers, unless `DISABLE_HTTP2` is set, as in client-go.
        """
        self._user_agent = user_agent
        self._idle_s = idle_s
        self._memory = memory or ConnectionMemory()
        self._kept = kept
        self._environ = environ
        self._http2 = None if environ.get("DISABLE_HTTP2") else http2
        self._contexts = ClientContexts()
        self._handshakes = Handshakes()
        self._pools: dict[TlsIdentity, Pool] = {}
        """The most recently used pool is the last."""

    def pool(self, access: Access) -> Pool:
        """Return the pool for the TLS identity of `access`. Raises TransportError if its CA or certificate is unusable.

        Not a coroutine, so that the pool cannot be closed before the caller is counted as a user.
        """
        identity = TlsIdentity(
            authorities=access.authorities,
            certificate=access.credential.certificate,
            server_name=access.tls_server_name,
        )
        pool = self._pools.pop(identity, None)
        if pool is None:
            pool = self._new_pool(identity, access.server)
        self._pools[identity] = pool
        return pool

    def _new_pool(self, identity: TlsIdentity, server: str) -> Pool:
        if not self._memory.take_authorities(identity.authorities or b""):
            problem = "the CAs to verify it take too much memory beside those of other servers"
            raise TransportError("connect", f"{server} cannot be reached: {problem}")
        try:
            context = self._contexts.context(identity)
        except (CredentialError, OSError) as error:
            self._memory.release_authorities(identity.authorities or b"")
            if isinstance(error, CredentialError):
                raise no_credential(error, server) from error
            # A certificate is loaded from a file, for which no descriptor may be left.
            raise errors.from_connecting(error, server) from error
        client = Client(
            context,
            user_agent=self._user_agent,
            tls_server_name=identity.server_name,
            idle_s=self._idle_s,
            memory=self._memory,
            http2=self._http2,
            turns=partial(self._handshakes.turns, hash(identity)),
        )
        return Pool(identity, client)

    async def open_response(
        self,
        request: ApiRequest,
        access: Access,
        *,
        proxy: str | None = None,
        connect_timeout_s: float,
        silence_s: float | None = None,
        sending: Callable[[], None] = lambda: None,
    ) -> "OpenResponse":
        """Send a request, and return its response when status and headers have arrived. Raises TransportError.

        `sending` is called as in `Client.request`.
        """
        pool = self.pool(access)
        pool.users += 1
        try:
            exchange = pool.client.request(
                request.method,
                request.url(access.server),
                headers=request.headers(access),
                body=request.body,
                proxy=proxy or environment_proxy(access.server, self._environ),
                connect_timeout_s=connect_timeout_s,
                silence_s=silence_s,
                sending=sending,
            )
            response = await exchange.__aenter__()
        except BaseException:  # also on CancelledError, or the pool would never be closed
            await self.release(pool)
            raise
        return OpenResponse(self, pool, exchange, response, silence_s)

    async def release(self, pool: Pool) -> None:
        pool.users -= 1
        if pool.users:
            return
        unused = [pool] if not self._kept else [pool for pool in self._pools.values() if not pool.users]
        for idle_pool in unused[: max(0, len(self._pools) - self._kept)]:
            # While another one was closed, it may have been used again.
            if self._pools.get(idle_pool.identity) is idle_pool and not idle_pool.users:
                del self._pools[idle_pool.identity]
                self._memory.release_authorities(idle_pool.identity.authorities or b"")
                await idle_pool.client.aclose()

    async def aclose(self) -> None:
        """Close every connection. Requests in flight fail; the next request opens a connection."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            self._memory.release_authorities(pool.identity.authorities or b"")
        for pool in pools.values():
            await pool.client.aclose()


class ResponseBounds(NamedTuple):
    """The limits of a request with a whole response."""

    until: float
    """When the response must have arrived, on the event loop's clock."""
    timeout_s: float
    """The timeout that the caller set, for messages."""
    limit: int
    """The maximum size of the response, in bytes."""
    arrived: Callable[[int], None] = lambda _: None
    """Called with the size of each piece of the response."""


class OpenResponse(ResponseBody):
    """A response that is being read. It holds its connection pool until it is closed."""

    __slots__ = ("_exchange", "_pool", "_pools")

    def __init__(
        self,
        pools: Pools,
        pool: Pool,
        exchange: AbstractAsyncContextManager[Response],
        response: Response,
        silence_s: float | None,
    ) -> None:
        super().__init__(response, silence_s)
        self._pools = pools
        self._pool = pool
        self._exchange = exchange

    async def aclose(self) -> None:
        try:
            await self._exchange.__aexit__(None, None, None)
        finally:
            await self._pools.release(self._pool)


class _OpeningStream:
    """An open response as a context manager; not a generator, which would take more memory in each open watch."""

    __slots__ = ("_open", "_response")

    def __init__(self, open_: Callable[[], Awaitable[OpenResponse]]) -> None:
        self._open = open_

    async def __aenter__(self) -> Stream:
        self._response = await self._open()
        del self._open  # frees the request's headers
        return self._response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()


class ApiServer:
    """A client of one API server, with the credentials of its provider. Close it to release its connections."""

    __slots__ = ("_connect_timeout_s", "_kept", "_pools", "_provider", "_proxy", "_response_limit")

    def __init__(
        self,
        provider: AccessProvider,
        pools: Pools,
        *,
        proxy: str | None = None,
        response_limit: int,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """`proxy`: the proxy's URL; by default, it is read from the environment variables. The first request
        connects."""
        self._provider = provider
        self._pools = pools
        self._proxy = proxy
        self._response_limit = response_limit
        self._connect_timeout_s = connect_timeout_s
        self._kept: Pool | None = None
        """The pool that is kept open between requests."""

    async def request(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: bytes | None = None,
        *,
        timeout_s: float,
        content_type: str = JSON,
        accept: str = JSON,
        limit: int | None = None,
        arrived: Callable[[int], None] = lambda _: None,
        sending: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a request and return the whole response, of at most `limit` bytes. Raises TransportError.

        `timeout_s` limits all of it: the wait for a credential, and a second attempt with another one.
        `arrived` is called with the size of each piece of the response. `sending`: see `ApiRequest`.
        """
        request = ApiRequest(method, path, tuple(query), body, content_type, accept)
        if sending is not None:
            request = msgspec.structs.replace(request, sending=sending)
        now = asyncio.get_running_loop().time
        until = now() + timeout_s
        bounds = ResponseBounds(until, timeout_s, self._response_limit if limit is None else limit, arrived)
        access = await self._provider.access(within_s=timeout_s)
        answer = await self._answered(request, access, bounds)
        if answer.status == 401:
            renewed = await self._provider.access(within_s=until - now(), refused=access.credential)
            if renewed.credential != access.credential:
                answer = await self._answered(request, renewed, bounds)
        return answer

    async def get(
        self,
        path: str,
        query: Query = (),
        *,
        timeout_s: float,
        accept: str = JSON,
        limit: int | None = None,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> Answer:
        return await self.request("GET", path, query, timeout_s=timeout_s, accept=accept, limit=limit, arrived=arrived)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        """Send `body`, which is JSON."""
        return await self.request("POST", path, (), body, timeout_s=timeout_s)

    async def put(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        """Send `body`, which is JSON."""
        return await self.request("PUT", path, (), body, timeout_s=timeout_s)

    async def delete(
        self, path: str, body: bytes, *, timeout_s: float, sending: Callable[[], None] | None = None
    ) -> Answer:
        return await self.request("DELETE", path, (), body, timeout_s=timeout_s, sending=sending)

    def stream(
        self, path: str, query: Query = (), *, connect_timeout_s: float, silence_s: float | None, accept: str = JSON
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a response that is read while it arrives.

        `silence_s` is the read timeout for the headers and for each chunk. Readers with their own deadlines pass None,
        which saves the cost of a timer per chunk.
        """
        request = ApiRequest("GET", path, tuple(query), accept=accept, encoding="identity")
        return _OpeningStream(partial(self._streamed, request, connect_timeout_s, silence_s))

    async def aclose(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._pools.release(kept)

    async def _answered(self, request: ApiRequest, access: Access, bounds: ResponseBounds) -> Answer:
        try:
            async with asyncio.timeout_at(bounds.until):
                response = await self._opened(request, access, min(bounds.timeout_s, self._connect_timeout_s), None)
                try:
                    return Answer(response.status, response.headers, await response.read(bounds.limit, bounds.arrived))
                finally:
                    await response.aclose()
        except TimeoutError:
            problem = f"{access.server} did not answer within {bounds.timeout_s:g} s"
            raise TransportError("timeout", problem) from None

    async def _streamed(self, request: ApiRequest, connect_timeout_s: float, silence_s: float | None) -> OpenResponse:
        access = await self._provider.access(within_s=connect_timeout_s)
        response = await self._opened(request, access, connect_timeout_s, silence_s)
        if response.status != 401:
            return response
        try:
            renewed = await self._provider.access(within_s=connect_timeout_s, refused=access.credential)
        except BaseException:  # also on CancelledError, because the response holds a connection
            await response.aclose()
            raise
        if renewed.credential == access.credential:
            return response
        await response.aclose()
        return await self._opened(request, renewed, connect_timeout_s, silence_s)

    async def _opened(
        self, request: ApiRequest, access: Access, connect_timeout_s: float, silence_s: float | None
    ) -> OpenResponse:
        await self._keep(self._pools.pool(access))
        return await self._pools.open_response(
            request,
            access,
            proxy=self._proxy,
            connect_timeout_s=connect_timeout_s,
            silence_s=silence_s,
            sending=partial(self._sending, request, access.server),
        )

    def _sending(self, request: ApiRequest, _server: str) -> None:
        """Called when a request is about to be sent to the server of this URL."""
        request.sending()

    async def _keep(self, pool: Pool) -> None:
        """Hold `pool` between requests, so that its connections stay open, and release the previous pool."""
        if self._kept is pool:
            return
        before, self._kept = self._kept, pool
        pool.users += 1
        if before is not None:
            await self._pools.release(before)
