"""Commits the changes of all sources to the log, and notifies the journal, listeners and subscribers."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol

from milo_discoveryd.connectivity.reachability import ConnectivityChange
from milo_discoveryd.engagement.claims import Claimant, FleetEngagements
from milo_discoveryd.engagement.engagement import ClusterStates
from milo_discoveryd.engagement.pending_releases import PendingReleases
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.change_notifier import LOW_PRIORITY_DELAY_S, ChangeNotifier
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster, source_of
from milo_discoveryd.model.observation import NotWanted
from milo_discoveryd.objects.budget import AllObjects
from milo_discoveryd.objects.store import Positions
from milo_kube.moment import Moment
from milo_kube.reflect.view_status import ViewStatus

STEP_S = 0.01
"""How long clusters are assigned or lost, or drains begun or ended, without a pause. What one costs depends on the
number of members of its group, or of subscribers and their filters."""
RETRY_S = 5.0
"""The delay until what failed for a cluster with an unexpected error is tried again, or until a cluster is assigned
that this daemon keeps for now."""
_NAMES_LOGGED = 10
"""How many of the clusters are named that a member of a shard group has disengaged together."""


class Observer(Protocol):
    """Receives events, and records them in the metrics and the log."""

    def changed(self, event: Event, *, is_live: bool) -> None:
        """Record a change. `is_live` is False until the source is synced."""

    def synced(self, engaged: int) -> None: ...

    def relisting(self, reason: str) -> None: ...

    def event_ignored(self, problem: str) -> None: ...

    def object_reported(self, observation: NotWanted) -> None:
        """Record that an object entered a state with `StateMeaning.is_reported`: it became malformed or refused."""

    def source_duplicated(self, other: str) -> None:
        """Record that most projects of the source are also in the source `other`. Called once."""

    def source_status_changed(self, status: ViewStatus) -> None:
        """Record that the state of the source, or the reason for that state, changed."""

    def liveness_checked(self, result: str) -> None: ...

    def drained(self, cluster: Cluster, unreleased: Collection[SubscriberKey]) -> None:
        """Record that a drain ended. `unreleased` are the subscribers that had not released the cluster by the
        deadline; empty if the drain ended before the deadline.
        """

    def confirmed(self, result: str) -> None:
        """Record a confirmation read of an apparently deleted object. `result` is a metric label."""

    def confirmations_refused(self, problem: str) -> None:
        """Record that the API server began to refuse confirmation reads, so all of them wait."""

    def confirmations_accepted(self) -> None:
        """Record that the API server answers confirmation reads again."""


class PublishedSource(Protocol):
    """What the publication of changes needs of a source."""

    @property
    def clusters(self) -> "SourceClusters": ...


class FleetChanges:
    """The log, listeners and subscribers that all sources of a daemon share."""

    def __init__(self, log: ChangeLog, sources: Mapping[str, PublishedSource]) -> None:
        """`sources` are those of the fleet, by name."""
        self.log = log
        self.notifier = ChangeNotifier()
        self.releases = PendingReleases()
        self.engagements = FleetEngagements()
        self.positions = Positions()
        self.objects = AllObjects()
        self.versions: Mapping[str, int] = {}
        """The resource version up to which each source is followed; absent or 0 if its versions cannot be compared.
        Each change replaces the mapping."""
        self._sources = sources
        self._listeners: list[tuple[EventType, Callable[[Event], None]]] = []
        self._drain_timer: asyncio.TimerHandle | None = None
        self._lost: deque[Iterator[list[str]]] = deque()
        """Comparisons of the drains with subscribers whose rights changed: see `PendingReleases.change_view`."""

    def add_listener(self, kind: EventType, call: Callable[[Event], None]) -> None:
        """Register `call` for each change of that type. It runs before any subscriber can see the change."""
        self._listeners.append((kind, call))

    def commit(self, claimant: Claimant, states: ClusterStates, read_at: Moment) -> None:
        """Apply states of a source's clusters. `read_at` is when the daemon read them from the source."""
        events: list[Event] = []
        try:
            self.engagements.commit(claimant, states, read_at, events)
        finally:
            self.publish(events, read_at.steady)
        self.report_duplicates()

    def report_duplicates(self) -> None:
        """Report each synced source whose projects another source has too, once."""
        for clusters in (source.clusters for source in self._sources.values()):
            if clusters.is_synced and (other := self.engagements.new_duplicate_of(clusters.claimant)):
                clusters.observer.source_duplicated(other)

    def publish(self, events: Iterable[Event], read_at: float | None) -> None:
        """Notify listeners of changes in the log. Also notify subscribers, unless `read_at` is None or no source of the
        changes is synced."""
        is_live, has_drain = False, self._drain_timer is not None
        for event in events:
            cluster = event.cluster
            clusters = self._sources[cluster.target.source].clusters
            is_live = is_live or clusters.is_synced
            has_drain = has_drain or cluster.draining is not None
            try:
                clusters.observer.changed(event, is_live=clusters.is_synced)
            except Exception:
                log.exception("change not recorded", cluster=cluster.target.name)
            for kind, call in self._listeners:
                if event.type is kind:
                    try:
                        call(event)
                    except Exception:
                        log.exception("change not passed on", cluster=cluster.target.name)
        if has_drain:
            self._set_drain_timer()
        if is_live and read_at is not None:
            self.notifier.published(self.log.head, read_at)

    # --- drains ---

    def subscribe(self, subscription: Subscription) -> Generator[None, None, None]:
        """Make drains wait for the subscriber of a new stream: see `PendingReleases.open`."""
        return self.releases.open(subscription, steady_now())

    def unsubscribe(self, subscription: Subscription) -> None:
        """Record the end of a stream. Drains still wait for its subscriber, which may reconnect."""
        self.releases.close(subscription, steady_now())

    def change_view(self, subscription: Subscription, view: ClusterView) -> None:
        """Apply a change of a subscriber's rights. In later iterations of the event loop, drains of clusters that it no
        longer sees stop waiting for it."""
        self._lost.append(self.releases.change_view(subscription, view))
        if len(self._lost) == 1:
            asyncio.get_running_loop().call_soon(self._compare_drains)

    def _compare_drains(self) -> None:
        until = steady_now() + STEP_S
        while self._lost and steady_now() < until:
            ended = None
            with log.contained("drains not compared with a subscriber"):
                ended = next(self._lost[0], None)
            if ended is None:
                self._lost.popleft()
            else:
                self._end_drains(ended)
        if self._lost:
            asyncio.get_running_loop().call_soon(self._compare_drains)

    def end_subscription(self, key: SubscriberKey) -> bool:
        """Stop waiting for a subscriber's releases. Return False if the subscriber is unknown."""
        is_known = self.releases.knows(key)
        self._end_drains(self.releases.end_subscription(key))
        return is_known

    def release(self, key: SubscriberKey, cluster: str) -> None:
        """Record a subscriber's release of a draining cluster."""
        if self.releases.release(key, cluster):
            self._end_drains((cluster,))

    def _end_drains(self, names: Iterable[str]) -> None:
        """End drains. Those that have not ended after `STEP_S` become due, and end in the next iterations of the event
        loop."""
        now, waiting = moment(steady_now()), deque(names)
        while waiting and steady_now() < now.steady + STEP_S:
            name, failed = waiting.popleft(), True
            with log.contained("drain not ended", cluster=name):
                clusters, unreleased = self._sources[source_of(name)].clusters, self.releases.unreleased(name)
                events = clusters.engagements.end_drain(name, now)
                self.publish(events, now.steady)
                clusters.observer.drained(events[0].cluster, unreleased)
                failed = False
            if failed:
                self.releases.move_deadline(name, now.steady + RETRY_S)
        self.releases.hasten(waiting, now.steady)
        self._set_drain_timer()

    def _set_drain_timer(self) -> None:
        """Set the timer of the next deadline. Unlike grace periods, drains end on time while the source is lost."""
        due_at, timer = self.releases.due_at, self._drain_timer
        if timer is not None and timer.when() != due_at:
            timer.cancel()
            timer = None
        if due_at is not None and timer is None:
            timer = asyncio.get_running_loop().call_at(due_at, self._drains_expired)
        self._drain_timer = timer

    def _drains_expired(self) -> None:
        self._drain_timer = None
        self._end_drains(self.releases.due(steady_now()))


