"""Lists and watches a collection: sends the requests that the reflector needs, and passes the responses to it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from milo_kube import retry_after
from milo_kube.http.errors import TransportError
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.messages import (
    MALFORMED_RESPONSE,
    UNRESPONSIVE,
    Failure,
    FetchPage,
    OpenWatch,
    SourceEvent,
    Wait,
)
from milo_kube.reflect.reflector import Reflector
from milo_kube.reflect.view_status import ViewStatus
from milo_kube.reflect.wire import Decoder, Lines, LineTooLongError, ListPageError, Seen, error_status
from milo_kube.reusable_timeout import Deadline

T = TypeVar("T")

WATCH_RESPONSE_TIMEOUT_S = 300.0
"""An API server answers a watch at once, but a proxy may withhold the response until there is an event."""
_REASONS = {
    "dns": "DnsFailed",
    "connect": "ConnectFailed",
    "tls": "TlsFailed",
    "timeout": "Timeout",
    "closed": "ConnectionLost",
    "too_large": "ResponseTooLarge",
    "credential": "CredentialFailed",
}
_STATUS_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    504: "Timeout",
}


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream(Protocol):
    """A response whose body is read while it arrives."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces of any size until its end. Raises TransportError if the connection breaks."""

    async def read_error(self, limit: int) -> bytes:
        """Return the beginning of the body of an error response."""


class Collection(Protocol):
    """A collection to list and watch."""

    @property
    def path(self) -> str: ...
    @property
    def query(self) -> list[tuple[str, str]]:
        """The selectors."""


class CollectionApi(Protocol):
    """The API of a collection: the requests that list and watch send."""

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer: ...

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]: ...


class Waits(Protocol):
    """A strategy for waiting for responses."""

    def waiting(self) -> AbstractAsyncContextManager[object]:
        """Enclose consecutive calls of `wait`. Raises TimeoutError at the deadline of a wait, or UnresponsiveError."""

    async def wait(self, response: Awaitable[T], until: float | None = None) -> T:
        """Wait for one response; only within `waiting`."""


class UnresponsiveError(Exception):
    """The server accepts connections, but does not answer."""

    def __init__(self, policy: LivenessPolicy, path: str) -> None:
        checks = f"{policy.misses} requests for {path} in a row, {policy.every_s:g} s apart"
        self.failure = Failure(UNRESPONSIVE, f"the server did not answer {checks}")
        super().__init__(self.failure.message)


class DeadlineWaits:
    """The strategy that waits with deadlines alone, without checks of the server's liveness."""

    __slots__ = ("_deadline",)

    def __init__(self) -> None:
        self._deadline: Deadline | None = None

    def waiting(self) -> AbstractAsyncContextManager[Deadline]:
        self._deadline = Deadline()
        return self._deadline

    async def wait(self, response: Awaitable[T], until: float | None = None) -> T:
        assert self._deadline is not None, "waits are made within `waiting`"
        if until is not None:
            self._deadline.set(until)
        found = await response
        self._deadline.lift()
        return found


class _OpenedStream:
    """A response as a context manager, with a limit on the wait for its beginning."""

    __slots__ = ("_response", "_wait")

    def __init__(
        self, response: AbstractAsyncContextManager[Stream], wait: Callable[[Awaitable[Stream]], Awaitable[Stream]]
    ) -> None:
        self._response = response
        self._wait = wait

    async def __aenter__(self) -> Stream:
        return await self._wait(self._response.__aenter__())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._response.__aexit__(kind, error, trace)


