"""Follows a collection by list and watch: keeps a sink of its objects current, within a memory budget."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from milo_kube.api_request import JSON, METADATA_LIST_ONLY, METADATA_ONLY, Answer, Stream
from milo_kube.api_server import CONNECT_TIMEOUT_S, ApiServer
from milo_kube.cache_budget import CacheBudget
from milo_kube.list_watch import Collection, ListWatch
from milo_kube.rate_limit import Rate, TokenBucket
from milo_kube.reflect.messages import EventIgnored, Listed, ObjectChanged, SourceEvent
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import Decoder, Identified
from milo_kube.tenants import Tenant, working_for

LIST_TIMEOUT_S = 60.0
FollowerState = Literal["starting", "synced", "stale", "forbidden", "not_served", "over_budget"]
_STATES: Final[dict[str, FollowerState]] = {
    "NotServing": "not_served",
    "NotFound": "not_served",
    "Forbidden": "forbidden",
}
_CHECK_KIND = "check its group, version and plural, and whether its CustomResourceDefinition is installed there"
_WARNINGS = Rate(per_second=0.1, burst=10.0)
"""The rate limit of each follower's warnings about objects."""
PAGE_BYTES = 16 << 20
"""Maximum bytes of a page, which is decoded in one step. With more, smaller pages are requested."""
_APPLIED_AT_ONCE = 250
"""Maximum number of source events applied before the follower yields to the event loop."""


class Decoded(Identified, Protocol):
    """A decoded object, or why it could not be decoded."""

    @property
    def problem(self) -> str:
        """Why the object could not be decoded; empty if it could."""


DecodedT = TypeVar("DecodedT", bound=Decoded)
ChangeT = TypeVar("ChangeT")
ChangeT_co = TypeVar("ChangeT_co", covariant=True)


class FollowedKind(Collection, Protocol[DecodedT]):
    """The collection to follow, and the decoder of its objects. `str` names it in messages."""

    @property
    def resource(self) -> str: ...
    @property
    def decoder(self) -> Decoder[Any, DecodedT]: ...
    @property
    def metadata_only(self) -> bool: ...


class Sink(Protocol[DecodedT, ChangeT_co]):
    """The objects of a followed collection."""

    @property
    def size(self) -> int:
        """Approximate bytes that all objects take."""

    @property
    def synced(self) -> bool:
        """Whether a complete list was applied."""

    def __len__(self) -> int: ...
    def apply(self, event: SourceEvent[DecodedT]) -> Iterable[ChangeT_co]: ...
    def clear(self) -> None: ...


class _FollowerLog:
    """The log of a follower, with a rate limit of warnings about objects: a hostile server could cause any number."""

    __slots__ = ("_bucket", "_unlogged", "logger")

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self._bucket: TokenBucket | None = None
        self._unlogged = 0

    def limited(self, message: str, *about: object) -> None:
        now = asyncio.get_running_loop().time()
        if self._bucket is None:
            self._bucket = TokenBucket(_WARNINGS, now)
        if self._bucket.take(now):
            self._unlogged += 1
            return
        unlogged, self._unlogged = self._unlogged, 0
        others = f"; {unlogged} others were not logged" if unlogged else ""
        self.logger.warning("%s%s", message % about, others)


