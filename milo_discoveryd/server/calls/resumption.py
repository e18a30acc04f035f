"""Decides which sources a subscriber that knows clusters of an earlier run must not be shown yet. Pure.

The state file, or the first list of this run, may lack clusters that the subscriber knows; they would appear as
deleted. What a subscriber claims to know delays that subscriber only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from milo_discoveryd.server.calls.revision import NOTHING, KnownClusters, Position

DOUBT_S = 1.0
"""How soon a subscriber that waits for a second list is compared with the fleet again, doubled each time."""


class ResumableSource(Protocol):
    """What is known of a source's lists."""

    @property
    def name(self) -> str: ...

    @property
    def synced(self) -> bool: ...

    @property
    def is_restored(self) -> bool: ...

    @property
    def restored_positions(self) -> Mapping[str, int]: ...

    @property
    def lists(self) -> int:
        """The number of complete lists so far."""

    def must_wait(self, known: int, count: Callable[[], int], now: float) -> bool:
        """Return whether a subscriber that knows so many clusters must wait for a second list."""


class Resumption:
    """The sources that are pending for one subscriber."""

    def __init__(
        self,
        position: Position | None,
        sources: Sequence[ResumableSource],
        epoch: str,
        count: Callable[[str, float], int],
        *,
        is_resumed: bool,
        accepts_pending: bool,
    ) -> None:
        """`position` is where the subscriber resumes, and None if that cannot be read or it does not resume.

        `count` returns how many clusters of a source the subscriber would be shown.
        """
        self.position = position
        self.pending = frozenset(each.name for each in sources)
        """The sources whose clusters are not shown to the subscriber yet."""
        self._sources = sources
        self._epoch = epoch
        self._count = count
        self._is_resumed = is_resumed
        self._accepts_pending = accepts_pending
        self._judged: frozenset[tuple[str, int]] = frozenset()
        """The sources that were compared with what the subscriber knows, and the number of their lists."""
        self._doubted: frozenset[str] = frozenset()
        self._doubt_at = 0.0
        self._doubt_s = DOUBT_S

    @property
    def must_wait(self) -> bool:
        """Whether to wait for the lists of all sources, or of one if the subscriber accepts pending sources."""
        return bool(self.pending) and (not self._accepts_pending or len(self.pending) == len(self._sources))

    @property
    def kept(self) -> KnownClusters:
        """What the subscriber keeps of the sources that are not shown to it yet."""
        return NOTHING if self.position is None else self.position.known.within(self.pending)

    @property
    def due_at(self) -> float:
        """When to call `update` again, if nothing else happens."""
        return self._doubt_at if self._doubted else math.inf

    def update(self, now: float) -> bool:
        """Compute the pending sources again. Return whether they changed."""
        hidden = [each for each in self._sources if each.name in self.pending]
        complete = [each for each in hidden if each.synced and not (each.is_restored and self._may_know_more(each))]
        before = self.pending
        self.pending = self.pending - {each.name for each in complete} | self._doubtful(complete, now)
        return self.pending != before

    def _may_know_more(self, restored: ResumableSource) -> bool:
        """Return whether the subscriber may know changes that the state file lacks: the daemon may have been killed."""
        if self.position is None:
            return self._is_resumed
        position = self.position
        return not (position.is_complete_in(self._epoch) or position.is_contained_in(restored.restored_positions))

    def _doubtful(self, complete: Sequence[ResumableSource], now: float) -> frozenset[str]:
        """Return the sources that wait for a second list: the first one lacks much of what the subscriber knows.

        In a shard group, these can also be clusters that are about to move. No other member engages them meanwhile.
        """
        position = self.position
        if not complete or position is None or position.is_complete_in(self._epoch) or not position.known.counts:
            return frozenset()
        judged = frozenset((each.name, each.lists) for each in complete)
        if judged != self._judged:
            self._judged, self._doubt_at, self._doubt_s = judged, now, DOUBT_S
        if now >= self._doubt_at:
            self._doubt_at, self._doubt_s = now + self._doubt_s, 2 * self._doubt_s
            self._doubted = frozenset(each.name for each in complete if self._doubts(each, position.known, now))
        return self._doubted

    def _doubts(self, source: ResumableSource, known: KnownClusters, now: float) -> bool:
        return source.must_wait(known.of(source.name), lambda: self._count(source.name, now), now)
