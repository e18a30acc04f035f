"""Decides which sources are not shown yet to a subscriber that has clusters from an earlier run.

Clusters that the subscriber has may be missing from the state file or from the first list of this run, and would appear
as deleted. The subscriber's claim to have clusters delays only that subscriber.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol

from milo_discoveryd.model.removal_limits import FirstList
from milo_discoveryd.server.calls.revision import NOTHING, KnownClusters, Position
from milo_discoveryd.sources.kind import ProjectUids

DOUBT_S = 1.0
"""The delay until the clusters of a subscriber that waits for a second list are compared with the fleet again. It
doubles each time."""


class ResumableSource(Protocol):
    """The properties of a source that decide when its clusters are shown to a subscriber that resumes."""

    @property
    def name(self) -> str: ...

    @property
    def project_uids(self) -> ProjectUids: ...

    @property
    def synced(self) -> bool: ...

    @property
    def is_restored(self) -> bool: ...

    @property
    def restored_positions(self) -> Mapping[str, int]: ...

    @property
    def lists(self) -> int:
        """The number of complete lists so far."""

    @property
    def first_list(self) -> FirstList: ...


class Resumption:
    """Keeps track of the pending sources of one subscriber: those whose clusters are not shown to it yet."""

    def __init__(
        self,
        position: Position | None,
        sources: Sequence[ResumableSource],
        epoch: str,
        count: Callable[[float], Generator[None, None, Mapping[str, int]]],
        *,
        is_resumed: bool,
        accepts_pending: bool,
        is_visible: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`position` is where the subscriber resumes; None if its revision cannot be parsed, or it does not resume.

        `count` returns how many clusters of each source the subscriber would be shown. `is_visible` returns whether the
        subscriber may see a source at present: it neither waits for a source that it may not see, nor receives the name
        of such a source.
        """
        self.position = position
        self.pending = frozenset(source.name for source in sources)
        """The sources whose clusters are not shown to the subscriber yet."""
        self._sources = sources
        self._epoch = epoch
        self._count = count
        self._is_resumed = is_resumed
        self._accepts_pending = accepts_pending
        self._is_visible = is_visible
        self._compared: frozenset[tuple[str, int]] = frozenset()
        """The sources whose lists were compared with the subscriber's clusters, with their numbers of lists at that
        time."""
        self.doubted: Mapping[str, str] = {}
        """The sources whose second list the subscriber waits for, and why."""
        self._lacked: set[str] = set()
        """The sources with a list from which many of the subscriber's clusters were missing. The subscriber then waits
        until none of its clusters is missing from the source, or until a second list."""
        self.doubted_since = 0.0
        self._doubt_at = 0.0
        self._doubt_s = DOUBT_S

    @property
    def visible_pending(self) -> frozenset[str]:
        """The pending sources that the subscriber may see."""
        return frozenset(filter(self._is_visible, self.pending))

    @property
    def must_wait(self) -> bool:
        """Whether the stream must wait: while any source is pending or, if the subscriber accepts pending sources,
        while all of them are."""
        pending = self.visible_pending
        if not pending or not self._accepts_pending:
            return bool(pending)
        return all(source.name in pending or not self._is_visible(source.name) for source in self._sources)

    @property
    def kept(self) -> KnownClusters:
        """The subscriber's clusters that belong to sources that are not shown to it yet."""
        return NOTHING if self.position is None else self.position.known.within(self.pending)

    @property
    def kept_sources(self) -> frozenset[str]:
        """The pending sources of which the subscriber may keep clusters."""
        if self.position is None:
            return self.pending if self._is_resumed else frozenset()
        return frozenset(filter(self.position.known.count_of, self.pending))

    @property
    def due_at(self) -> float:
        """When to call `compare_lists` again, if nothing else happens."""
        return self._doubt_at if self.doubted else math.inf

    def compare_lists(self, now: float) -> Generator[None, None, bool]:
        """Compute the pending sources again; yield between steps of a count. Return whether they changed."""
        hidden = [source for source in self._sources if source.name in self.pending]
        complete = [
            source for source in hidden if source.synced and not (source.is_restored and self._may_know_more(source))
        ]
        yield from self._compare(complete, now)
        before = self.visible_pending
        self.pending = self.pending - {source.name for source in complete} | self.doubted.keys()
        self.pending |= {source.name for source in complete if self._may_show_kept_projects(source)}
        return self.visible_pending != before

    def _may_show_kept_projects(self, source: ResumableSource) -> bool:
        """Return whether the subscriber keeps projects of a pending source that `source` may show under other keys.

        If two sources show the same project, the pending source may be the one that engages it. A subscriber that has
        clusters of both sources received different projects from them.
        """
        if self.position is None or self.position.known.count_of(source.name):
            return False
        one_of_two = {ProjectUids.READ, ProjectUids.STATED}
        return any(
            {source.project_uids, other.project_uids} == one_of_two and self.kept.count_of(other.name)
            for other in self._sources
        )

    def _may_know_more(self, restored: ResumableSource) -> bool:
        """Return whether the subscriber may have received changes that are not in the state file, for example after a
        kill."""
        if self.position is None:
            return self._is_resumed
        position = self.position
        return not (position.is_complete_in(self._epoch) or position.is_contained_in(restored.restored_positions))

    def _compare(self, complete: Sequence[ResumableSource], now: float) -> Generator[None, None, None]:
        """Find the sources whose second list the subscriber must wait for, because many of its clusters are missing
        from the first.

        In a shard group, clusters that are about to move may also be missing from the list. No other member engages
        them before the second list.
        """
        position = self.position
        if not complete or position is None or position.is_complete_in(self._epoch) or not position.known.counts:
            self.doubted = {}
            return
        compared = frozenset((source.name, source.lists) for source in complete)
        if compared != self._compared:
            self._compared, self._doubt_at, self._doubt_s = compared, now, DOUBT_S
        if now >= self._doubt_at:
            self._doubt_at, self._doubt_s = now + self._doubt_s, 2 * self._doubt_s
            doubts: dict[str, str] = {}
            for source in complete:
                doubts[source.name] = yield from self._doubt(source, position.known, now)
            if not self.doubted:
                self.doubted_since = now
            self.doubted = {name: problem for name, problem in doubts.items() if problem}

    def _doubt(self, source: ResumableSource, clusters: KnownClusters, now: float) -> Generator[None, None, str]:
        """Return why the subscriber waits for a second list of a source; empty if it does not."""
        first = source.first_list
        if first.is_verified:
            return ""
        known_count, version = clusters.count_of(source.name), clusters.version_of(source.name)
        if first.is_older(version):
            return (
                f"the API server is at resourceVersion {first.version}, but the subscriber has seen {version}: the "
                "subscriber keeps its clusters until the server has caught up, or until a second list is read"
            )
        present, has_lacked = first.clusters, source.name in self._lacked
        if not first.may_lack(known_count, present, has_lacked=has_lacked):
            counts = yield from self._count(now)
            first, present = source.first_list, min(present, counts[source.name])
            if not first.may_lack(known_count, present, has_lacked=has_lacked):
                return ""
        self._lacked.add(source.name)
        return (
            f"the first list since the daemon's start has {present} clusters for the subscriber, which knows "
            f"{known_count}: the subscriber keeps its clusters until a second list lacks them too"
        )