class ListWatch(Generic[Seen]):
    """The list and watch of one collection.

    `apply` takes source events, none of which may be left when it returns. `status` may have changed with each call.
    """

    __slots__ = (
        *("_api", "_apply", "_clock", "_collection", "_connect_timeout_s", "_decoder", "_reflector"),
        *("_request_timeout_s", "_waits"),
    )

    def __init__(
        self,
        api: CollectionApi,
        collection: Collection,
        *,
        decoder: Decoder[Any, Seen],
        reflector: Reflector[Seen],
        waits: Waits,
        apply: Callable[[Iterable[SourceEvent[Seen]]], Awaitable[None]],
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._api = api
        self._collection = collection
        self._decoder = decoder
        self._reflector = reflector
        self._waits = waits
        self._apply = apply
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    @property
    def status(self) -> ViewStatus:
        return self._reflector.status

    async def run(self) -> None:
        """Follow the collection until canceled."""
        while True:
            match self._reflector.next(self._clock()):
                case Wait(until):
                    await asyncio.sleep(until - self._clock())
                case FetchPage() as request:
                    await self._fetch(request)
                case OpenWatch() as request:
                    await self._watch(request)
                case unexpected:
                    raise AssertionError(f"no watch is open to do {unexpected}")

    async def _fetch(self, request: FetchPage) -> None:
        query = self._collection.query
        if request.limit:
            query.append(("limit", str(request.limit)))
        if request.continue_token:
            query.append(("continue", request.continue_token))
        try:
            answer = await self._wait_for(
                self._api.get(self._collection.path, query, timeout_s=self._request_timeout_s)
            )
            if answer.status != 200:
                await self._failed(_refused(answer.status, answer.headers, answer.body))
                return
            page, seen = self._decoder.page(answer.body)
        except TransportError as error:
            await self._failed(_lost(error))
        except UnresponsiveError as error:
            await self._failed(error.failure)
        except ListPageError as error:
            await self._failed(Failure(MALFORMED_RESPONSE, str(error)))
        else:
            await self._apply(self._reflector.listed(page, seen, self._clock()))

    async def _watch(self, request: OpenWatch) -> None:
        query = [
            *self._collection.query,
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(request.timeout_s)),
        ]
        if request.version:
            query.append(("resourceVersion", request.version))
        else:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        opened = self._api.stream(
            self._collection.path,
            query,
            connect_timeout_s=self._connect_timeout_s,
            silence_s=None,
        )
        try:
            async with _OpenedStream(opened, self._response) as stream:
                if stream.status != 200:
                    body = await stream.read_error(64 * 1024)
                    await self._failed(_refused(stream.status, stream.headers, body))
                    return
                await self._apply(self._reflector.opened(self._clock()))
                async with aclosing(stream.chunks()) as chunks:
                    await self._read(chunks)
        except TransportError as error:
            await self._failed(_lost(error))
        except UnresponsiveError as error:
            await self._failed(error.failure)
        except LineTooLongError as error:
            await self._failed(Failure(MALFORMED_RESPONSE, str(error)))

    async def _wait_for(self, response: Awaitable[T], until: float | None = None) -> T:
        async with self._waits.waiting():
            return await self._waits.wait(response, until)

    async def _response(self, response: Awaitable[Stream]) -> Stream:
        try:
            return await self._wait_for(response, self._clock() + WATCH_RESPONSE_TIMEOUT_S)
        except TimeoutError:
            message = f"no response to the watch request within {WATCH_RESPONSE_TIMEOUT_S:g} s"
            raise TransportError("timeout", message) from None

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        lines = Lines()
        try:
            async with self._waits.waiting():
                while self._reflector.is_reading:
                    deadline = self._reflector.next(self._clock()).until  # type: ignore[union-attr]
                    chunk = await self._waits.wait(anext(chunks, None), deadline)
                    now = self._clock()
                    if chunk is None:
                        await self._apply(self._ended(now, partial=lines.partial))
                        return
                    events = [self._decoder.line(line) for line in lines.feed(chunk)]
                    await self._apply(self._reflector.events(events, now, partial=lines.partial))
                    del chunk, events  # the next wait may last for hours
        except TimeoutError:
            await self._apply(self._reflector.silent(self._clock()))

    def _ended(self, now: float, *, partial: bool) -> Iterable[SourceEvent[Seen]]:
        if partial:
            cut = Failure("TruncatedLine", "the server ended the watch in the middle of an event")
            return self._reflector.failed(cut, now)
        return self._reflector.ended(now)

    async def _failed(self, failure: Failure) -> None:
        await self._apply(self._reflector.failed(failure, self._clock()))


def _lost(error: TransportError) -> Failure:
    return Failure(_REASONS.get(error.cause, "ConnectionLost"), str(error))


def _refused(status: int, headers: Any, body: bytes) -> Failure:
    refused = error_status(body, status)
    message = f"{status}: {refused.message}" if refused.message else str(status)
    if status in (404, 503) and not refused.reason:
        # Plain text is from a proxy, or from an API server that has just started and does not serve the resource yet
        # (some send 404 then). The Retry-After of five seconds that some send is ignored: they need far less.
        return Failure("NotServing", message, 503)
    reason = refused.reason or _STATUS_REASONS.get(status, "ServerError" if status >= 500 else "Refused")
    return Failure(reason, message, status, retry_after.stated(headers, datetime.now(UTC)))
