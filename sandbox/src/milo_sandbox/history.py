"""What happened to the objects of one resource, as far back as it is remembered."""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from milo_sandbox.records import Event

_version = attrgetter("version")


class CompactedError(Exception):
    """The changes since that version are no longer all known."""

    def __init__(self, wanted: int, compacted: int) -> None:
        super().__init__(f"too old resource version: {wanted} ({compacted})")
        self.wanted = wanted
        self.compacted = compacted


class History:
    """Events in the order of their versions; the oldest are forgotten beyond a limit, or when told to."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: list[Event] = []
        self._compacted = 0
        self._lost = 0

    def append(self, event: Event) -> None:
        self._events.append(event)
        # Twice the limit, so that the cost of moving what stays is paid once in `limit` events.
        if len(self._events) > 2 * self._limit:
            self.compact(self._events[-self._limit - 1].version)

    def since(self, version: int) -> Sequence[Event]:
        """Everything after that version, which may lie in the future: where a watch may start from."""
        if version < self._compacted:
            raise CompactedError(version, self._compacted)
        return self.following(version)

    def following(self, version: int) -> Sequence[Event]:
        """Everything after that version for one who has kept up so far: compaction harms only if an event is lost."""
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
