"""Authenticated requests to the API server of one cluster, over connections that clusters share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec

from milo_controllers.connections import Connections
from milo_controllers.errors import Unreachable, api_error
from milo_controllers.kinds import EVENTS, Document
from milo_controllers.tracing import SpanTracer, span
from milo_discovery._kubeconfig_access import KubeconfigAccess
from milo_discovery.errors import DiscoveryError
from milo_kube import retry_after
from milo_kube.http.connection import Response, ResponseBody
from milo_kube.http.errors import TransportError
from milo_kube.list_watch import Answer, Stream
from milo_kube.reflect.wire import error_status

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
RESPONSE_LIMIT = 8 << 20
"""Bytes of a response other than a page of a list: more than any API server stores in an object."""
JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

Query = Sequence[tuple[str, str]]


class Credentials(Protocol):
    """The credentials of one cluster."""

    async def access(self) -> KubeconfigAccess:
        """Return the credential to use now. Raises DiscoveryError."""

    async def access_after_401(self, refused: str | None) -> KubeconfigAccess:
        """Return the credential to use after the server refused a token: the same one if there is none newer."""


class ClusterApi:
    """The API of one cluster. Close it to release its connections."""

    __slots__ = ("_connections", "_credentials", "_kept", "_proxy", "_tracer", "event_kind", "name")

    def __init__(
        self,
        name: str,
        credentials: Credentials,
        connections: Connections,
        *,
        proxy: str | None = None,
        tracer: SpanTracer | None = None,
    ) -> None:
        """`proxy`: the URL of a proxy; by default that of the environment. `tracer`: each call of `send` is a span."""
        self.name = name
        self._credentials = credentials
        self._connections = connections
        self._proxy = proxy
        self._tracer = tracer
        self.event_kind = EVENTS
        """The kind of events that the API server serves: this one, or `CORE_EVENTS`."""
        self._kept: Hashable = None
        """The key of the pool that is kept open between requests."""

    async def send(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: object = None,
        *,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Document:
        """Send a request and return the decoded response. Raises ApiError, Unreachable or DiscoveryError."""
        request = _PreparedRequest(
            method, path, query, None if body is None else msgspec.json.encode(body), content_type
        )
        attributes = {"http.request.method": method, "url.path": path, "milo.cluster": self.name}
        with span(self._tracer, method, attributes):
            try:
                answer = await self._whole(request, timeout_s)
            except TransportError as error:
                raise Unreachable(error.cause, str(error)) from error
            if answer.status >= 300:
                raise _refused(answer, f"{method} {path}")
            try:
                return _MAPPING.decode(answer.body)
            except msgspec.DecodeError as error:
                raise Unreachable("closed", f"the API server of {self.name} sent no JSON object") from error

    async def aclose(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._connections.release(kept)

    # --- for informers ---

    async def get(
        self,
        path: str,
        query: Query = (),
        *,
        timeout_s: float,
        accept: str = JSON,
        limit: int = RESPONSE_LIMIT,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> Answer:
        request = _PreparedRequest("GET", path, query, accept=accept, limit=limit, arrived=arrived)
        try:
            return await self._whole(request, timeout_s)
        except DiscoveryError as error:
            raise TransportError("credential", f"no credential for {self.name}: {error}") from error

    def stream(
        self,
        path: str,
        query: Query = (),
        *,
        connect_timeout_s: float,
        silence_s: float | None,
        accept: str = JSON,
    ) -> AbstractAsyncContextManager[Stream]:
        request = _PreparedRequest("GET", path, query, accept=accept, encoding="identity")
        return _Streaming(self._streamed(request, connect_timeout_s, silence_s))

    # --- internals ---

    async def _whole(self, request: _PreparedRequest, timeout_s: float) -> Answer:
        access = await self._credentials.access()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answered(request, access)
                if answer.status == 401:
                    renewed = await self._credentials.access_after_401(access.token)
                    if renewed.token != access.token:
                        answer = await self._answered(request, renewed)
                return answer
        except TimeoutError:
            raise TransportError("timeout", f"{access.server} did not answer within {timeout_s:g} s") from None

    async def _answered(self, request: _PreparedRequest, access: KubeconfigAccess) -> Answer:
        response = await self._opened(request, access, CONNECT_TIMEOUT_S, None)
        try:
            return Answer(response.status, response.headers, await response.read(request.limit, request.arrived))
        finally:
            await response.aclose()

    async def _streamed(
        self, request: _PreparedRequest, connect_timeout_s: float, silence_s: float | None
    ) -> _OpenResponse:
        try:
            access = await self._credentials.access()
            response = await self._opened(request, access, connect_timeout_s, silence_s)
            if response.status != 401:
                return response
            try:
                renewed = await self._credentials.access_after_401(access.token)
            except BaseException:  # also CancelledError: the response holds a connection
                await response.aclose()
                raise
            if renewed.token == access.token:
                return response
            await response.aclose()
            return await self._opened(request, renewed, connect_timeout_s, silence_s)
        except DiscoveryError as error:
            raise TransportError("credential", f"no credential for {self.name}: {error}") from error

    async def _opened(
        self, request: _PreparedRequest, access: KubeconfigAccess, connect_timeout_s: float, silence_s: float | None
    ) -> _OpenResponse:
        key, client = self._connections.acquire(access)
        try:
            await self._keep(key, access)
            exchange = client.request(
                request.method,
                request.url(access.server),
                headers=request.headers(access),
                body=request.body,
                proxy=self._proxy or self._connections.proxy(access.server),
                connect_timeout_s=connect_timeout_s,
                silence_s=silence_s,
            )
            response = await exchange.__aenter__()
        except BaseException:  # also CancelledError: the pool would stay open for ever
            await self._connections.release(key)
            raise
        return _OpenResponse(self._connections, key, exchange, response, silence_s)

    async def _keep(self, key: Hashable, access: KubeconfigAccess) -> None:
        """Hold this pool between requests, so that its connections stay open, and release the previous pool."""
        if self._kept == key:
            return
        before, (self._kept, _) = self._kept, self._connections.acquire(access)
        if before is not None:
            await self._connections.release(before)


@dataclass(frozen=True, slots=True)
class _PreparedRequest:
    method: str
    path: str
    query: Query
    body: bytes | None = None
    content_type: str = JSON
    accept: str = JSON
    encoding: str = "gzip"
    limit: int = RESPONSE_LIMIT
    """Maximum bytes of the response."""
    arrived: Callable[[int], None] = lambda _: None
    """Called with the size of each piece of the response."""

    def url(self, server: str) -> str:
        return f"{server}{self.path}{f'?{urlencode(self.query, quote_via=quote)}' if self.query else ''}"

    def headers(self, access: KubeconfigAccess) -> dict[str, str | tuple[str, ...]]:
        headers: dict[str, str | tuple[str, ...]] = {"Accept": self.accept, "Accept-Encoding": self.encoding}
        if self.body is not None:
            headers["Content-Type"] = self.content_type
        if access.token is not None:
            headers["Authorization"] = f"Bearer {access.token}"
        if access.act_as is not None:
            for name, value in access.act_as.headers():
                headers[name] = (*headers.get(name, ()), value)
        return headers


class _OpenResponse(ResponseBody):
    """A response that is being read. It holds its connection pool until it is closed."""

    __slots__ = ("_connections", "_exchange", "_key")

    def __init__(
        self,
        connections: Connections,
        key: Hashable,
        exchange: AbstractAsyncContextManager[Response],
        response: Response,
        silence_s: float | None,
    ) -> None:
        super().__init__(response, silence_s)
        self._connections = connections
        self._key = key
        self._exchange = exchange

    async def aclose(self) -> None:
        try:
            await self._exchange.__aexit__(None, None, None)
        finally:
            await self._connections.release(self._key)


class _Streaming:
    """An open response as a context manager; a class rather than a generator, since each watch holds one."""

    __slots__ = ("_opening", "_response")

    def __init__(self, opening: Coroutine[Any, Any, _OpenResponse]) -> None:
        self._opening = opening

    async def __aenter__(self) -> Stream:
        self._response = await self._opening
        del self._opening  # with the headers of the request
        return self._response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()


class _Cause(msgspec.Struct):
    reason: str = ""


class _StatusDetails(msgspec.Struct):
    causes: list[_Cause] | None = None


class _StatusRefusal(msgspec.Struct):
    details: _StatusDetails | None = None


_MAPPING = msgspec.json.Decoder(dict[str, Any])
_REFUSAL = msgspec.json.Decoder(_StatusRefusal)


def _refused(answer: Answer, request: str) -> Exception:
    status = error_status(answer.body, answer.status)
    try:
        details = _REFUSAL.decode(answer.body).details
        causes = tuple(cause.reason for cause in (details and details.causes) or ())
    except msgspec.DecodeError:
        causes = ()
    return api_error(
        answer.status,
        status.reason,
        f"{request}: {answer.status} {status.message}",
        causes=causes,
        retry_after_s=retry_after.stated(answer.headers, datetime.now(UTC)),
    )
