"""All clusters that the daemon knows.

Its sources share a change log, the pending releases of subscribers, and the claims of objects.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from milo_discoveryd.connectivity.reachability import ConnectivityChange
from milo_discoveryd.engagement.claims import FleetClaims
from milo_discoveryd.engagement.cluster_records import ClusterRecord
from milo_discoveryd.engagement.pending_releases import PendingReleases, SubscriberKey, Subscription
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.change_notifier import ChangeNotifier
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster, source_of
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.objects.store import Positions
from milo_discoveryd.registry.first_list import WaitingStreams
from milo_kube.reflect.view_status import ViewState, ViewStatus

if TYPE_CHECKING:
    from milo_discoveryd.registry.source import ClusterSource

COUNT_AGE_S = 1.0


class Fleet:
    def __init__(self, log: ChangeLog) -> None:
        self.log = log
        self.notifier = ChangeNotifier()
        self.releases = PendingReleases()
        self.claims = FleetClaims()
        self.waiting = WaitingStreams()
        self.positions = Positions()
        self.versions: Mapping[str, int] = {}
        """The resource version up to which each source is followed, if comparable. Each change replaces the mapping."""
        self._sources: dict[str, ClusterSource] = {}
        self._listeners: list[tuple[EventType, Callable[[Cluster], None]]] = []
        self._drain_timer: asyncio.TimerHandle | None = None
        self._counts: dict[tuple[str, int], tuple[float, Counter[str]]] = {}
        """Results of `count_by_source`, which many subscribers of one view request at once, after a restart."""

    def add(self, source: "ClusterSource") -> None:
        self._sources[source.name] = source

    # --- readers ---

    @property
    def sources(self) -> "tuple[ClusterSource, ...]":
        return (*self._sources.values(),)

    @property
    def status(self) -> ViewStatus:
        return worst([source.status for source in self._sources.values()])

    @property
    def synced(self) -> bool:
        """True after one complete list of each source, in this run or in the run that wrote its state file."""
        return all(source.synced for source in self._sources.values())

    def select(self, names: frozenset[str]) -> "tuple[ClusterSource, ...]":
        """Return the sources of these names, or all if `names` is empty."""
        return tuple(source for name, source in self._sources.items() if not names or name in names)

    def source_of(self, cluster: str) -> "ClusterSource | None":
        """Return the source of a cluster, which the cluster's key names."""
        return self._sources.get(source_of(cluster))

    def __getitem__(self, cluster: str) -> ClusterRecord | None:
        source = self.source_of(cluster)
        return None if source is None else source.registry[cluster]

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        return chain.from_iterable(source.registry.items() for source in self._sources.values())

    def clusters(self) -> Iterator[Cluster]:
        return chain.from_iterable(source.registry.clusters() for source in self._sources.values())

    def count_by_source(self, view: ClusterView, now: float) -> Counter[str]:
        """Return how many engaged clusters of each source match a view. The count may be a second old."""
        if view.is_everything:
            return Counter({name: source.registry.engaged for name, source in self._sources.items()})
        key = (view.fingerprint, sum(source.progress.lists for source in self._sources.values()))
        self._counts = {each: found for each, found in self._counts.items() if now < found[0] + COUNT_AGE_S}
        if key not in self._counts:
            self._counts[key] = now, Counter(map(_source_of, filter(view.matches, self.clusters())))
        return self._counts[key][1]

    # --- changes ---

    def on(self, kind: EventType, call: Callable[[Cluster], None]) -> None:
        """Register `call` for each change of that type. It runs before any subscriber can see the change."""
        self._listeners.append((kind, call))

    def publish(self, source: "ClusterSource", events: Iterable[Event], read_at: float | None) -> None:
        """Notify of the changes that a commit of this source made; subscribers later, if `read_at` is None.

        Some may be of clusters of other sources, because claims are judged over all of them.
        """
        is_live = has_live = source.synced
        is_empty, has_drain = True, self._drain_timer is not None
        for event in events:
            is_empty = False
            has_drain = has_drain or event.cluster.draining is not None
            if event.cluster.target.source != source.name:
                source = self._sources[event.cluster.target.source]
                is_live = source.synced
                has_live = has_live or is_live
            source.observer.changed(event, is_live=is_live)
            for kind, call in self._listeners:
                if event.type is kind:
                    call(event.cluster)
        if has_drain:
            self._set_drain_timer()
        if not is_empty and has_live and read_at is not None:
            self.notifier.published(self.log.head, read_at)

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        self._sources[source_of(change.name)].connectivity_changed(change)

    def needs_probe(self, cluster: str, incarnation: int) -> bool:
        """Return whether a probe of that cluster is still needed."""
        return self._sources[source_of(cluster)].registry.needs_probe(cluster, incarnation)

    # --- drains ---

    def subscribe(self, subscription: Subscription) -> None:
        """Add the subscriber of a new stream to those that drains wait for."""
        self.releases.open(subscription, _steady())
        if self._drain_timer is not None:
            self._set_drain_timer()

    def unsubscribe(self, subscription: Subscription) -> None:
        """Record the end of a stream. Drains still wait for its subscriber, which may reconnect."""
        self.releases.close(subscription, _steady())

    def change_view(self, subscription: Subscription, view: ClusterView) -> None:
        self._end_drains(self.releases.change_view(subscription, view))

    def end_subscription(self, key: SubscriberKey) -> bool:
        """Stop waiting for a subscriber's releases. Return False if the subscriber is unknown."""
        is_known = self.releases.knows(key)
        self._end_drains(self.releases.end_subscription(key))
        return is_known

    def release(self, key: SubscriberKey, cluster: str) -> None:
        """Record a subscriber's release of a draining cluster."""
        if self.releases.release(key, cluster):
            self._end_drains((cluster,))

    def _end_drains(self, clusters: Iterable[str]) -> None:
        now = at(_steady())
        for cluster in clusters:
            source, unreleased = self._sources[source_of(cluster)], self.releases.awaited(cluster)
            ended = source.registry.end_drain(cluster, now)
            source.observer.drained(ended[0].cluster, unreleased)
            self.publish(source, ended, now.steady)

    def _set_drain_timer(self) -> None:
        """Set the timer of the next drain. Unlike grace periods, drains end on time even while the source is lost."""
        due_at, timer = self.releases.due_at, self._drain_timer
        if timer is not None and timer.when() != due_at:
            timer.cancel()
            timer = None
        if due_at is not None and timer is None:
            timer = asyncio.get_running_loop().call_at(due_at, self._drains_expired)
        self._drain_timer = timer

    def _drains_expired(self) -> None:
        self._drain_timer = None
        self._end_drains(self.releases.due(_steady()))
        self._set_drain_timer()


def _source_of(cluster: Cluster) -> str:
    return cluster.target.source


def _steady() -> float:
    return asyncio.get_running_loop().time()


_SEVERITY = {ViewState.STREAMING: 0, ViewState.CATCHING_UP: 1, ViewState.STALE: 2}


def worst(statuses: Sequence[ViewStatus]) -> ViewStatus:
    """Return a status that summarizes several: the worst one, with the oldest contact."""
    found = max(statuses, key=lambda status: _SEVERITY[status.state])
    contacts = [status.last_contact for status in statuses if status.last_contact is not None]
    last_contact = min(contacts) if len(contacts) == len(statuses) else None
    return msgspec.structs.replace(found, last_contact=last_contact)


def at(steady: float) -> Moment:
    return Moment(time.time(), steady)
