"""The fleet as the daemon knows it: it receives source events and probe results, and serves them to readers.

It gives the pure parts of this package the wall-clock time and notifies subscribers of changes. The monotonic time
comes from its callers: it is the time of their event loop.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from milo_discoveryd.connectivity.schedule import ConnectivityChange
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.registry.change_notifier import LOW_PRIORITY_DELAY_S, ChangeNotifier
from milo_discoveryd.registry.cluster_records import ClusterRecords
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.intake_sink import IntakeSink, Observer, at
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.not_ready import HeldNotReady, NotReadyClusters
from milo_discoveryd.registry.pending_releases import PendingReleases, SubscriberKey, Subscription
from milo_discoveryd.registry.registry import Registry
from milo_kube.reflect.source_status import SourceState, SourceStatus

NOT_READY_HELD = "NotReadyHeld"
"""The status reason of a source in which a large part of the fleet is not ready."""

PORTION = 250
"""The number of clusters that are changed in one step of the event loop."""


class PendingReports(Protocol):
    """The reported deletions that await confirmation."""

    @property
    def held(self) -> int: ...

    def __len__(self) -> int: ...

    def explain(self, name: str) -> tuple[float, str] | None:
        """Return when the cluster was reported as deleted, and what keeps the deletion from being confirmed."""


_SEVERITY = {SourceState.STREAMING: 0, SourceState.CATCHING_UP: 1, SourceState.STALE: 2}


def worst(statuses: Sequence[SourceStatus]) -> SourceStatus:
    """Return a status that summarizes several: the worst one, with the oldest contact."""
    found = max(statuses, key=lambda status: _SEVERITY[status.state])
    contacts = [status.last_contact for status in statuses if status.last_contact is not None]
    last_contact = min(contacts) if len(contacts) == len(statuses) else None
    return msgspec.structs.replace(found, last_contact=last_contact)


class Fleet(ABC):
    """The clusters of one or several sources, for readers."""

    registry: ClusterRecords
    notifier: ChangeNotifier

    @property
    @abstractmethod
    def status(self) -> SourceStatus: ...

    @property
    @abstractmethod
    def log(self) -> ChangeLog: ...

    @property
    @abstractmethod
    def sources(self) -> "tuple[SourceFleet, ...]": ...

    @property
    @abstractmethod
    def synced(self) -> bool:
        """True after one complete list, in this run or in the run that wrote the state file."""

    @property
    @abstractmethod
    def pending_reports(self) -> PendingReports: ...

    @property
    @abstractmethod
    def feeds(self) -> Sequence[IntakeSink]:
        """Return the sink of each watched resource's driver."""

    @abstractmethod
    def select(self, sources: frozenset[str]) -> "tuple[SourceFleet, ...]":
        """Return the fleets of these sources, or all fleets if `sources` is empty."""

    @abstractmethod
    def source_of(self, cluster: str) -> "SourceFleet | None":
        """Return the fleet of a cluster's source, which the cluster's key names."""

    @abstractmethod
    def on(self, kind: EventType, call: Callable[[Cluster], None]) -> None:
        """Register `call` for each change of that type. It runs before any subscriber can see the change."""

    @abstractmethod
    def connectivity_changed(self, change: ConnectivityChange) -> None: ...

    @abstractmethod
    def releases_of(self, cluster: str) -> PendingReleases:
        """Return the pending releases that include those of a cluster."""

    @abstractmethod
    def subscribe(self, subscription: Subscription) -> None:
        """Add the subscriber of a new stream to those that drains wait for."""

    @abstractmethod
    def unsubscribe(self, subscription: Subscription) -> None:
        """Record the end of a stream. Drains still wait for its subscriber, which may reconnect."""

    @abstractmethod
    def change_view(self, subscription: Subscription, view: ClusterView) -> None: ...

    @abstractmethod
    def end_subscription(self, key: SubscriberKey) -> bool:
        """Stop waiting for a subscriber's releases. Return False if the subscriber is unknown."""

    @abstractmethod
    def release(self, key: SubscriberKey, name: str) -> None:
        """Record a subscriber's release of a draining cluster."""


