"""Lists and watches a collection: sends the reflector's requests, and yields the resulting source events."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from milo_kube import retry_after
from milo_kube.api_request import Answer, Stream
from milo_kube.costly_steps import COSTLY_S, LARGE_PAGE, SMALL_PAGE, page_steps
from milo_kube.http.errors import TransportError
from milo_kube.liveness_probe import LivenessProbe
from milo_kube.reflect.messages import (
    MALFORMED_RESPONSE,
    RESPONSE_TOO_LARGE,
    Failure,
    FetchPage,
    OpenWatch,
    SourceEvent,
    Wait,
)
from milo_kube.reflect.reflector import Reflector
from milo_kube.reflect.view_status import ViewStatus
from milo_kube.reflect.wire import (
    LargePageError,
    Lines,
    LineTooLongError,
    ListPage,
    ListPageError,
    Seen,
    WatchEvent,
    error_status,
)
from milo_kube.reusable_timeout import Deadline

T = TypeVar("T")
_Step: TypeAlias = Callable[[], Iterable[SourceEvent[Seen]]]

WATCH_RESPONSE_TIMEOUT_S = 300.0
"""Timeout of the response to a watch request, unless the server sends bookmarks. API servers respond at once, but a
proxy may wait for the first event."""
EVENTS_AT_ONCE = 100
"""Maximum number of events of a batch, after which other tasks run. A hostile server can send a million at once."""
_AT_ONCE_S = 0.005
"""Time after which a batch of a page ends before it has that many events: a kubeconfig in an object can take 15 ms."""
_REASONS = {
    "dns": "DnsFailed",
    "connect": "ConnectFailed",
    "tls": "TlsFailed",
    "timeout": "Timeout",
    "closed": "ConnectionLost",
    "too_large": RESPONSE_TOO_LARGE,
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


class Collection(Protocol):
    """A collection to list and watch."""

    @property
    def path(self) -> str: ...
    @property
    def query(self) -> list[tuple[str, str]]:
        """The query parameters that select objects, such as `labelSelector`."""


class CollectionApi(Protocol):
    """The API of a collection: the requests that list and watch send."""

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer: ...

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]: ...


class PageDecoder(Protocol[Seen]):
    """Decodes what the API answers: a `wire.Decoder`, or one for another representation of the objects."""

    def page(self, body: bytes) -> tuple[ListPage, Iterable[Seen | None]]:
        """Return a page of a list, with None for an object without a name. Raises ListPageError."""

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Seen]]:
        """Decode lines of a watch, up to the first one that is not an event."""


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

    With `liveness`, the server is checked while no data arrives, and a wait is aborted if the checks fail.
    """

    __slots__ = (
        *("_api", "_collection", "_connect_timeout_s", "_decoder", "_liveness", "_loop"),
        *("_reflector", "_request_timeout_s", "partial"),
    )

    def __init__(
        self,
        api: CollectionApi,
        collection: Collection,
        *,
        decoder: PageDecoder[Seen],
        reflector: Reflector[Seen],
        liveness: LivenessProbe | None = None,
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._api = api
        self._collection = collection
        self._decoder = decoder
        self._reflector = reflector
        self._liveness = liveness
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._loop = asyncio.get_running_loop()
        self.partial = 0
        """Number of bytes of the event that a watch has begun to send."""

    @property
    def status(self) -> ViewStatus:
        return self._reflector.status

    async def batches(self) -> AsyncGenerator[Iterable[SourceEvent[Seen]], None]:
        """Yield the source events of each response, and of each read of a watch, until closed: many are divided.

        All events of a batch must be consumed before the next batch. `status` may change with each batch, even an
        empty one. Close the generator in the task that iterates over it: use `aclosing`.
        """
        while True:
            match self._reflector.next(self._loop.time()):
                case Wait(until):
                    await asyncio.sleep(until - self._loop.time())
                case FetchPage() as request:
                    async with aclosing(self._pages(request)) as batches:
                        async for source_events in batches:
                            yield source_events
                case OpenWatch() as request:
                    async with aclosing(self._watch(request)) as batches:
                        async for source_events in batches:
                            yield source_events
                            del source_events  # frees the events: the next wait can last for hours
                case unexpected:
                    raise AssertionError(f"unexpected request without an open watch: {unexpected!r}")

    async def _pages(self, request: FetchPage) -> AsyncGenerator[Iterable[SourceEvent[Seen]], None]:
        """Yield the source events of a page, until it was applied or the reflector gives it up."""
        before = self._reflector.state
        batch, is_costly, source_events = await self._fetch(request)
        while True:
            is_last = self._reflector.state is not before
            if is_last:
                batch += source_events
            yield batch
            if is_last or self._reflector.state is not before:
                return
            await asyncio.sleep(0)
            steps = page_steps(LARGE_PAGE if is_costly else SMALL_PAGE)
            batch, is_again = await steps.result(lambda: _taken(source_events))
            is_costly |= is_again  # so may be all of its objects

    async def _fetch(self, request: FetchPage) -> tuple[list[SourceEvent[Seen]], bool, Iterator[SourceEvent[Seen]]]:
        """Return the first events of a page, whether they were costly to decode, and the other events."""
        query = self._collection.query
        if request.limit:
            query.append(("limit", str(request.limit)))
        if request.continue_token:
            query.append(("continue", request.continue_token))
        if (failure := await self._outage()) is not None:
            return [], False, iter(self._failed(failure))
        try:
            async with Deadline() as deadline:
                response = self._api.get(self._collection.path, query, timeout_s=self._request_timeout_s)
                answer = await self._wait(response, deadline)
            if answer.status != 200:
                failure = _response_failure(answer.status, answer.headers, answer.body)
            elif len(body := answer.body) < SMALL_PAGE:
                return self._begun(body)
            else:
                return await page_steps(len(body)).result(lambda: self._begun(body))
        except TransportError as error:
            failure = _transport_failure(error)
        except ListPageError as error:
            reason = RESPONSE_TOO_LARGE if isinstance(error, LargePageError) else MALFORMED_RESPONSE
            failure = Failure(reason, str(error))
        except TimeoutError:
            return [], False, iter(await self._wait_ended())
        return [], False, iter(self._failed(failure))

    def _begun(self, body: bytes) -> tuple[list[SourceEvent[Seen]], bool, Iterator[SourceEvent[Seen]]]:
        page, listed = self._decoder.page(body)
        source_events = self._reflector.listed(page, listed, self._loop.time())
        return *_taken(source_events), source_events

    async def _watch(self, request: OpenWatch) -> AsyncGenerator[Iterable[SourceEvent[Seen]], None]:
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
        failure = await self._outage()
        is_silent = False
        try:
            if failure is None:
                opened = self._api.stream(
                    self._collection.path, query, connect_timeout_s=self._connect_timeout_s, silence_s=None
                )
                first = self._first_response if request.version else self._begun_list
                async with _OpenedStream(opened, first) as stream:
                    if stream.status == 200:
                        yield self._reflector.opened(self._loop.time())
                        async with aclosing(self._followed(stream)) as batches:
                            async for source_events in batches:
                                yield source_events
                                del source_events
                    else:
                        failure = await self._refusal(stream)
        except TransportError as error:
            failure = _transport_failure(error)
        except LineTooLongError as error:
            failure = Failure(MALFORMED_RESPONSE, str(error))
        except TimeoutError:
            is_silent = True
        if failure is not None:
            yield self._failed(failure)
        elif is_silent:
            yield await self._wait_ended()

    async def _refusal(self, stream: Stream) -> Failure:
        """Return why a watch was refused: what its status says, if the rest of the response does not arrive."""
        body = b""
        with suppress(TimeoutError, TransportError):
            async with asyncio.timeout(self._request_timeout_s):
                body = await stream.read_error(64 * 1024)
        return _response_failure(stream.status, stream.headers, body)

    async def _followed(self, stream: Stream) -> AsyncGenerator[Iterable[SourceEvent[Seen]], None]:
        lines = Lines()
        try:
            async with aclosing(stream.chunks()) as chunks, Deadline() as deadline:
                while self._reflector.is_reading:
                    size, steps = await self._read(chunks, lines, deadline)
                    for number, step in enumerate(steps):
                        if number:
                            await asyncio.sleep(0)
                        batch = step() if size < SMALL_PAGE else await page_steps(size).result(step)
                        yield batch
                        del batch, step  # frees the lines and the events: the next wait can last for hours
        finally:
            self.partial = 0

    async def _read(
        self, chunks: AsyncIterator[bytes], lines: Lines, deadline: Deadline
    ) -> tuple[int, Iterator[_Step[Seen]]]:
        """Return the bytes of the lines that one read of a watch completes, at most, and the steps that decode them.

        Raises TimeoutError if nothing arrives in time.
        """
        silent_at = self._reflector.next(self._loop.time()).until  # type: ignore[union-attr]
        chunk = await self._wait(anext(chunks, None), deadline, silent_at)
        if chunk is not None:
            size, complete = self.partial + len(chunk), lines.feed(chunk)
            self.partial = lines.partial
            size = size if complete else 0
            return size, self._steps(complete, size, partial=bool(lines.partial))
        if lines.partial:
            cut = Failure("TruncatedLine", "the server ended the watch in the middle of an event")
            return 0, iter((lambda: self._failed(cut),))
        return 0, iter((lambda: self._reflector.ended(self._loop.time()),))

    def _steps(self, lines: list[bytes | bytearray], size: int, *, partial: bool) -> Iterator[_Step[Seen]]:
        first = 0
        while self._reflector.is_reading:
            end = _end_of_step(lines, first) if size > LARGE_PAGE else first + EVENTS_AT_ONCE
            yield functools.partial(self._decoded, lines[first:end], partial=partial)
            if end >= len(lines):
                return
            first = end

    def _decoded(self, lines: list[bytes | bytearray], *, partial: bool) -> Iterable[SourceEvent[Seen]]:
        # The time of the turn, and not of the read: a server is not silent while others have theirs.
        return self._reflector.events(self._decoder.lines(lines), self._loop.time(), partial=partial)

    async def _first_response(self, response: Awaitable[Stream]) -> Stream:
        reflector = self._reflector
        limit_s = reflector.policy.silence_s if reflector.trust.sends_bookmarks else WATCH_RESPONSE_TIMEOUT_S
        try:
            async with Deadline() as deadline:
                return await self._wait(response, deadline, self._loop.time() + limit_s)
        except TimeoutError:
            if self._liveness is not None and self._liveness.is_lost:
                raise
            message = f"no response to the watch request within {limit_s:g} s"
            raise TransportError("timeout", message) from None

    async def _begun_list(self, response: Awaitable[Stream]) -> Stream:
        """Wait for the response to a streaming list, whose first event exists already."""
        async with Deadline() as deadline:
            return await self._wait(response, deadline, self._loop.time() + self._reflector.policy.fill_silence_s)

    async def _wait(self, response: Awaitable[T], deadline: Deadline, until: float | None = None) -> T:
        """Wait for a response. The deadline raises TimeoutError at `until`, or if the liveness probe gives up."""
        if until is not None:
            deadline.set(until)
        liveness = self._liveness
        if liveness is None:
            found = await response
        else:
            liveness.deadline, liveness.is_lost = deadline, False
            liveness.tracker.waiting_since = self._loop.time()
            try:
                found = await response
            finally:
                liveness.tracker.waiting_since = None
        deadline.lift()
        return found

    async def _outage(self) -> Failure | None:
        """Return the failure if no request may be sent, because liveness checks fail; None otherwise."""
        return None if self._liveness is None else await self._liveness.outage()

    async def _wait_ended(self) -> Iterable[SourceEvent[Seen]]:
        """Handle a wait that ended without data: liveness checks failed, or the deadline for reading has passed."""
        failure = None if self._liveness is None else await self._liveness.give_up()
        return self._reflector.silent(self._loop.time()) if failure is None else self._failed(failure)

    def _failed(self, failure: Failure) -> Iterable[SourceEvent[Seen]]:
        return self._reflector.failed(failure, self._loop.time())


def _taken(source_events: Iterator[T]) -> tuple[list[T], bool]:
    """Return the next events, as many as one iteration of the event loop may decode, and whether they were costly."""
    batch: list[T] = []
    began = time.monotonic()
    for event in source_events:
        batch.append(event)
        if len(batch) == EVENTS_AT_ONCE or time.monotonic() > began + _AT_ONCE_S:
            break
    return batch, time.monotonic() > began + COSTLY_S


def _end_of_step(lines: list[bytes | bytearray], first: int) -> int:
    """Return the end of the lines that are decoded in one step: those of `LARGE_PAGE` bytes, or one larger line."""
    size = 0
    end = min(first + EVENTS_AT_ONCE, len(lines))
    for number in range(first, end):
        size += len(lines[number])
        if size > LARGE_PAGE:
            return max(number, first + 1)
    return end


def _transport_failure(error: TransportError) -> Failure:
    return Failure(_REASONS.get(error.cause, "ConnectionLost"), str(error))


def _response_failure(status: int, headers: Any, body: bytes) -> Failure:
    refused = error_status(body, status)
    message = f"{status}: {refused.message}" if refused.message else str(status)
    if status in (404, 503) and not refused.reason:
        # Plain text is from a proxy, or from an API server that has just started and does not serve the resource yet
        # (some send 404 then). Some send a Retry-After of five seconds; it is ignored, because they need far less.
        return Failure("NotServing", message, 503)
    reason = refused.reason or _STATUS_REASONS.get(status, "ServerError" if status >= 500 else "Refused")
    return Failure(reason, message, status, retry_after.stated(headers, datetime.now(UTC)))