class CollectionFollower(ABC, Generic[DecodedT, ChangeT]):
    """Lists and watches a collection, and applies it to a sink. Its subclass is notified of the changes."""

    __slots__ = (
        *("_api", "_attempt", "_budget", "_cluster", "_exceeded", "_kind", "_list_watch", "_log", "_page_bytes"),
        *("_policy", "_sink", "counted_bytes", "since", "status"),
    )

    def __init__(
        self,
        api: ApiServer,
        kind: FollowedKind[DecodedT],
        sink: Sink[DecodedT, ChangeT],
        policy: ReflectorPolicy,
        *,
        budget: CacheBudget,
        cluster: str,
        log: logging.Logger,
    ) -> None:
        self.status: ViewStatus | None = None
        self.since = time.time()
        """When the follower entered its current state; if the sink is no longer current, up to when it was."""
        self.counted_bytes = 0
        self._api = api
        self._kind = kind
        self._sink = sink
        self._policy = policy
        self._budget = budget
        self._cluster = cluster
        self._log = _FollowerLog(log)
        self._exceeded = ""
        self._page_bytes = 0
        """Bytes of the page of a list that is being read or applied."""
        self._attempt: asyncio.Timeout | None = None
        """The timeout that `exceed` and `list_again` trigger to stop the list and watch."""
        self._list_watch = self._following()

    @property
    @abstractmethod
    def tenant(self) -> Tenant:
        """The present tenant of the cluster."""

    @abstractmethod
    def changed(self, change: ChangeT) -> None:
        """Called with each change of the sink."""

    @abstractmethod
    def synced(self) -> None:
        """Called when the first list is complete, and when the first list after the sink was dropped is complete."""

    @abstractmethod
    def failed(self) -> None:
        """Called when the sink cannot be filled or kept up to date."""

    def reported(self) -> None:
        """Called whenever `state` or `problem` may have changed, and after each batch of source events."""

    def warn(self, message: str, *about: object) -> None:
        """Log a warning about an object, at a limited rate."""
        self._log.limited(message, *about)

    def _following(self) -> ListWatch[DecodedT]:
        return ListWatch(
            _CollectionApi(self._api, self._kind, self),
            self._kind,
            decoder=self._kind.decoder,
            reflector=Reflector(self._policy, random.random, asyncio.get_running_loop().time()),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            request_timeout_s=LIST_TIMEOUT_S,
        )

    @property
    def problem(self) -> str:
        """Why the sink is not current; empty if it is, also while it is read again, and before `run`."""
        if self._exceeded:
            return f"OverBudget: {self._exceeded}"
        status = self.status
        if status is None or status.state is ViewState.STREAMING or self.state == "synced":
            return ""
        if status.message.startswith("404"):
            return f"{status.reason}: {self._cluster} does not serve {self._kind.resource}: {_CHECK_KIND}"
        return f"{status.reason}: {status.message}"

    @property
    def state(self) -> FollowerState:
        """Whether the sink is current, or why it is not."""
        if self._exceeded:
            return "over_budget"
        if self.status is not None and self.status.state is ViewState.STALE:
            return _STATES.get(self.status.reason, "stale")
        return "synced" if self._sink.synced else "starting"

    async def run(self) -> None:
        """List and watch until canceled. `retry_s` after the sink exceeded a limit, list again."""
        try:
            while True:
                working_for.set(self.tenant)
                self._report()
                limit = self._attempt = asyncio.timeout(0.0 if self._exceeded else None)
                try:
                    async with limit, aclosing(self._list_watch.batches()) as batches:
                        async for source_events in batches:
                            await self._apply(source_events)
                            del source_events  # free the events, since the wait for the next batch can last for hours
                except TimeoutError:
                    if not limit.expired():
                        raise
                if self._exceeded:
                    exceeded_at = limit.when()  # closing the watch may have taken a while
                    assert exceeded_at is not None
                    now = asyncio.get_running_loop().time()
                    await asyncio.sleep(exceeded_at + self._budget.limits.retry_s - now)
                    self._exceeded = ""
                    self.since = time.time()
                self._list_watch = self._following()
        finally:
            self._budget.forget(self)

    def list_again(self) -> None:
        """End the watch, and list: the collection has another address. The objects are kept until the list is
        complete."""
        if not self._exceeded:
            self._end_attempt()

    def _end_attempt(self) -> None:
        if self._attempt is not None and not self._attempt.expired():
            self._attempt.reschedule(asyncio.get_running_loop().time())

    def exceed(self, problem: str) -> None:
        """Drop the objects, and stop the list and watch."""
        self._budget.forget(self)
        self.counted_bytes = self._page_bytes = 0
        self._sink.clear()
        self._exceeded = problem
        self._end_attempt()
        self.since = time.time()
        self._log.logger.error(
            "%s: the cache of %s was dropped: %s; listing again in %g s",
            *(self._cluster, self._kind, problem, self._budget.limits.retry_s),
        )
        self.failed()

    async def _apply(self, events: Iterable[SourceEvent[DecodedT]]) -> None:
        for number, event in enumerate(events, 1):
            if isinstance(event, EventIgnored):
                self.warn("%s: a watch event of %s was ignored: %s", self._cluster, self._kind, event.problem)
            elif isinstance(event, Listed | ObjectChanged) and event.observation.problem:
                found = event.observation
                self.warn("%s: %s %s is invalid: %s", self._cluster, self._kind, found.name, found.problem)
            if self._exceeded:
                return
            was_synced = self._sink.synced
            await self._report_changes(iter(self._sink.apply(event)), was_synced)
            if self._exceeded:
                return
            if number % _APPLIED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._count()
        if not self._exceeded:
            self._report()

    async def _report_changes(self, changes: Iterator[ChangeT], was_synced: bool) -> None:
        """Report the changes by one event: the end of a list can remove all objects."""
        try:
            for number, change in enumerate(changes, 1):
                self.changed(change)
                if number % _APPLIED_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if self._exceeded:
                    return
        except asyncio.CancelledError:
            # The next list does not show again what is no longer in the sink, nor that the sink is synced.
            if self._attempt is not None and self._attempt.expired() and not self._exceeded:
                for change in changes:
                    self.changed(change)
                self._applied(was_synced)
            raise
        self._applied(was_synced)

    def _applied(self, was_synced: bool) -> None:
        self._count()
        if self._sink.synced and not was_synced:
            self.since = time.time()
            self.synced()

    async def page(self, path: str, query: Any, *, timeout_s: float) -> Answer:
        """Read a page of a list. Its bytes count toward the budget until the next page is read, or the watch begins."""
        self.page_applied()
        accept = METADATA_LIST_ONLY if self._kind.metadata_only else JSON
        limit = min(self._budget.limits.bytes, PAGE_BYTES)
        return await self._api.get(
            path, query, timeout_s=timeout_s, accept=accept, limit=limit, arrived=self._page_arrived
        )

    def page_applied(self) -> None:
        """Stop counting the last page, whose objects are in the sink."""
        self._page_bytes = 0
        self._count()

    def _page_arrived(self, size: int) -> None:
        self._page_bytes += size
        self._count()

    def _count(self) -> None:
        size = self._sink.size + self._page_bytes + self._list_watch.partial
        if size == self.counted_bytes or self._exceeded:
            return
        grown, self.counted_bytes = size - self.counted_bytes, size
        self._budget.grown(self, grown)
        if problem := self._budget.problem(len(self._sink), self._sink.size):
            self.exceed(problem)

    def _report(self) -> None:
        status, state = self._list_watch.status, self.state
        before, self.status = self.status, status
        if self.state != state:
            self.since = time.time()
            if self.state == "stale" and status.last_contact is not None:
                self.since -= asyncio.get_running_loop().time() - status.last_contact
        if status.state is ViewState.STALE and (before is None or before.state is not ViewState.STALE):
            self._log.logger.warning(
                "%s: the cache of %s is not up to date: %s", self._cluster, self._kind, self.problem
            )
            self.failed()
        elif before is not None and before.state is ViewState.STALE and status.state is ViewState.STREAMING:
            self._log.logger.info("%s: the cache of %s is up to date again", self._cluster, self._kind)
        self.reported()


class _CollectionApi:
    """The CollectionApi of a follower, which requests only metadata if its kind has `metadata_only`."""

    __slots__ = ("_api", "_follower", "_kind")

    def __init__(self, api: ApiServer, kind: FollowedKind[Any], follower: CollectionFollower[Any, Any]) -> None:
        self._api = api
        self._kind = kind
        self._follower = follower

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer:
        return await self._follower.page(path, query, timeout_s=timeout_s)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        self._follower.page_applied()
        accept = METADATA_ONLY if self._kind.metadata_only else JSON
        return self._api.stream(path, query, connect_timeout_s=connect_timeout_s, silence_s=silence_s, accept=accept)
