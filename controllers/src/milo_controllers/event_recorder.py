"""Writes the events of reconcilers to the API server of their cluster, in the background and in their order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime, timedelta

from milo_controllers.errors import text_of
from milo_controllers.event_log import EventContent, EventLog, EventWrite, in_core
from milo_controllers.kinds import CORE_EVENTS, EVENTS, Document, Kind
from milo_discovery.api_errors import AlreadyExists, ApiError, NotFound, NotLeading, NotServed, Unreachable
from milo_discovery.cluster_api import MERGE_PATCH, ClusterApi
from milo_discovery.errors import DiscoveryError
from milo_kube.backoff import BackoffPolicy, StreamBackoff
from milo_kube.change_signal import ChangeSignal
from milo_kube.failure_log import FailureLog, raised_at

log = logging.getLogger("milo_controllers")

_MAX_PENDING = 256
"""Maximum number of events that wait to be written. Then `record` waits."""
_SPACE_S = 5.0
"""How long `record` waits for space, for example while the API server does not respond."""
_FLUSH_S = 2.0
"""How long pending events are still written at the end."""
_FLUSH_LEADING_S = 0.5
"""How long pending events are still written before another replica may lead."""
_RETRIED_S = 120.0
"""How long after it was recorded an event is still retried, as by client-go."""
_BACKOFF = BackoffPolicy(initial=timedelta(seconds=1), maximum=timedelta(seconds=10))


class EventRecorder:
    """Records events about the objects of one cluster. A failed write is logged, and raised nowhere."""

    __slots__ = (
        *("_api", "_changed", "_failures", "_is_flushed", "_kind", "_patches", "_pending", "_recent", "_retried"),
        *("_timer", "_writing"),
    )

    def __init__(self, api: ClusterApi, recent: EventLog, failures: FailureLog) -> None:
        self._api = api
        self._recent = recent
        self._failures = failures
        self._kind = EVENTS
        """The kind under which the API server serves events: EVENTS, or CORE_EVENTS."""
        self._patches = True
        """Whether the API server patches events. Milo's proxy of events answers each patch with 404."""
        self._pending: deque[EventWrite] = deque()
        self._retried: Exception | None = None
        """Why the last write failed, if it is retried."""
        self._is_flushed = False
        """Whether all events were flushed before this replica stopped leading."""
        self._changed = ChangeSignal()
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def record(self, regarding: Document, content: EventContent, now: datetime) -> None:
        """Record an event, which is written in the background."""
        self._is_flushed = False
        if not await self._has_space():
            self.lost(content.reason, regarding["metadata"]["name"], self._retried or _too_slow())
            return
        write = self._recent.record(self._api.name, regarding, content, now, asyncio.get_running_loop().time())
        if isinstance(write, EventWrite):
            self._pending.append(write)
            self._continue()
        else:
            self._continue_by(write)

    def lost(self, reason: str, name: str, error: Exception) -> None:
        """Log that an event of an object is not recorded, unless one was lost lately for the same cause."""
        cause = (error.status, error.reason) if isinstance(error, ApiError) else (type(error), raised_at(error))
        what = f"{self._api.name}: event {reason} of {name} was not recorded: {text_of(error)}"
        now = asyncio.get_running_loop().time()
        if self._failures.is_new(self._api.name, error, now, key=(EventRecorder, self._api.name, *cause), what=what):
            log.warning("%s", what)

    async def flush(self) -> None:
        """Write what is pending, for a short time, unless the API server refuses events."""
        self._is_flushed = True
        await self._flush(0 if self._retried is not None else _FLUSH_LEADING_S)

    async def _flush(self, limit_s: float) -> None:
        self._pending.extend(self._recent.due(self._api.name))
        self._continue()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=limit_s)

    async def aclose(self, *, is_engaged: bool) -> None:
        """Write what is pending, for a short time, if the cluster is still engaged, and end."""
        try:
            if is_engaged and not self._is_flushed:
                await self._flush(_FLUSH_S)
        finally:
            if is_engaged and self._pending:
                cause = text_of(self._retried or _too_slow())
                log.warning("%s: %d events were not recorded: %s", self._api.name, len(self._pending), cause)
            self._recent.drop(self._api.name)
            if self._timer is not None:
                self._timer.cancel()
            if self._writing is not None:
                self._writing.cancel()
                await asyncio.wait([self._writing])

    async def _has_space(self) -> bool:
        """Return whether another event may be pending, after waiting for space if there is none."""
        if len(self._pending) < _MAX_PENDING:
            return True
        if self._retried is not None:
            return False  # a reconcile does not wait for an API server that refuses events
        try:
            async with asyncio.timeout(_SPACE_S):
                await self._changed.wait_for(lambda: len(self._pending) < _MAX_PENDING)
        except TimeoutError:
            return False
        return True

    def _continue(self) -> None:
        """Write what is pending; otherwise set a timer for the next series that has to be written."""
        loop = asyncio.get_running_loop()
        if self._writing is not None and not self._writing.done():
            return
        self._pending.extend(self._recent.due(self._api.name, loop.time()))
        if self._pending:
            self._writing = loop.create_task(self._write_pending(), name=f"events of {self._api.name}")
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due_at := self._recent.due_at(self._api.name)) is not None:
            self._continue_by(due_at)

    def _continue_by(self, due_at: float) -> None:
        """Write the series that are due then, unless a timer is set before."""
        if self._timer is not None and self._timer.when() > due_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due_at, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        self._continue()

    async def _write_pending(self) -> None:
        loop, backoff = asyncio.get_running_loop(), StreamBackoff(_BACKOFF)
        while self._pending:
            try:
                await self._send(self._pending[0])
            except Exception as error:  # noqa: BLE001  (of one event, whose content is that of a tenant's object)
                if not _is_retried(error):
                    self._drop(error)
                    continue
                self._retried = error
                while self._pending and loop.time() - self._pending[0].recorded_at >= _RETRIED_S:
                    self._drop(error)
                await asyncio.sleep(backoff.failed(ran=timedelta(), retry_after=_retry_after(error)).total_seconds())
            else:
                self._retried, backoff = None, StreamBackoff(_BACKOFF)
                self._pending.popleft()
                self._changed.notify()
        self._retried = None
        loop.call_soon(self._continue)

    def _drop(self, error: Exception) -> None:
        """Give up the first pending event."""
        write = self._pending.popleft()
        self._recent.forget(write.key)
        self.lost(write.key.content.reason, write.event["regarding"]["name"], error)
        self._changed.notify()

    async def _send(self, write: EventWrite) -> None:
        if write.is_series and await self._is_written_again(write.event):
            return
        try:
            await self._send_as(self._kind, "POST", write.event)
        except AlreadyExists:
            pass  # created by an attempt whose response was lost
        except NotServed:
            if self._kind is CORE_EVENTS:
                raise
            # events.k8s.io is not served, as in Milo, or a proxy responded: only a successful write to the core group
            # shows which.
            await self._send_as(CORE_EVENTS, "POST", write.event)
            self._kind = CORE_EVENTS

    async def _is_written_again(self, event: Document) -> bool:
        """Write the series of an event, and return whether the event still exists."""
        if self._patches:
            try:
                await self._send_as(self._kind, "PATCH", event)
            except (NotFound, NotServed):
                pass  # the event was removed, or patches of events are answered so
            else:
                return True
        try:
            await self._send_as(self._kind, "PUT", event)
        except (NotFound, NotServed):
            return False
        self._patches = False
        return True

    async def _send_as(self, kind: Kind[Document], method: str, event: Document) -> None:
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        if method == "PATCH":
            body = {"series": event["series"]}
            await self._api.send(method, kind.path(name, namespace), (), body, content_type=MERGE_PATCH)
            return
        path = kind.collection(namespace) if method == "POST" else kind.path(name, namespace)
        await self._api.send(method, path, (), in_core(event) if kind is CORE_EVENTS else event)


def _is_retried(error: Exception) -> bool:
    """Return whether the next attempt may succeed."""
    if isinstance(error, ApiError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, Unreachable | DiscoveryError | NotLeading)


def _retry_after(error: Exception) -> timedelta | None:
    stated_s = error.retry_after_s if isinstance(error, ApiError) else None
    return None if stated_s is None else timedelta(seconds=stated_s)


def _too_slow() -> TimeoutError:
    return TimeoutError("the API server is too slow")