class SourceClusters:
    """The clusters of one source, and the changes that do not come from objects: connectivity and shard assignment."""

    def __init__(self, claimant: Claimant, observer: Observer, changes: FleetChanges) -> None:
        self.claimant = claimant
        self.engagements = claimant.engagements
        self.observer = observer
        """Records changes in the metrics and the log."""
        self.is_synced = False
        """Whether the source is synced, so that its changes are live and wake subscribers."""
        self.is_lost = False
        """Whether the ownership of the clusters was lost, and some of them may not be disengaged yet."""
        self.unassigned: dict[str, None] = {}
        """The clusters that are not assigned yet: another daemon may own those of them that are engaged."""
        self._changes = changes

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        now = moment(time.monotonic())
        name, incarnation, connectivity = change.name, change.incarnation, change.connectivity
        events = list(self.engagements.set_connectivity(name, incarnation, connectivity, now))
        if change.disengages:
            message = f"unreachable for too long; {connectivity.message}"
            events += self.engagements.disengage_unreachable(name, incarnation, message, now)
        is_urgent = any(event.type is not EventType.UPDATED for event in events)
        self._changes.publish(events, now.steady if is_urgent else None)
        if events and not is_urgent:
            self._changes.notifier.notify(LOW_PRIORITY_DELAY_S)

    def assign(
        self,
        elsewhere: Callable[[str], str | None],
        timeout_s: float,
        keeps: Callable[[str], bool] = lambda _: False,
    ) -> Iterator[None]:
        """Engage the clusters that this daemon owns, and drain or disengage all others: see `Engagements.reassign`.

        `elsewhere` returns why this daemon must not engage a cluster; None if it may. `keeps` returns whether a cluster
        stays engaged here nevertheless, for now. Yields after each `STEP_S`.
        """
        self.engagements.assigned_elsewhere = elsewhere
        self.unassigned = dict.fromkeys(name for name, _ in self.engagements.items())
        yield from self._assign(timeout_s, keeps)

    def _assign(self, timeout_s: float, keeps: Callable[[str], bool]) -> Iterator[None]:
        elsewhere = self.engagements.assigned_elsewhere
        reassigned = partial(self._reassigned, timeout_s, keeps)
        for _ in self._in_steps(self.unassigned, reassigned, "cluster not assigned"):
            yield
        if self.unassigned:
            again = self._assign(timeout_s, keeps)
            asyncio.get_running_loop().call_later(RETRY_S, self._assign_again, again, elsewhere)

    def _reassigned(self, timeout_s: float, keeps: Callable[[str], bool], name: str, now: Moment) -> list[Event]:
        events: list[Event] = []
        if self.engagements[name] is not None:
            if keeps(name) and self.engagements.assigned_elsewhere(name) is not None:
                return []
            events = self.engagements.reassign(name, timeout_s, now)
        del self.unassigned[name]
        return events

    def _assign_again(self, assigning: Iterator[None], elsewhere: Callable[[str], str | None]) -> None:
        # No other assignment may have begun since.
        if self.engagements.assigned_elsewhere is elsewhere and next(assigning, self) is not self:
            asyncio.get_running_loop().call_soon(self._assign_again, assigning, elsewhere)

    def lose_ownership(self, message: str) -> Iterator[None]:
        """Engage no cluster, and show none to new readers, at once. The result disengages all; it yields after each
        `STEP_S`. `assign` must not be called before its end."""
        self.engagements.assigned_elsewhere = lambda _: message
        self.is_lost = True
        return self._disengage_all(message)

    def _disengage_all(self, message: str) -> Iterator[None]:
        count, first = 0, list[str]()
        names = [name for name, _ in self.engagements.items()]
        for events in self._in_steps(names, partial(self._disengaged, message), "cluster not disengaged"):
            count += len(events)
            first += [event.cluster.target.name for event in events[: _NAMES_LOGGED - len(first)]]
            yield
        self.is_lost = False
        self._changes.notifier.notify()
        if count:
            log.info("disengaged all", source=self.claimant.source, count=count, first=first, detail=message)

    def _disengaged(self, message: str, name: str, now: Moment) -> list[Event]:
        return [] if self.engagements[name] is None else self.engagements.lose(name, message, now)

    def _in_steps(
        self, names: Iterable[str], change: Callable[[str, Moment], list[Event]], problem: str
    ) -> Iterator[list[Event]]:
        """Change clusters, and publish that; yield the changes after each `STEP_S`. `problem` is logged about a cluster
        for which this failed."""
        waiting = deque(names)
        while waiting:
            now = moment(steady_now())
            events: list[Event] = []
            while waiting and steady_now() < now.steady + STEP_S:
                name = waiting.popleft()
                try:
                    events += change(name, now)
                except Exception:  # without the costs of `contained` for each cluster
                    log.exception(problem, cluster=name)
            self._changes.publish(events, now.steady)
            yield events


def steady_now() -> float:
    return asyncio.get_running_loop().time()


def moment(steady: float) -> Moment:
    """Return a moment of the event loop's clock, with the present wall-clock time."""
    return Moment(time.time(), steady)
