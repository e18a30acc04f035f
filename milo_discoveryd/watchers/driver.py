"""Follows a source: list and watch, the confirmation of deletions, and concurrent liveness probes."""

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.logger import log
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.observation import Outside
from milo_discoveryd.model.resource import WatchedCollection
from milo_discoveryd.objects.budget import OVER_BUDGET, OVER_BUDGET_RETRY_S
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import (
    Absent,
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
)
from milo_kube import retry_after
from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError
from milo_kube.list_watch import CollectionApi, ListWatch
from milo_kube.liveness_probe import LivenessApi, LivenessProbe
from milo_kube.reflect.messages import UNEXPECTED_ERROR, Failure, SourceEvent
from milo_kube.reflect.reflector import Reflector
from milo_kube.reflect.wire import MAX_LINE, Decoder, ListPageError, error_status

CONFIRMATION_TIMEOUT_S = 5.0
"""Timeout of a confirmation read. It is usually shorter than the timeout of a list, so that a hanging read releases its
slot soon."""
READ_BYTES = 4 * MAX_LINE
"""Maximum bytes of all reads of a collection that are in flight: there can be 200, and a server determines their sizes.
"""
RETRY_S = 5.0
"""The delay after which timers and liveness probes continue that an unexpected exception interrupted."""
BATCHES_PER_COLLECTION = 8
"""Batches of source events after which the garbage collector examines its youngest generation. Python itself does so
only when allocations exceed deallocations by a threshold. Updates, which replace objects, stay below that threshold for
a long time, until one run of the garbage collector examines the tuples of 100,000 objects at once, which takes 35
ms."""