class SourceFleet(Fleet):
    """The clusters of one source, and how current they are."""

    registry: Registry

    def __init__(
        self,
        log: ChangeLog,
        observer: Observer,
        *,
        not_ready: NotReadyClusters | None,
        drain_timeout_s: float,
        name: str = "",
        kind: str = "",
        context: str = "",
        notifier: ChangeNotifier | None = None,
    ) -> None:
        """`context` is the context of Milo, for readers.

        `name` and `notifier` are given if there are several sources. Fleets that share a log share a notifier."""
        self.name = name
        self.kind = kind
        self.context = context
        self.registry = Registry(log, not_ready, self._refused, drain_timeout_s=drain_timeout_s)
        self.notifier = ChangeNotifier() if notifier is None else notifier
        self._status = SourceStatus(SourceState.CATCHING_UP, time.monotonic(), "Starting", "nothing was read yet")
        self._observer = observer
        self._followed = self.status
        """The status of the source itself; `status` also reports clusters that are held although they are not ready."""
        self._shown_held: HeldNotReady | None = None
        self._lost_at: float | None = None
        """The time of the last contact with the source, while the connection is lost."""
        self._listeners: list[tuple[EventType, Callable[[Cluster], None]]] = []
        self._drain_timer: asyncio.TimerHandle | None = None
        self.restored_positions: Mapping[str, int] = {}
        """For each earlier run of the daemon, a revision of that run. The restored fleet contains everything that a
        subscriber at or below this revision knows."""
        self._is_assigned = True
        """Whether it is known which clusters this daemon must engage."""

    @property
    @abstractmethod
    def is_restored(self) -> bool:
        """True while part of the fleet is from the state file. It may lack clusters that were engaged since then."""

    @property
    def status(self) -> SourceStatus:
        return self._status

    @property
    def sources(self) -> "tuple[SourceFleet, ...]":
        return (self,)

    def select(self, sources: frozenset[str]) -> "tuple[SourceFleet, ...]":
        return (self,)

    def source_of(self, cluster: str) -> "SourceFleet | None":
        return self

    def on(self, kind: EventType, call: Callable[[Cluster], None]) -> None:
        self._listeners.append((kind, call))

    @property
    def log(self) -> ChangeLog:
        return self.registry.log

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        now = at(time.monotonic())
        name, incarnation, found = change.name, change.incarnation, change.connectivity
        events = list(self.registry.set_connectivity(name, incarnation, found, now))
        if change.disengages:
            message = f"unreachable for too long; {found.message}"
            events += self.registry.disengage_unreachable(name, incarnation, message, now)
        if all(event.type is EventType.UPDATED for event in events):
            self._tell(events)
            self.notifier.notify(LOW_PRIORITY_DELAY_S)
        else:
            self._publish(events, now.steady)

    @property
    def due_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens."""
        return self.registry.due_at if self._lost_at is None else None

    def tick(self, now: float) -> None:
        """Disengage the clusters whose grace period is over. No grace period ends while the source is lost."""
        if self._lost_at is not None:
            return
        self._publish(self.registry.end_overdue(at(now)), now)
        if self.registry.not_ready_held != self._shown_held:
            self._set_status(self._followed)

    def problem_of(self, cluster: str) -> str:
        """Return why objects that describe a cluster cannot be used; empty if each object is itself a cluster."""
        del cluster
        return ""

    def await_assignment(self, message: str) -> None:
        """Engage nothing, and stay unsynced, until `assign` says which clusters this daemon owns."""
        self._is_assigned = False
        self.registry.assigned_elsewhere = lambda _: message

    def assign(self, elsewhere: Callable[[str], str | None], timeout_s: float, *, is_decided: bool) -> Iterator[None]:
        """Engage the clusters that this daemon owns, and drain the others, in portions; see `Registry.reassign`.

        `elsewhere` returns why this daemon does not own a cluster. The fleet is not synced before the first decision.
        """
        self.registry.assigned_elsewhere = elsewhere
        names = iter([name for name, _ in self.registry.items()])
        while portion := [*islice(names, PORTION)]:
            now = at(_steady())
            found = (self.registry.reassign(name, timeout_s, now) for name in portion if self.registry[name])
            self._publish([event for events in found for event in events], now.steady)
            yield
        if is_decided and not self._is_assigned:
            self._is_assigned = True
            if self.synced:
                self._observer.synced(self.registry.engaged)
            self.notifier.notify()

    def lose_ownership(self, message: str) -> None:
        """Disengage everything at once, until `assign` is called again."""
        self.registry.assigned_elsewhere = lambda _: message
        now = at(_steady())
        found = (self.registry.lose(name, message, now) for name, _ in [*self.registry.items()])
        self._publish([event for events in found for event in events], now.steady)

    def lost(self) -> Iterator[str]:
        """Yield the clusters that this daemon no longer owns and that are still draining."""
        return (name for name in self.registry.releases if self.registry.assigned_elsewhere(name) is not None)

    def releases_of(self, cluster: str) -> PendingReleases:
        return self.registry.releases

    def expect_subscribers(self) -> None:
        """Make drains wait for the subscribers of the earlier run, whose clusters are restored."""
        self.registry.releases.expect_return(_steady())

    def subscribe(self, subscription: Subscription) -> None:
        self.registry.releases.open(subscription, _steady())
        if self._drain_timer is not None:
            self._set_drain_timer()

    def unsubscribe(self, subscription: Subscription) -> None:
        self.registry.releases.close(subscription, _steady())

    def change_view(self, subscription: Subscription, view: ClusterView) -> None:
        self._end_drains(self.registry.releases.change_view(subscription, view))

    def end_subscription(self, key: SubscriberKey) -> bool:
        is_known = self.registry.releases.knows(key)
        self._end_drains(self.registry.releases.end_subscription(key))
        return is_known

    def release(self, key: SubscriberKey, name: str) -> None:
        if self.registry.releases.release(key, name):
            self._end_drains((name,))

    def _end_drains(self, names: Iterable[str]) -> None:
        now = at(_steady())
        events: list[Event] = []
        for name in names:
            unreleased = self.registry.releases.awaited(name)
            ended = self.registry.end_drain(name, now)
            self._observer.drained(ended[0].cluster, unreleased)
            events += ended
        self._publish(events, now.steady)

    def _set_drain_timer(self) -> None:
        """Set the timer of the next drain. Unlike grace periods, drains end on time even while the source is lost."""
        due_at, timer = self.registry.releases.due_at, self._drain_timer
        if timer is not None and timer.when() != due_at:
            timer.cancel()
            timer = None
        if due_at is not None and timer is None:
            timer = asyncio.get_running_loop().call_at(due_at, self._drains_expired)
        self._drain_timer = timer

    def _drains_expired(self) -> None:
        self._drain_timer = None
        self._end_drains(self.registry.releases.due(_steady()))
        self._set_drain_timer()

    def _set_status(self, status: SourceStatus) -> None:
        self._followed, self._shown_held = status, self.registry.not_ready_held
        if (held := self._shown_held) is not None and status.state is SourceState.STREAMING:
            status = SourceStatus(
                SourceState.CATCHING_UP, held.since, NOT_READY_HELD, held.message, status.last_contact
            )
        changed = status.state is not self._status.state or status.reason != self._status.reason
        self._status = status
        if changed:
            self._observer.source(status)
            self.notifier.notify()

    def _pause_graces(self, status: SourceStatus) -> None:
        if status.state is not SourceState.STREAMING:
            if self._lost_at is None:
                self._lost_at = status.since if status.last_contact is None else status.last_contact
        elif self._lost_at is not None:
            self.registry.extend_graces(self._lost_at, at(status.since))
            self._lost_at = None

    def _refused(self, seen: Malformed) -> None:
        self._observer.object_refused(seen)

    def _publish(self, events: list[Event], read_at: float) -> None:
        self._tell(events)
        if self._drain_timer is not None or self.registry.releases:
            self._set_drain_timer()
        if events and self.synced:
            self.notifier.published(self.log.head, read_at)

    def _tell(self, events: list[Event]) -> None:
        is_live = self.synced
        for event in events:
            self._observer.changed(event, is_live=is_live)
            for kind, call in self._listeners:
                if event.type is kind:
                    call(event.cluster)


def _steady() -> float:
    return asyncio.get_running_loop().time()
