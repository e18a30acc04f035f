"""Keeps the cache of one kind in one cluster up to date, by list and watch."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, Literal, NamedTuple, Protocol

from milo_controllers.cache_budget import CacheBudget
from milo_controllers.kinds import CacheKey, Kind
from milo_controllers.object_cache import CachedObject, Change, Index, ObjectCache, ObjectDecoder, Place
from milo_discovery.cluster_api import (
    METADATA_LIST_ONLY,
    METADATA_ONLY,
    ClusterApi,
)
from milo_kube.api_request import JSON, Answer, Stream
from milo_kube.api_server import CONNECT_TIMEOUT_S
from milo_kube.list_watch import ListWatch
from milo_kube.reflect.messages import EventIgnored, Listed, ObjectChanged, SourceEvent
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus

log = logging.getLogger("milo_controllers")

LIST_TIMEOUT_S = 60.0
InformerState = Literal["starting", "synced", "stale", "forbidden", "not_served", "over_budget"]
_STATES: Final[dict[str, InformerState]] = {
    "NotServing": "not_served",
    "NotFound": "not_served",
    "Forbidden": "forbidden",
}
_CHECK_KIND = "check its group, version and plural, and whether its CustomResourceDefinition is installed there"
_APPLIED_AT_ONCE = 250
"""Maximum number of source events applied before the informer yields to the event loop."""


class InformerSpec(NamedTuple):
    """An informer to run in each cluster."""

    kind: Kind[Any]
    indexes: dict[str, Index]
    decoder: ObjectDecoder

    @property
    def key(self) -> CacheKey:
        return self.kind.key

    @property
    def path(self) -> str:
        return self.kind.collection(self.key.namespace)

    @property
    def query(self) -> list[tuple[str, str]]:
        given = (("labelSelector", self.key.selector), ("fieldSelector", self.key.field_selector))
        return [(name, value) for name, value in given if value]


class InformerListener(Protocol):
    """The receiver of an informer's reports."""

    def changed(self, informer: Informer, change: Change) -> None: ...
    def synced(self, informer: Informer) -> None:
        """Called when the first list is complete, and when the first list after the cache was dropped is complete."""

    def failed(self, informer: Informer) -> None:
        """Called when the cache cannot be filled or kept up to date."""


