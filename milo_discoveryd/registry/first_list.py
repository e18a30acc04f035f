"""Judges whether the first list of a run may lack clusters that subscribers know from an earlier run. Pure.

What a subscriber claims to know delays that subscriber only. In a shard group the member also acknowledges no view
until the first list is verified, which takes `removals.verify_after`: the subscriber may keep clusters that the list
lacks, and no other member may engage these meanwhile.
"""

import msgspec

from milo_discoveryd.objects.removal_guard import RemovalLimits


class FirstList(msgspec.Struct, frozen=True):
    clusters: int
    """The number of engaged clusters that lists of this run described."""
    limits: RemovalLimits | None
    """The limits of what the list may lack; None if a second list verified it, or no verification is needed."""
    version: int = 0
    """The resource version up to which the source is followed; 0 if versions cannot be compared."""

    @property
    def is_verified(self) -> bool:
        return self.limits is None

    def is_older(self, version: int) -> bool:
        """Return whether the source is behind this version: the list may be that of a replica that lags behind."""
        return self.limits is not None and 0 < self.version < version

    def may_lack(self, known_count: int, present_count: int) -> bool:
        """Return whether the list may be incomplete, for a subscriber that knows more clusters than are `present`.

        A list that lacks everything may be incomplete even if that is one cluster: waiting only costs time.
        """
        if self.limits is None or present_count >= known_count:
            return False
        return not present_count or self.limits.is_mass(known_count - present_count, known_count)


class WaitingStreams:
    """The streams that wait until the first list of a source is verified."""

    def __init__(self) -> None:
        self._sources: dict[object, frozenset[str]] = {}
        self._former: set[str] = set()

    def __len__(self) -> int:
        return len(self._sources)

    def await_sources(self, stream: object, sources: frozenset[str]) -> None:
        """Record the sources for which a stream waits; none if it ended."""
        if sources:
            self._sources[stream] = sources
            self._former |= sources
        else:
            self._sources.pop(stream, None)

    def is_any_for(self, source: str) -> bool:
        """Return whether any stream waits for a source."""
        return any(source in sources for sources in self._sources.values())

    def had_any_for(self, source: str) -> bool:
        """Return whether any stream has waited for a source: its subscriber keeps its clusters, and may reconnect."""
        return source in self._former
