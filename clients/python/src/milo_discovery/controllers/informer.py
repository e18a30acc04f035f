"""Keeps the cache of one kind in one cluster up to date, by list and watch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from milo_discovery.controllers.cluster_api import (
    CONNECT_TIMEOUT_S,
    JSON,
    METADATA_LIST_ONLY,
    METADATA_ONLY,
    ClusterApi,
)
from milo_discovery.controllers.kinds import Kind
from milo_discovery.controllers.object_cache import CachedObject, Change, IndexFunction, ObjectCache, object_decoder
from milo_kube.list_watch import Answer, DeadlineWaits, ListWatch, Stream
from milo_kube.reflect.messages import EventIgnored, Listed, ObjectChanged, SourceEvent
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.source_status import SourceState, SourceStatus

log = logging.getLogger("milo_discovery.controllers")

LIST_TIMEOUT_S = 60.0
_NOT_SERVED = frozenset({"NotServing", "NotFound"})
_APPLIED_AT_ONCE = 250
"""Number of listed objects that are processed between two iterations of the event loop."""
_DECODERS = {metadata_only: object_decoder(metadata_only=metadata_only) for metadata_only in (False, True)}


class InformerKey(NamedTuple):
    """The key by which informers are shared, within a cluster."""

    resource: str
    selector: str = ""

    def __str__(self) -> str:
        return f"{self.resource} ({self.selector})" if self.selector else self.resource


class InformerSpec(NamedTuple):
    """An informer to run in each cluster."""

    kind: Kind[Any]
    selector: str
    metadata_only: bool
    indexes: dict[str, IndexFunction]

    @property
    def key(self) -> InformerKey:
        return InformerKey(self.kind.resource, self.selector)

    @property
    def path(self) -> str:
        return self.kind.collection()

    @property
    def query(self) -> list[tuple[str, str]]:
        return [("labelSelector", self.selector)] if self.selector else []


class Listener(Protocol):
    """The receiver of an informer's reports."""

    def changed(self, informer: Informer, change: Change) -> None: ...
    def synced(self, informer: Informer) -> None:
        """Note that the first list is complete; called once."""

    def failed(self, informer: Informer) -> None:
        """Note that the cache cannot be kept up to date, or could not be filled."""


class Informer:
    """One kind of one cluster."""

    __slots__ = ("_cluster", "_list_watch", "_listener", "cache", "key", "spec", "status")

    def __init__(
        self,
        api: ClusterApi,
        key: InformerKey,
        spec: InformerSpec,
        policy: ReflectorPolicy,
        *,
        listener: Listener,
    ) -> None:
        self.spec = spec
        self.key = key
        self.cache = ObjectCache(self._index_failed)
        for name, function in spec.indexes.items():
            self.cache.add_index(name, function)
        self.status: SourceStatus | None = None
        self._cluster = api.name
        self._listener = listener
        self._list_watch = ListWatch(
            _CollectionApi(api, metadata_only=spec.metadata_only),
            spec,
            decoder=_DECODERS[spec.metadata_only],
            reflector=Reflector(policy, random.random, asyncio.get_running_loop().time()),
            waits=DeadlineWaits(),
            apply=self._apply,
            report=self._report,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            request_timeout_s=LIST_TIMEOUT_S,
        )

    @property
    def problem(self) -> str:
        """Why the cache is not current; empty if it is."""
        status = self.status
        if status is None or status.state is SourceState.STREAMING:
            return ""
        return f"{status.reason}: {status.message}"

    @property
    def state(self) -> str:
        """The state, as the metric `milo_controllers_informers` names it."""
        if self.status is not None and self.status.state is SourceState.STALE:
            return "not_served" if self.status.reason in _NOT_SERVED else "stale"
        return "synced" if self.cache.synced else "starting"

    async def run(self) -> None:
        """Follow the collection until canceled."""
        await self._list_watch.run()

    async def _apply(self, events: Iterable[SourceEvent[CachedObject]]) -> None:
        for number, event in enumerate(events, 1):
            if isinstance(event, EventIgnored):
                log.warning("%s: an event of %s was ignored: %s", self._cluster, self.key, event.problem)
            elif isinstance(event, Listed | ObjectChanged) and event.observation.problem:
                found = event.observation
                log.warning("%s: %s %s is invalid: %s", self._cluster, self.key, found.name, found.problem)
            was_synced = self.cache.synced
            for change in self.cache.apply(event):
                self._listener.changed(self, change)
            if self.cache.synced and not was_synced:
                self._listener.synced(self)
            if number % _APPLIED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _index_failed(self, index: str, found: CachedObject, error: Exception) -> None:
        log.warning("%s: index %s of %s lacks %s: %r", self._cluster, index, self.key, found.name, error)

    def _report(self, status: SourceStatus) -> None:
        before, self.status = self.status, status
        if status.state is SourceState.STALE and (before is None or before.state is not SourceState.STALE):
            log.warning("%s: %s is not up to date: %s", self._cluster, self.key, self.problem)
            self._listener.failed(self)
        elif before is not None and before.state is SourceState.STALE and status.state is SourceState.STREAMING:
            log.info("%s: %s is up to date again", self._cluster, self.key)


class _CollectionApi:
    """The API of an informer's cluster, requested in the representation that the informer needs."""

    __slots__ = ("_api", "_metadata_only")

    def __init__(self, api: ClusterApi, *, metadata_only: bool) -> None:
        self._api = api
        self._metadata_only = metadata_only

    async def get(self, path: str, query: Any = (), *, timeout_s: float) -> Answer:
        accept = METADATA_LIST_ONLY if self._metadata_only else JSON
        return await self._api.get(path, query, timeout_s=timeout_s, accept=accept)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None
    ) -> AbstractAsyncContextManager[Stream]:
        accept = METADATA_ONLY if self._metadata_only else JSON
        return self._api.stream(path, query, connect_timeout_s=connect_timeout_s, silence_s=silence_s, accept=accept)
