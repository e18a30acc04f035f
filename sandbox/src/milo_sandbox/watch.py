"""A watch as a state machine without I/O: given the time, it returns the bytes to send and its next deadline."""

from collections.abc import Iterator
from itertools import islice
from math import inf
from typing import Protocol

import msgspec

from milo_sandbox import refusals
from milo_sandbox.history import CompactedError
from milo_sandbox.options import WatchParameters
from milo_sandbox.records import ADDED, BOOKMARK, ERROR, RecordedChange, SandboxRecord, encode, frame
from milo_sandbox.resources import Document, ResourceDefinition
from milo_sandbox.selectors import LabelSelector
from milo_sandbox.store import Store

_CHUNK = 128  # Objects per step: enough for several TLS records, but too few to delay other streams.
_LAST_BOOKMARK_S = 2.0  # Time between the last bookmark and the end of a watch.


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The timing of a server's watches, in seconds."""

    bookmark_interval: float = 60.0
    lifetime: float = 2700.0  # Of a watch without a timeout. Real servers choose 30 to 60 minutes at random.
    patience: float = 3.0  # How long a list or a watch waits for a future version.


class Rendering(Protocol):
    """The format of a watch's lines."""

    def event(self, event: RecordedChange, selector: LabelSelector) -> bytes | None: ...
    def initial(self, record: SandboxRecord) -> bytes: ...
    def bookmark(self, document: Document) -> bytes: ...


class Plain:
    """The format of objects as they are stored. All watches share the serialized line of an event."""

    def event(self, event: RecordedChange, selector: LabelSelector) -> bytes | None:
        return event.frame(selector)

    def initial(self, record: SandboxRecord) -> bytes:
        return frame(ADDED, record.body)

    def bookmark(self, document: Document) -> bytes:
        return frame(BOOKMARK, encode(document))


class WatchTimes:
    """The deadlines of one watch: when it gives up waiting for its version, when it ends, and its next bookmark."""

    def __init__(self, options: WatchParameters, pace: Pace, now: float) -> None:
        self.gives_up_at = now + pace.patience
        self.ends_at = now + (pace.lifetime if options.timeout is None else max(options.timeout, 0))
        self._bookmark_interval = pace.bookmark_interval if options.bookmarks else inf
        self.bookmark_at = inf
        self.schedule_bookmark(now)

    def schedule_bookmark(self, now: float) -> None:
        last = self.ends_at - _LAST_BOOKMARK_S
        regular = now + self._bookmark_interval
        self.bookmark_at = min(regular, last) if now < last and regular < inf else regular


class ObjectWatch:
    """A watch of one resource: a cursor in its history, without a queue. Errors are lines of type ERROR."""

    def __init__(
        self,
        store: Store,
        resource: ResourceDefinition,
        options: WatchParameters,
        *,
        rendering: Rendering,
        pace: Pace,
        now: float,
    ) -> None:
        self._store = store
        self._collection = store[resource]
        self.resource = resource
        self._options = options
        self._rendering = rendering
        self._times = WatchTimes(options, pace, now)
        self._initial: Iterator[SandboxRecord] | None = None
        self._cursor = options.version
        self._opened = False
        self._ending = False
        self._last_bookmark = True
        self._silent = False
        self.done = False

    @property
    def wakes_at(self) -> float:
        """When the watch has to be woken, unless an object changes before that."""
        if self._silent:
            return inf
        if not self._opened:
            return min(self._times.gives_up_at, self._times.ends_at)
        return min(self._times.ends_at, self._times.bookmark_at)

    def set_silent(self, *, silent: bool) -> None:
        """Pause the watch, including its timeout, or resume it."""
        self._silent = silent

    def end(self, *, last_bookmark: bool = True) -> None:
        """End at the next step as a server that shuts down does: after pending events and, by default, a bookmark."""
        self._ending = True
        self._last_bookmark = last_bookmark

    def step(self, now: float) -> bytes:
        """Return the next bytes; none if the watch is `done`, or idle until `wakes_at` or the next write."""
        if self._silent or self.done:
            return b""
        if not self._opened and (failure := self._open(now)) is not None:
            return failure
        if self._initial is not None and (data := self._more_initial(self._initial)):
            return data
        self._follow_definition()
        try:
            events = self._collection.history.following(self._cursor)
        except CompactedError as error:
            return self._fail(refusals.gone(str(error)))
        if events:
            self._cursor = events[-1].version
            lines = (self._rendering.event(event, self._options.selector) for event in events)
            if data := b"".join(line for line in lines if line is not None):
                return data
        return self._on_time(now)

    def _open(self, now: float) -> bytes | None:
        """Find the start position. Return the bytes to send while it cannot be found, and None once it is."""
        version, current = self._options.version, self._store.version
        if not self._options.initial_events:
            try:
                # A future version is not an error: the watch sends nothing until the store reaches it.
                self._collection.history.since(version or current)
            except CompactedError as error:
                return self._fail(refusals.gone(str(error)))
            self._cursor = version or current
        elif version > current:
            if now < self.wakes_at:
                return b""
            return self._fail(refusals.version_too_large(version, current))
        else:
            self._cursor = current
            self._initial = iter(
                self._collection.page(version=current, current=current, selector=self._options.selector).records
            )
        self._opened = True
        return None

    def _follow_definition(self) -> None:
        """End the watch if the resource's definition was changed or deleted."""
        if self.resource in self._store:
            self._collection = self._store[self.resource]
        if self.resource not in self._store or self._collection.resource is not self.resource:
            self.end(last_bookmark=False)

    def _more_initial(self, records: Iterator[SandboxRecord]) -> bytes:
        chunk = b"".join(self._rendering.initial(record) for record in islice(records, _CHUNK))
        if chunk:
            return chunk
        self._initial = None
        # Without bookmarks a real server does not mark the end of the list either.
        if self._options.streaming_list and self._options.bookmarks:
            return self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}})
        return b""

    def _on_time(self, now: float) -> bytes:
        up_to_date = self._cursor <= self._store.version
        if up_to_date:
            self._cursor = self._store.version
        if self._ending or now >= self._times.ends_at:
            self.done = True
            speaks = self._ending and self._last_bookmark and self._options.bookmarks and up_to_date
            return self._bookmark() if speaks else b""
        if now >= self._times.bookmark_at:
            self._times.schedule_bookmark(now)
            return self._bookmark() if up_to_date else b""
        return b""

    def _bookmark(self, extra: Document | None = None) -> bytes:
        return self._rendering.bookmark(
            {
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version,
                "metadata": {"resourceVersion": str(self._cursor)} | (extra or {}),
            }
        )

    def _fail(self, refusal: refusals.RefusalError) -> bytes:
        self.done = True
        return frame(ERROR, encode(refusal.document()))
