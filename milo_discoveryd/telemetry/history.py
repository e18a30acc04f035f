"""What happened in the last hour: the last changes, and samples of the daemon's own counters. Pure."""

from collections import deque
from collections.abc import Iterator

import msgspec

from milo_discoveryd.registry.events import Event
from milo_discoveryd.telemetry.status import History, RecentChange, when

RECENT_CHANGES_KEPT = 50
SAMPLE_INTERVAL_S = 15
SAMPLES = 3600 // SAMPLE_INTERVAL_S


class _Sample(msgspec.Struct, frozen=True):
    engaged: int
    changes: int
    lag: int


class RecentHistory:
    """Engagements and disengagements. Updates are left out: connectivity probes alone make too many."""

    def __init__(self) -> None:
        self._changes: deque[RecentChange] = deque(maxlen=RECENT_CHANGES_KEPT)
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES)
        self._unsampled = 0

    def note(self, done: Event, wall: float) -> None:
        self._unsampled += 1
        self._changes.appendleft(
            RecentChange(
                at=when(wall),
                type=done.type.value,
                cluster=done.cluster.target.name,
                reason="" if done.reason is None else done.reason.value,
                message=done.message,
            )
        )

    def sample(self, engaged: int, lag: int) -> None:
        """Record the state of this moment. To be called every `SAMPLE_INTERVAL_S`."""
        self._samples.append(_Sample(engaged, self._unsampled, lag))
        self._unsampled = 0

    def samples(self) -> History:
        return History(
            interval_s=SAMPLE_INTERVAL_S,
            engaged=tuple(each.engaged for each in self._samples),
            changes=tuple(each.changes for each in self._samples),
            lag=tuple(each.lag for each in self._samples),
        )

    def __iter__(self) -> Iterator[RecentChange]:
        return iter(self._changes)
