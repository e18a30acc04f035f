"""The event history of one resource, up to a limit."""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from milo_sandbox.records import RecordedChange

_version = attrgetter("version")


class CompactedError(Exception):
    """Events since the requested version were compacted."""

    def __init__(self, wanted: int, compacted: int) -> None:
        super().__init__(f"too old resource version: {wanted} ({compacted})")
        self.wanted = wanted
        self.compacted = compacted


class ObjectHistory:
    """Events in the order of their versions; the oldest are dropped beyond a limit, or by `compact`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: list[RecordedChange] = []
        self._compacted = 0
        self._lost = 0

    def append(self, event: RecordedChange) -> None:
        self._events.append(event)
        # Compact only at twice the limit, so that the remaining events are moved once per `limit` events.
        if len(self._events) > 2 * self._limit:
            self.compact(self._events[-self._limit - 1].version)

    def since(self, version: int) -> Sequence[RecordedChange]:
        """Return the events after a version, for a new watch. The version may be in the future."""
        if version < self._compacted:
            raise CompactedError(version, self._compacted)
        return self.following(version)

    def following(self, version: int) -> Sequence[RecordedChange]:
        """Return the events after a version, for a running watch. Raises CompactedError if one of them was dropped."""
        if version < self._lost:
            raise CompactedError(version, self._compacted)
        if not self._events or self._events[-1].version <= version:
            return ()
        return self._events[bisect_right(self._events, version, key=_version) :]

    def compact(self, version: int) -> None:
        self._compacted = max(self._compacted, version)
        forgotten = bisect_right(self._events, version, key=_version)
        if forgotten:
            self._lost = self._events[forgotten - 1].version
            del self._events[:forgotten]
