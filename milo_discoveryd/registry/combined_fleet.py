"""Combination of the fleets of several sources. A cluster's key begins with the name of its source."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from milo_discoveryd.connectivity.schedule import ConnectivityChange
from milo_discoveryd.model.cluster import SOURCE_SEPARATOR, Cluster
from milo_discoveryd.registry.change_notifier import ChangeNotifier
from milo_discoveryd.registry.cluster_records import ClusterRecord, ObjectState
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.fleet import Fleet, PendingReports, SourceFleet, worst
from milo_discoveryd.registry.intake_sink import IntakeSink
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.pending_releases import PendingReleases, SubscriberKey, Subscription
from milo_kube.reflect.source_status import SourceStatus


class CombinedFleet(Fleet):
    """Fleets that share a change log and a notifier."""

    def __init__(self, log: ChangeLog, notifier: ChangeNotifier, fleets: Sequence[SourceFleet]) -> None:
        self.notifier = notifier
        self._log = log
        self._fleets = {fleet.name: fleet for fleet in fleets}
        self.registry = _Records(self._fleets)

    @property
    def log(self) -> ChangeLog:
        return self._log

    @property
    def sources(self) -> tuple[SourceFleet, ...]:
        return tuple(self._fleets.values())

    @property
    def feeds(self) -> Sequence[IntakeSink]:
        return [feed for fleet in self._fleets.values() for feed in fleet.feeds]

    @property
    def status(self) -> SourceStatus:
        return worst([fleet.status for fleet in self._fleets.values()])

    @property
    def synced(self) -> bool:
        return all(fleet.synced for fleet in self._fleets.values())

    @property
    def pending_reports(self) -> PendingReports:
        return _Reports(self)

    def select(self, sources: frozenset[str]) -> tuple[SourceFleet, ...]:
        return tuple(fleet for name, fleet in self._fleets.items() if not sources or name in sources)

    def source_of(self, cluster: str) -> SourceFleet | None:
        return self._fleets.get(_source(cluster))

    def on(self, kind: EventType, call: Callable[[Cluster], None]) -> None:
        for fleet in self._fleets.values():
            fleet.on(kind, call)

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        self._fleets[_source(change.name)].connectivity_changed(change)

    def releases_of(self, cluster: str) -> PendingReleases:
        fleet = self.source_of(cluster)
        return PendingReleases() if fleet is None else fleet.releases_of(cluster)

    def subscribe(self, subscription: Subscription) -> None:
        for fleet in self._fleets.values():
            fleet.subscribe(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        for fleet in self._fleets.values():
            fleet.unsubscribe(subscription)

    def change_view(self, subscription: Subscription, view: ClusterView) -> None:
        for fleet in self._fleets.values():
            fleet.change_view(subscription, view)

    def end_subscription(self, key: SubscriberKey) -> bool:
        known = [fleet.end_subscription(key) for fleet in self._fleets.values()]
        return any(known)

    def release(self, key: SubscriberKey, name: str) -> None:
        self._fleets[_source(name)].release(key, name)


class _Records:
    def __init__(self, fleets: dict[str, SourceFleet]) -> None:
        self._fleets = fleets
        self._all = [fleet.registry for fleet in fleets.values()]

    @property
    def engaged(self) -> int:
        return sum(each.engaged for each in self._all)

    @property
    def draining_count(self) -> int:
        return sum(each.draining_count for each in self._all)

    @property
    def unreachable(self) -> int:
        return sum(each.unreachable for each in self._all)

    def __getitem__(self, name: str) -> ClusterRecord | None:
        fleet = self._fleets.get(_source(name))
        return None if fleet is None else fleet.registry[name]

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        return chain.from_iterable(each.items() for each in self._all)

    def count(self, state: ObjectState) -> int:
        return sum(each.count(state) for each in self._all)

    def clusters(self) -> Iterator[Cluster]:
        return chain.from_iterable(each.clusters() for each in self._all)

    def needs_probe(self, name: str, incarnation: int) -> bool:
        return self._fleets[_source(name)].registry.needs_probe(name, incarnation)

    def grace_until(self, name: str) -> float | None:
        return self._fleets[_source(name)].registry.grace_until(name)


class _Reports:
    def __init__(self, fleet: CombinedFleet) -> None:
        self._fleet = fleet

    @property
    def held(self) -> int:
        return sum(each.pending_reports.held for each in self._fleet.sources)

    def __len__(self) -> int:
        return sum(len(each.pending_reports) for each in self._fleet.sources)

    def explain(self, name: str) -> tuple[float, str] | None:
        fleet = self._fleet.source_of(name)
        return None if fleet is None else fleet.pending_reports.explain(name)


def _source(cluster: str) -> str:
    return cluster.partition(SOURCE_SEPARATOR)[0]