class Informer:
    """Watches the objects of one kind in one cluster, and keeps its cache up to date."""

    __slots__ = (
        *("_budget", "_cluster", "_list_watch", "_listener", "_exceeded", "cache", "counted_bytes", "key", "since"),
        *("_page_bytes", "_attempt", "spec", "status", "dropped"),
    )

    def __init__(
        self,
        api: ClusterApi,
        spec: InformerSpec,
        policy: ReflectorPolicy,
        *,
        listener: InformerListener,
        budget: CacheBudget,
    ) -> None:
        self.spec = spec
        self.key = spec.key
        self.cache = ObjectCache(self._index_failed)
        for name, index in spec.indexes.items():
            self.cache.add_index(name, *index)
        self.status: ViewStatus | None = None
        self.since = time.time()
        """When the informer entered its current state."""
        self.counted_bytes = 0
        self._exceeded = ""
        self.dropped: frozenset[Place] | None = None
        """The objects that the cache had when it was dropped; None if it was not dropped since its last complete list.
        Some may have been deleted since."""
        self._page_bytes = 0
        """Bytes of the page of a list that is being read or applied."""
        self._attempt: asyncio.Timeout | None = None
        """The timeout that `exceed` triggers to stop the list and watch."""
        self._budget = budget
        self._cluster = api.name
        self._listener = listener
        self._list_watch = self._following(api, policy)

    def _following(self, api: ClusterApi, policy: ReflectorPolicy) -> ListWatch[CachedObject]:
        return ListWatch(
            _CollectionApi(api, self),
            self.spec,
            decoder=self.spec.decoder,
            reflector=Reflector(policy, random.random, asyncio.get_running_loop().time()),
            connect_timeout_s=CONNECT_TIMEOUT_S,
            request_timeout_s=LIST_TIMEOUT_S,
        )

    @property
    def problem(self) -> str:
        """Why the cache is not current; empty if it is current, and before the informer runs."""
        if self._exceeded:
            return f"OverBudget: {self._exceeded}"
        status = self.status
        if status is None or status.state is ViewState.STREAMING:
            return ""
        if status.message.startswith("404"):
            return f"{status.reason}: {self._cluster} does not serve {self.key.resource}: {_CHECK_KIND}"
        return f"{status.reason}: {status.message}"

    @property
    def state(self) -> InformerState:
        """The state, as in the label `state` of the metric `milo_controllers_informers`."""
        if self._exceeded:
            return "over_budget"
        if self.status is not None and self.status.state is ViewState.STALE:
            return _STATES.get(self.status.reason, "stale")
        return "synced" if self.cache.synced else "starting"

    async def run(self, api: ClusterApi, policy: ReflectorPolicy) -> None:
        """List and watch until canceled. After the cache exceeded a limit, wait `retry_s` and list again."""
        try:
            while True:
                self._report()
                limit = self._attempt = asyncio.timeout(None)
                try:
                    async with limit, aclosing(self._list_watch.batches()) as batches:
                        async for source_events in batches:
                            await self._apply(source_events)
                            del source_events  # free the events, since the wait for the next batch can last for hours
                except TimeoutError:
                    if not limit.expired():
                        raise
                await asyncio.sleep(self._budget.limits.retry_s)
                self._exceeded = ""
                self.since = time.time()
                self._list_watch = self._following(api, policy)
        finally:
            self._budget.forget(self)

    def exceed(self, problem: str) -> None:
        """Drop the cache, and stop the list and watch."""
        self._budget.forget(self)
        self.counted_bytes = self._page_bytes = 0
        # What an incomplete list contained was not reconciled: so the set is at most as large as a permitted cache.
        self.dropped = self.cache.places() if self.cache.synced else self.dropped or frozenset()
        self.cache.clear()
        self._exceeded = problem
        if self._attempt is not None:
            self._attempt.reschedule(0.0)
        self.since = time.time()
        log.error(
            "%s: the cache of %s was dropped: %s; listing again in %g s",
            *(self._cluster, self.key, problem, self._budget.limits.retry_s),
        )
        self._listener.failed(self)

    async def _apply(self, events: Iterable[SourceEvent[CachedObject]]) -> None:
        for number, event in enumerate(events, 1):
            if isinstance(event, EventIgnored):
                log.warning("%s: a watch event of %s was ignored: %s", self._cluster, self.key, event.problem)
            elif isinstance(event, Listed | ObjectChanged) and event.observation.problem:
                found = event.observation
                log.warning("%s: %s %s is invalid: %s", self._cluster, self.key, found.name, found.problem)
            if self._exceeded:
                return
            was_synced = self.cache.synced
            for change in self.cache.apply(event):
                self._listener.changed(self, change)
            self._count()
            if self.cache.synced and not was_synced:
                self._listener.synced(self)
                self.dropped = None
            if number % _APPLIED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if not self._exceeded:
            self._report()

    async def page(self, api: ClusterApi, path: str, query: Any, *, timeout_s: float) -> Answer:
        """Read a page of a list. Its bytes count toward the budget until the next page is read, or the watch begins."""
        self.page_applied()
        accept = METADATA_LIST_ONLY if self.spec.kind.metadata_only else JSON
        limit = self._budget.limits.bytes
        return await api.get(path, query, timeout_s=timeout_s, accept=accept, limit=limit, arrived=self._page_arrived)

    def page_applied(self) -> None:
        """Stop counting the last page, whose objects are in the cache."""
        self._page_bytes = 0
        self._count()

    def _page_arrived(self, size: int) -> None:
        self._page_bytes += size
        self._count()

    def _count(self) -> None:
        size = self.cache.size + self._page_bytes
        if size == self.counted_bytes or self._exceeded:
            return
        grown, self.counted_bytes = size - self.counted_bytes, size
        self._budget.grown(self, grown)
        if problem := self._budget.problem(len(self.cache), self.cache.size):
            self.exceed(problem)

    def _index_failed(self, index: str, found: CachedObject, error: Exception) -> None:
        log.warning(
            "%s: index %s of %s failed for %s, which is missing from the index: %r",
            *(self._cluster, index, self.key, found.name, error),
        )

    def _report(self) -> None:
        status, state = self._list_watch.status, self.state
        before, self.status = self.status, status
        if self.state != state:
            self.since = time.time()
        if status.state is ViewState.STALE and (before is None or before.state is not ViewState.STALE):
            log.warning("%s: the cache of %s is not up to date: %s", self._cluster, self.key, self.problem)
            self._listener.failed(self)
        elif before is not None and before.state is ViewState.STALE and status.state is ViewState.STREAMING:
            log.info("%s: the cache of %s is up to date again", self._cluster, self.key)


class _CollectionApi:
    """The CollectionApi of an informer, which requests only metadata if the informer's kind has `metadata_only`."""

    __slots__ = ("_api", "_informer")

    def __init__(self, api: ClusterApi, informer: Informer) -> None:
        self._api = api
        self._informer = informer

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer:
        return await self._informer.page(self._api, path, query, timeout_s=timeout_s)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        self._informer.page_applied()
        accept = METADATA_ONLY if self._informer.spec.kind.metadata_only else JSON
        return self._api.stream(path, query, connect_timeout_s=connect_timeout_s, silence_s=silence_s, accept=accept)
