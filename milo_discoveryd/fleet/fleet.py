"""All known clusters, by source."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice

from milo_discoveryd.connectivity.reachability import ConnectivityChange
from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.fleet.changes import FleetChanges
from milo_discoveryd.fleet.source import ClusterSource, worst
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster, source_of
from milo_kube.reflect.view_status import ViewStatus

COUNT_AGE_S = 1.0


class WaitingStreams:
    """The streams whose subscribers keep clusters of an earlier run: until the first list of a source is verified, or
    until the source is synced."""

    def __init__(self) -> None:
        self._sources: dict[object, frozenset[str]] = {}
        self._kept: dict[object, frozenset[str]] = {}
        self._former: set[str] = set()
        self._former_kept: set[str] = set()

    def __len__(self) -> int:
        return len(self._sources)

    def await_sources(self, stream: object, sources: frozenset[str], kept: frozenset[str] = frozenset()) -> None:
        """Record the sources for whose second list a stream waits, and those that are not shown to its subscriber yet,
        which `kept` their clusters; empty if there are none, or it has ended."""
        for waiting, named in ((self._sources, sources), (self._kept, kept)):
            if named:
                waiting[stream] = named
            else:
                waiting.pop(stream, None)
        self._former |= sources
        self._former_kept |= kept

    def is_any_for(self, source: str) -> bool:
        """Return whether any stream waits for the second list of a source."""
        return any(source in sources for sources in self._sources.values())

    def may_keep(self, source: str, *, is_listed: bool, is_shown: bool, is_verified: bool) -> bool:
        """Return whether a subscriber waits for a source of which it may keep clusters that this run does not know.

        `is_listed`: whether the source has a list of this run; `is_shown`: whether this is shown to subscribers;
        `is_verified`: whether no second one is needed. The subscriber of a stream that has ended keeps the clusters,
        and may reconnect. What a stream has still to send after that is not waited for: its client may not read it.
        """
        if source in self._former and not is_verified:
            return True
        is_awaited = not is_shown and any(source in kept for kept in self._kept.values())
        return is_awaited or (source in self._former_kept and not is_listed)


class Fleet:
    def __init__(self, log: ChangeLog) -> None:
        self.log = log
        self._sources: dict[str, ClusterSource] = {}
        self.changes = FleetChanges(log, self._sources)
        self.notifier = self.changes.notifier
        self.releases = self.changes.releases
        self.waiting = WaitingStreams()
        self._counts: dict[tuple[str, int], ViewCount] = {}
        """Those of `count_by_source`, which many subscribers with the same view request at once after a restart."""

    def add(self, source: ClusterSource) -> ClusterSource:
        self._sources[source.name] = source
        return source

    # --- readers ---

    @property
    def sources(self) -> tuple[ClusterSource, ...]:
        return (*self._sources.values(),)

    @property
    def status(self) -> ViewStatus:
        return worst([source.status for source in self._sources.values()])

    @property
    def synced(self) -> bool:
        """Whether every source is synced: see `SourceProgress.synced`."""
        return all(source.synced for source in self._sources.values())

    @property
    def awaits_lists(self) -> bool:
        """Whether a subscriber waits for a source of which it may keep clusters: then no cluster moves."""
        return any(
            self.waiting.may_keep(
                source.name,
                is_listed=source.progress.is_complete,
                is_shown=source.progress.is_complete and source.synced,
                is_verified=source.first_list.is_verified,
            )
            for source in self._sources.values()
        )

    def select(self, names: frozenset[str]) -> tuple[ClusterSource, ...]:
        """Return the sources of these names, or all if `names` is empty."""
        return tuple(source for name, source in self._sources.items() if not names or name in names)

    def source_of(self, cluster: str) -> ClusterSource | None:
        """Return the source of the cluster with this key; None if there is no such source."""
        return self._sources.get(source_of(cluster))

    def __getitem__(self, cluster: str) -> ClusterRecord | None:
        source = self.source_of(cluster)
        return None if source is None else source.engagements[cluster]

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        return chain.from_iterable(source.engagements.items() for source in self._sources.values())

    def clusters(self) -> Iterator[Cluster]:
        return chain.from_iterable(source.engagements.clusters() for source in self._sources.values())

    def count_by_source(self, view: ClusterView, now: float) -> Generator[None, None, Counter[str]]:
        """Return how many engaged clusters of each source match a view; yield between steps. The count may be a second
        older than `now`, but has all lists."""
        if view.is_everything:
            return Counter({name: source.engagements.engaged for name, source in self._sources.items()})
        self._counts = {kept: count for kept, count in self._counts.items() if now < count.since + COUNT_AGE_S}
        while True:
            lists = self._lists
            if (count := self._counts.get((view.fingerprint, lists))) is None:
                count = self._counts[view.fingerprint, lists] = ViewCount(view, self.clusters(), now)
            while count.advance():
                yield
            if lists == self._lists:
                return count.by_source

    @property
    def _lists(self) -> int:
        return sum(source.progress.lists for source in self._sources.values())

    # --- probes ---

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        self._sources[source_of(change.name)].clusters.connectivity_changed(change)

    def needs_probe(self, cluster: str, incarnation: int) -> bool:
        """Return whether a probe of that cluster is still needed."""
        return self._sources[source_of(cluster)].engagements.needs_probe(cluster, incarnation)


class ViewCount:
    """A count of the clusters that match a view. All that need it advance it."""

    def __init__(self, view: ClusterView, clusters: Iterable[Cluster], since: float) -> None:
        self.by_source: Counter[str] = Counter()
        self.since = since
        self._view = view
        self._clusters = iter([*clusters])

    def advance(self) -> bool:
        """Count in one step. Return False at the end."""
        step = [*islice(self._clusters, self._view.records_per_step)]
        self.by_source.update([cluster.target.source for cluster in filter(self._view.matches, step)])
        return bool(step)