class Confirmations:
    """The task that confirms the deletions of one collection, and calls `tick` of its source.

    `read` reads one object. `trusted_from` returns the time since which the source is trusted, or infinity while it is
    not. `is_proven` returns whether the server has sent anything of this collection since the connection was last lost.
    """

    def __init__(
        self,
        source: ClusterSource,
        collection: ObjectCollection,
        read: Callable[[str], Awaitable[ConfirmationResult]],
        trusted_from: Callable[[], float],
        is_proven: Callable[[], bool] = lambda: True,
    ) -> None:
        self._source = source
        self._collection = collection
        self._pending_deletions = collection.pending_deletions
        self._read = read
        self._source_trusted_from = trusted_from
        self._is_proven = is_proven
        self._has_timers = asyncio.Event()
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    def applied(self) -> None:
        """Wake the timers: source events and the status were applied, so confirmations or ticks may be due."""
        if self._pending_deletions.doubted or self._source.due_at is not None:
            self._has_timers.set()

    async def run(self) -> None:
        """Make confirmation requests and call `tick` of the source, each when it is due, until canceled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    self._source.tick(self._clock())
                    self._pending_deletions.defers_rechecks = not self._is_proven()
                    if self._is_trusted:
                        for request in self._pending_deletions.take_due(self._clock()):
                            tasks.create_task(self._confirm(request), name=f"confirm the deletion of {request.name}")
                    confirm_at, tick_at = self._pending_deletions.next_at, self._source.due_at
                    due = min(
                        math.inf if confirm_at is None else max(confirm_at, self._trusted_from()),
                        math.inf if tick_at is None else tick_at,
                    )
                except Exception:
                    log.exception("deletions not confirmed and grace periods not ended", source=self._source.name)
                    due = self._clock() + RETRY_S
                try:
                    async with asyncio.timeout_at(None if due == math.inf else due):
                        await self._has_timers.wait()
                except TimeoutError:
                    pass  # something is due
                self._has_timers.clear()

    async def _confirm(self, request: ConfirmationRequest) -> None:
        try:
            result = await self._confirmed(request.name)
        except Exception as error:
            log.exception("confirmation failed", object=request.name)
            result = Inconclusive(internal_error(error))
        if not self._is_trusted or (request.was_refuted and not self._is_proven()):
            result = Inconclusive("the source may have been out of date when the response arrived")
        with log.contained("confirmation not applied", object=request.name):
            self._source.resolve(self._collection, request, result, self._clock())
        self._has_timers.set()

    def _trusted_from(self) -> float:
        return math.inf if self._collection.trust.is_ignoring else self._source_trusted_from()

    @property
    def _is_trusted(self) -> bool:
        return self._clock() >= self._trusted_from()

    async def _confirmed(self, name: str) -> ConfirmationResult:
        result = await self._read(name)
        reference_objects = self._collection.reference_objects
        if not isinstance(result, Absent) or not reference_objects:
            return result
        # Another server, such as a wrong backend behind the same address, answers "not found" too, but for all objects.
        problem = "the server lacks other known objects too, so it may be a different server"
        refusal: Inconclusive | None = None
        for reference, uid in reference_objects:
            answer = await self._read(reference)
            if isinstance(answer, Found) and answer.observation.uid == uid:
                return result
            if isinstance(answer, Inconclusive):
                problem = f"the server may be a different one, and reading {reference} from it failed: {answer.problem}"
                refusal = answer if answer.is_refusal else refusal
        if refusal is not None:
            return msgspec.structs.replace(refusal, problem=problem)
        return Inconclusive(problem)


class SourceApi(CollectionApi, LivenessApi, Protocol):
    """The requests that the driver sends."""

    async def get(
        self, path: str, query: Any = (), *, timeout_s: float, arrived: Callable[[int], None] = lambda _: None
    ) -> Answer: ...


class Driver:
    """The tasks that follow one collection: list and watch, confirmation of deletions, liveness probes."""

    def __init__(
        self,
        api: SourceApi,
        watched: WatchedCollection,
        *,
        decoder: Decoder[Any, ObservedObject],
        reflector: Reflector[ObservedObject],
        source: ClusterSource,
        collection: ObjectCollection,
        connect_timeout_s: float,
        request_timeout_s: float,
    ) -> None:
        self._api = api
        self._watched = watched
        self._decoder = decoder
        self._reflector = reflector
        self._source = source
        self._collection = collection
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._liveness_probe = LivenessProbe(api, reflector.policy.liveness, source.observer.liveness_checked)
        self._confirmations = Confirmations(
            source,
            collection,
            self._read_object,
            lambda: reflector.trusted_from,
            lambda: reflector.trust.is_known,
        )
        self._uncollected_batches = 0
        self._bytes_read = 0
        self._clock: Callable[[], float] = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Follow the source until canceled."""
        self._source.set_followed(self._collection, self._reflector.status)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the source")
            tasks.create_task(self._confirmations.run(), name="confirm deletions and end grace periods")
            tasks.create_task(self._check_liveness(), name="check the source's liveness")

    async def _follow(self) -> None:
        list_watch = ListWatch(
            self._api,
            self._watched,
            decoder=self._decoder,
            reflector=self._reflector,
            liveness=self._liveness_probe,
            connect_timeout_s=self._connect_timeout_s,
            request_timeout_s=self._request_timeout_s,
        )
        while True:
            try:
                async with aclosing(list_watch.batches()) as batches:
                    async for source_events in batches:
                        await self._apply(source_events)
                        del source_events  # the next wait may last for hours
            except Exception as error:
                log.exception("collection not followed", source=self._source.name, path=self._watched.path)
                self._reflector.start_over(Failure(UNEXPECTED_ERROR, internal_error(error)), self._clock())
                with log.contained("status of a collection not set", source=self._source.name):
                    self._source.set_followed(self._collection, self._reflector.status)

    async def _check_liveness(self) -> None:
        while True:
            with log.contained("liveness of the API server not checked", source=self._source.name):
                await self._liveness_probe.run()
            await asyncio.sleep(RETRY_S)

    async def _apply(self, source_events: Iterable[SourceEvent[ObservedObject]]) -> None:
        read_at = self._clock()
        batches = self._source.apply(self._collection, source_events, read_at)
        next(batches, None)  # usually the only batch, and the next await yields to the event loop
        self._collect_garbage()
        for _ in batches:
            await asyncio.sleep(0)
            self._collect_garbage()
        self._reflector.relist_by(self._collection.relist_at)
        if problem := self._collection.over_budget:
            now = self._clock()
            dropped = self._reflector.give_up(Failure(OVER_BUDGET, problem), now + OVER_BUDGET_RETRY_S, now)
            for _ in self._source.apply(self._collection, dropped, now):
                pass
        self._source.set_followed(self._collection, self._reflector.status)
        self._confirmations.applied()

    def _collect_garbage(self) -> None:
        """Collect the youngest generation after every `BATCHES_PER_COLLECTION` batches."""
        self._uncollected_batches += 1
        if self._uncollected_batches >= BATCHES_PER_COLLECTION:
            self._uncollected_batches = 0
            gc.collect(0)

    async def _read_object(self, key: str) -> ConfirmationResult:
        namespace, name = self._watched.keys.split(key)
        try:
            # Without a resource version the read is consistent: never older than the request.
            answer = await self._get(self._watched.resource.object_path(namespace, name))
        except TransportError as error:
            return Inconclusive(str(error))
        if answer.status == 200:
            observation = self._decoder.object(answer.body)
            if observation is None or observation.name != key:
                found = "it cannot be decoded" if observation is None else f"its name is {observation.name!r}"
                return Inconclusive(f"the response is not the object: {found}")
            return await self._selected(observation, namespace, name)
        refused = error_status(answer.body, answer.status)
        # Only a Status that names the object is evidence: proxies and servers without the resource send 404 too.
        if answer.status == 404 and refused.reason == "NotFound" and refused.name == name:
            return Absent()
        return _inconclusive(answer)

    async def _selected(self, observation: ObservedObject, namespace: str, name: str) -> ConfirmationResult:
        """Return an existing object, as `Outside` if it does not match the field selector. A list shows this: only the
        API server can evaluate that selector."""
        resource = self._watched.resource
        if not resource.field_selector:
            return Found(observation)
        collection = msgspec.structs.replace(resource, namespace=namespace or resource.namespace)
        try:
            answer = await self._get(collection.path, self._watched.query_for(name))
            if answer.status != 200:
                return _inconclusive(answer)
            _, listed = self._decoder.page(answer.body)
        except (TransportError, ListPageError) as error:
            return Inconclusive(str(error))
        if any(other is not None and other.name == observation.name for other in listed):
            return Found(observation)
        message = f"it does not match the daemon's field selector {resource.field_selector}"
        return Found(Outside(observation.name, observation.uid, observation.version, message, observation.fields))

    async def _get(self, path: str, query: Any = ()) -> Answer:
        size = 0

        def arrived(more: int) -> None:
            nonlocal size
            size += more
            self._bytes_read += more
            if self._bytes_read > READ_BYTES:
                raise TransportError("too_large", f"the reads in flight have more than {READ_BYTES} bytes")

        try:
            timeout_s = min(CONFIRMATION_TIMEOUT_S, self._request_timeout_s)
            return await self._api.get(path, query, timeout_s=timeout_s, arrived=arrived)
        finally:
            self._bytes_read -= size


def internal_error(error: Exception) -> str:
    return f"internal error ({type(error).__name__}); its stack is in the daemon's log"


def _inconclusive(answer: Answer) -> Inconclusive:
    wait_s = retry_after.stated(answer.headers, datetime.now(UTC))
    refused = error_status(answer.body, answer.status)
    return Inconclusive(f"{answer.status}: {refused.message}", is_refusal=True, retry_after_s=wait_s)
