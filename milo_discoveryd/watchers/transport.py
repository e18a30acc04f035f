"""Authenticated requests to one API server; every failure is a `TransportError`.

Renews the credential once when the server responds 401, opens new connections when a CA or certificate was renewed
(exchanges on the old ones may finish), and bounds every wait and every body.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias
from urllib.parse import quote, urlencode

import msgspec

from milo_discoveryd import USER_AGENT
from milo_kube.credential import Credential, CredentialError, for_url
from milo_kube.http.client import Client
from milo_kube.http.connection import ResponseBody
from milo_kube.http.errors import TransportError
from milo_kube.http.proxy import environment_proxy
from milo_kube.list_watch import Answer, Stream
from milo_kube.tls_identity import TlsIdentity
from milo_kube.upstream import Upstream

Query: TypeAlias = Sequence[tuple[str, str]]

RESPONSE_LIMIT = 128 << 20
CONNECT_TIMEOUT_S = 10.0

# Names come from objects that tenants write. A server or proxy that normalizes "..", "%2e%2e", "?" or "#" would apply
# the request, and its credential, to another path.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~:@-]+)+/?|/")


class Transport:
    """Connections to one API server, authenticated with the credential of its `Upstream`."""

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
        self.host = upstream.server
        self._upstream = upstream
        self._response_limit = response_limit
        self._connect_timeout_s = connect_timeout_s
        named = upstream.proxy.reveal() if upstream.proxy else None
        self._proxy = named or environment_proxy(upstream.server, environ)
        self._connections: _Connections | None = None
        self._replaced: set[_Connections] = set()

    async def get(self, path: str, query: Query = (), *, timeout_s: float) -> Answer:
        return await self._whole(_Request("GET", path, tuple(query)), timeout_s)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        """Send `body`, which is JSON."""
        return await self._whole(_Request("POST", path, body=body), timeout_s)

    async def put(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        """Send `body`, which is JSON."""
        return await self._whole(_Request("PUT", path, body=body), timeout_s)

    async def delete(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        return await self._whole(_Request("DELETE", path, body=body), timeout_s)

    def stream(
        self, path: str, query: Query = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a response that is read while it arrives.

        `silence_s` bounds the wait for its head and for each chunk. None is for readers with deadlines of their own,
        and saves the cost of a timer per chunk.
        """
        request = _Request("GET", path, tuple(query), encoding="identity")
        return self._streamed(request, connect_timeout_s, silence_s)

    async def drop(self) -> None:
        """Close every connection. Requests in flight fail; the next request opens a connection."""
        await self.aclose()

    async def aclose(self) -> None:
        connections = [*self._replaced, *([self._connections] if self._connections else [])]
        self._connections = None
        self._replaced.clear()
        for each in connections:
            await each.client.aclose()

    async def _whole(self, request: "_Request", timeout_s: float) -> Answer:
        credential = await self._credential()
        answer = await self._answered(request, credential, timeout_s)
        if answer.status == 401:
            renewed = await self._credential(refused=credential)
            if renewed != credential:
                answer = await self._answered(request, renewed, timeout_s)
        return answer

    async def _answered(self, request: "_Request", credential: Credential, timeout_s: float) -> Answer:
        connect_timeout_s = min(timeout_s, self._connect_timeout_s)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._sent(request, credential, connect_timeout_s, None) as response,
            ):
                return Answer(response.status, response.headers, await response.read(self._response_limit))
        except TimeoutError:
            raise TransportError("timeout", f"{self.host} did not answer in time") from None

    @asynccontextmanager
    async def _streamed(
        self, request: "_Request", connect_timeout_s: float, silence_s: float | None
    ) -> AsyncIterator[ResponseBody]:
        credential = await self._credential()
        async with self._sent(request, credential, connect_timeout_s, silence_s) as response:
            renewed = await self._credential(refused=credential) if response.status == 401 else credential
            if renewed == credential:
                yield response
                return
        async with self._sent(request, renewed, connect_timeout_s, silence_s) as response:
            yield response

    async def _credential(self, refused: Credential | None = None) -> Credential:
        try:
            credential = await self._upstream.credentials.credential(refused=refused)
            return for_url(credential, self.host, plain_loopback=self._upstream.plain_loopback)
        except CredentialError as error:
            raise no_credential(error, self.host) from error

    @asynccontextmanager
    async def _sent(
        self, request: "_Request", credential: Credential, connect_timeout_s: float, silence_s: float | None
    ) -> AsyncIterator[ResponseBody]:
        connections = self._current(credential)
        connections.users += 1
        try:
            async with connections.client.request(
                request.method,
                request.url(self.host),
                headers=request.headers(credential),
                body=request.body,
                proxy=self._proxy,
                connect_timeout_s=connect_timeout_s,
                silence_s=silence_s,
            ) as response:
                yield ResponseBody(response, silence_s)
        finally:
            connections.users -= 1
            await self._close_replaced()

    def _current(self, credential: Credential) -> "_Connections":
        """Return the connections for this credential.

        Not a coroutine, so that they cannot be replaced and closed before the caller is counted as a user.
        """
        try:
            identity = TlsIdentity(authorities=self._upstream.trusted(), certificate=credential.certificate)
            current = self._connections
            if current is not None and current.identity == identity:
                return current
            client = Client(identity.context(), user_agent=USER_AGENT, tls_server_name=self._upstream.tls_server_name)
        except CredentialError as error:
            raise no_credential(error, self.host) from error
        self._connections = made = _Connections(identity, client)
        if current is not None:
            self._replaced.add(current)  # closed when no exchange uses it any more
        return made

    async def _close_replaced(self) -> None:
        for connections in [each for each in self._replaced if not each.users]:
            self._replaced.discard(connections)
            await connections.client.aclose()


def no_credential(error: CredentialError, host: str) -> TransportError:
    return TransportError("credential", f"no credential for {host}: {error}")


class _Connections(msgspec.Struct, eq=False):
    """The connections under one TLS identity, and how many exchanges run on them."""

    identity: TlsIdentity
    client: Client
    users: int = 0


class _Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    encoding: str = "gzip"

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"refused to send a request to the unsafe path {self.path!r}")

    def url(self, server: str) -> str:
        return f"{server}{self.path}{f'?{urlencode(self.query, quote_via=quote)}' if self.query else ''}"

    def headers(self, credential: Credential) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": self.encoding}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        if credential.token is not None:
            headers["Authorization"] = f"Bearer {credential.token.reveal()}"
        return headers
