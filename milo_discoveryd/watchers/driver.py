"""Runs a reflector against an API server: makes the requests it asks for, and tells it what came of them."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from milo_discoveryd.model.source import SourceStatus
from milo_discoveryd.reflect import retry_after
from milo_discoveryd.reflect.liveness_policy import LivenessPolicy
from milo_discoveryd.reflect.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    NotFound,
    PendingDeletions,
)
from milo_discoveryd.reflect.reflector import Failure, FetchPage, OpenWatch, Reflector, SourceEvent, Wait
from milo_discoveryd.reflect.wire import Decoder, Lines, LineTooLongError, ListPageError, refusal
from milo_discoveryd.watchers.liveness_probe import LivenessProbe, UnresponsiveError
from milo_discoveryd.watchers.transport import Answer, Stream, TransportError

BEGINS_WITHIN_S = 300.0
"""An API server answers a watch at once. What stands before one may keep that back until there is something to tell."""
_REASONS = {
    "dns": "DnsFailed",
    "connect": "ConnectFailed",
    "tls": "TlsFailed",
    "timeout": "Timeout",
    "closed": "ConnectionLost",
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


class SourceApi(Protocol):
    """What the driver needs of a transport."""

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer: ...

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]: ...

    async def drop(self) -> None: ...


class Sink(Protocol):
    """Where findings go."""

    def take(self, findings: Iterable[SourceEvent], read_at: float) -> Iterator[None]:
        """Applies findings in portions, so that the caller can let others run between them."""

    @property
    def witnesses(self) -> tuple[tuple[str, str], ...]:
        """Names and UIDs of some objects that are there, for all that is known."""

    def answer(self, question: ConfirmationRequest, answer: ConfirmationResult, read_at: float) -> None: ...

    def source(self, status: SourceStatus) -> None: ...

    def liveness_checked(self, result: str) -> None:
        """What came of a question whether the source is there."""

    @property
    def due_at(self) -> float | None:
        """When it wants to be ticked, if nothing else happens."""

    def tick(self, now: float) -> None: ...

    @property
    def relist_at(self) -> float | None:
        """When it wants a list again, whatever the watch tells."""


class WatchedCollection(msgspec.Struct, frozen=True):
    """What is followed: a collection, as far as the selector goes."""

    path: str
    label_selector: str = ""

    @property
    def query(self) -> list[tuple[str, str]]:
        return [("labelSelector", self.label_selector)] if self.label_selector else []


class Driver:
    def __init__(
        self,
        api: SourceApi,
        watched: WatchedCollection,
        *,
        decoder: Decoder[Any],
        reflector: Reflector,
        pending_deletions: PendingDeletions,
        sink: Sink,
        connect_timeout_s: float,
        request_timeout_s: float,
        liveness: LivenessPolicy,
    ) -> None:
        self._api = api
        self._watched = watched
        self._decoder = decoder
        self._reflector = reflector
        self._pending_deletions = pending_deletions
        self._sink = sink
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._lifeline = LivenessProbe(api, liveness, sink.liveness_checked)
        self._pending = asyncio.Event()
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Until it is cancelled."""
        self._sink.source(self._reflector.status)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the source")
            tasks.create_task(self._keep_time(tasks), name="keep time")
            tasks.create_task(self._lifeline.run(), name="look after the source")

    async def _follow(self) -> None:
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
            self._sink.source(self._reflector.status)

    async def _fetch(self, request: FetchPage) -> None:
        query = self._watched.query
        if request.limit:
            query.append(("limit", str(request.limit)))
        if request.continue_token:
            query.append(("continue", request.continue_token))
        try:
            asked = self._api.get(self._watched.path, query, timeout_s=self._request_timeout_s)
            answer = await self._lifeline.waited(asked)
            if answer.status != 200:
                await self._failed(_refused(answer.status, answer.headers, answer.body))
                return
            page, observations = self._decoder.page(answer.body)
        except TransportError as error:
            await self._failed(_lost(error))
        except UnresponsiveError as error:
            await self._failed(error.failure)
        except ListPageError as error:
            await self._failed(Failure("MalformedResponse", str(error)))
        else:
            await self._hand_on(self._reflector.listed(page, observations, self._clock()))

    async def _watch(self, request: OpenWatch) -> None:
        query = [
            *self._watched.query,
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(request.timeout_s)),
        ]
        if request.version:
            query.append(("resourceVersion", request.version))
        else:
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        opened = self._api.stream(
            self._watched.path,
            query,
            connect_timeout_s=self._connect_timeout_s,
            silence_s=None,
        )
        try:
            async with AsyncExitStack() as exchange:
                stream = await self._begun(exchange.enter_async_context(opened))
                if stream.status != 200:
                    body = await stream.read_error(64 * 1024)
                    await self._failed(_refused(stream.status, stream.headers, body))
                    return
                await self._hand_on(self._reflector.opened(self._clock()))
                self._sink.source(self._reflector.status)
                async with aclosing(stream.chunks()) as chunks:
                    await self._read(chunks)
        except TransportError as error:
            await self._failed(_lost(error))
        except UnresponsiveError as error:
            await self._failed(error.failure)
        except LineTooLongError as error:
            await self._failed(Failure("MalformedResponse", str(error)))

    async def _begun(self, answer: Awaitable[Stream]) -> Stream:
        try:
            return await self._lifeline.waited(answer, self._clock() + BEGINS_WITHIN_S)
        except TimeoutError:
            raise TransportError("timeout", f"the watch did not begin within {BEGINS_WITHIN_S:g} s") from None

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        lines = Lines()
        try:
            async with self._lifeline.waiting():
                while self._reflector.is_reading:
                    deadline = self._reflector.next(self._clock()).until  # type: ignore[union-attr]
                    chunk = await self._lifeline.wait(anext(chunks, None), deadline)
                    now = self._clock()
                    if chunk is None:
                        await self._hand_on(self._ended(now, partial=lines.partial))
                        return
                    events = [self._decoder.line(line) for line in lines.feed(chunk)]
                    await self._hand_on(self._reflector.events(events, now, partial=lines.partial))
                    self._sink.source(self._reflector.status)
        except TimeoutError:
            await self._hand_on(self._reflector.silent(self._clock()))

    def _ended(self, now: float, *, partial: bool) -> Iterable[SourceEvent]:
        if partial:
            cut = Failure("TruncatedLine", "the server ended the watch in the middle of an event")
            return self._reflector.failed(cut, now)
        return self._reflector.ended(now)

    async def _failed(self, failure: Failure) -> None:
        await self._hand_on(self._reflector.failed(failure, self._clock()))

    async def _hand_on(self, findings: Iterable[SourceEvent]) -> None:
        read_at = self._clock()
        portions = self._sink.take(findings, read_at)
        next(portions, None)  # mostly there is but one, and whatever is waited for next gives others their turn
        for _ in portions:
            await asyncio.sleep(0)
        self._reflector.relist_by(self._sink.relist_at)
        if len(self._pending_deletions) or self._sink.due_at is not None:
            self._pending.set()

    async def _keep_time(self, tasks: asyncio.TaskGroup) -> None:
        """Asks about what seems to be gone, and ticks the sink, each when it is due."""
        while True:
            self._sink.tick(self._clock())
            if self._is_believed:
                for question in self._pending_deletions.questions(self._clock()):
                    tasks.create_task(self._ask(question), name=f"confirm the deletion of {question.name}")
            asks_at, ticks_at = self._pending_deletions.next_at, self._sink.due_at
            due = min(
                math.inf if asks_at is None else max(asks_at, self._reflector.trusted_from),
                math.inf if ticks_at is None else ticks_at,
            )
            try:
                async with asyncio.timeout_at(None if due == math.inf else due):
                    await self._pending.wait()
            except TimeoutError:
                pass  # something is due
            self._pending.clear()

    async def _ask(self, question: ConfirmationRequest) -> None:
        verdict = await self._verdict(question.name)
        if not self._is_believed:
            verdict = Inconclusive("the source was lost before the answer came")
        self._sink.answer(question, verdict, self._clock())
        self._pending.set()

    @property
    def _is_believed(self) -> bool:
        return self._clock() >= self._reflector.trusted_from

    async def _verdict(self, name: str) -> ConfirmationResult:
        verdict = await self._look(name)
        witnesses = self._sink.witnesses
        if not isinstance(verdict, NotFound) or not witnesses:
            return verdict
        # Whoever says so may be another server, which never had it. Then it has none of the others either.
        doubt = "who answers has none of the others either, and may be another server"
        for known, uid in witnesses:
            there = await self._look(known)
            if isinstance(there, Found) and there.observation.uid == uid:
                return verdict
            if isinstance(there, Inconclusive):
                doubt = f"who answers may be another server, and can't be asked whether it has {known}: {there.problem}"
        return Inconclusive(doubt)

    async def _look(self, name: str) -> ConfirmationResult:
        try:
            # Without a resource version the read is consistent: it shows what is there now, or later.
            answer = await self._api.get(f"{self._watched.path}/{name}", timeout_s=self._request_timeout_s)
        except TransportError as error:
            return Inconclusive(str(error))
        if answer.status == 200:
            observation = self._decoder.object(answer.body)
            return Inconclusive("the answer names no object") if observation is None else Found(observation)
        refused = refusal(answer.body, answer.status)
        # Only the API server's own word counts: a proxy says 404 as well, and so does a server without the resource.
        if answer.status == 404 and refused.reason == "NotFound" and refused.name == name:
            return NotFound()
        return Inconclusive(f"{answer.status}: {refused.message}")


def _lost(error: TransportError) -> Failure:
    return Failure(_REASONS.get(error.cause, "ConnectionLost"), str(error))


def _refused(status: int, headers: Any, body: bytes) -> Failure:
    refused = refusal(body, status)
    message = f"{status}: {refused.message}" if refused.message else str(status)
    if status in (404, 503) and not refused.reason:
        # Plain text: an API server that has just started and doesn't serve the resource yet (some say 404 to that), or
        # what stands before it. The five seconds that one asks for are a hundred times what it needs.
        return Failure("NotServing", message, 503)
    reason = refused.reason or _STATUS_REASONS.get(status, "ServerError" if status >= 500 else "Refused")
    return Failure(reason, message, status, retry_after.seconds(headers.get("Retry-After", ""), datetime.now(UTC)))
