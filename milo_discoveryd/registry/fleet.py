"""The fleet as the daemon knows it: source events and probe results come in here, and readers look here.

It gives the pure parts of this package the wall-clock time and notifies subscribers of changes. The monotonic time
comes from its callers: it is the time of their event loop.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from milo_discoveryd.connectivity.schedule import ConnectivityChange
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, Observation, Ready
from milo_discoveryd.registry.change_notifier import LOW_PRIORITY_DELAY_S, ChangeNotifier
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.pending_deletions import ConfirmationRequest, ConfirmationResult, PendingDeletions
from milo_discoveryd.registry.registry import ObjectState, Registry
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_kube.reflect.messages import (
    EventIgnored,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
)
from milo_kube.reflect.source_status import SourceState, SourceStatus

REMOVALS_HELD = "RemovalsHeld"
"""The reason of a source that is followed but not believed in everything."""


class Observer(Protocol):
    """Receives what belongs into metrics and the log."""

    def changed(self, event: Event, *, is_live: bool) -> None:
        """`is_live` is False for the changes of the first complete list."""

    def synced(self, engaged: int) -> None: ...

    def relisting(self, reason: str) -> None: ...

    def event_ignored(self, problem: str) -> None: ...

    def malformed(self, seen: Malformed) -> None:
        """An object became malformed, or is new and malformed."""

    def source(self, status: SourceStatus) -> None:
        """The source's state, or the reason for it, changed."""

    def liveness_checked(self, result: str) -> None: ...


class Fleet:
    def __init__(
        self,
        log: ChangeLog,
        pending_deletions: PendingDeletions,
        observer: Observer,
        *,
        not_ready_grace_s: float = 0.0,
        guard: RemovalGuard | None = None,
    ) -> None:
        self.registry = Registry(log, not_ready_grace_s, self._refused)
        self.pending_deletions = pending_deletions
        self.notifier = ChangeNotifier()
        self.status = SourceStatus(SourceState.CATCHING_UP, time.monotonic(), "Starting", "nothing was read yet")
        self._intake = Intake(self.registry, pending_deletions, guard)
        self._observer = observer
        self._lost_at: float | None = None
        """Since when nothing has been heard of the source."""
        self._listeners: list[tuple[EventType, Callable[[Cluster], None]]] = []

    def on(self, kind: EventType, call: Callable[[Cluster], None]) -> None:
        """Call `call` for each change of that type, before any subscriber can see the change."""
        self._listeners.append((kind, call))

    @property
    def log(self) -> ChangeLog:
        return self.registry.log

    @property
    def synced(self) -> bool:
        """True after one complete list, in this run or in the run that wrote the state file."""
        return self._intake.synced

    @property
    def is_restored(self) -> bool:
        """True while the fleet is that of the state file. It may lack clusters that were engaged since."""
        return self._intake.is_restored

    def restore(self, stored: Iterable[tuple[Ready, float]], status: SourceStatus) -> None:
        """Serve the clusters of an earlier run at once, under a status that says how old they are."""
        self._publish(self._intake.restore(stored, _now(status.since)), status.since)
        self.source(status)
        self._observer.synced(self.registry.engaged)
        self.notifier.notify()

    def take(self, source_events: Iterable[SourceEvent[Observation]], read_at: float) -> Iterator[None]:
        """Apply source events in portions; the caller may let other tasks run between them."""
        synced, restored = self.synced, self.is_restored
        for events in self._intake.take(self._observed(source_events), _now(read_at)):
            self._publish(events, read_at)
            yield
        if self.synced and not synced:
            self._observer.synced(self.registry.engaged)
            self.notifier.notify()
        elif restored and not self.is_restored:
            self.notifier.notify()

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        return self._intake.reference_objects

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> None:
        """Apply the result of a confirmation read."""
        self._publish(self._intake.resolve(request, result, _now(read_at)), read_at)

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        now = _now(time.monotonic())
        name, incarnation, found = change.name, change.incarnation, change.connectivity
        events = list(self.registry.set_connectivity(name, incarnation, found, now))
        if change.disengages:
            message = f"not reached for too long; {found.message}"
            events += self.registry.disengage_unreachable(name, incarnation, message, now)
        if all(event.type is EventType.UPDATED for event in events):
            self._tell(events)
            self.notifier.notify(LOW_PRIORITY_DELAY_S)
        else:
            self._publish(events, now.steady)

    @property
    def due_at(self) -> float | None:
        """When `tick` will have something to do, if nothing else happens."""
        return self.registry.due_at if self._lost_at is None else None

    def tick(self, now: float) -> None:
        """Disengage the clusters whose grace is over. While the source is lost, no grace ends."""
        if self._lost_at is not None:
            return
        self._publish(self.registry.end_overdue(_now(now)), now)

    @property
    def relist_at(self) -> float | None:
        """When a second list is needed, to compare with one that was not believed."""
        return None if self._intake.held is None else self._intake.held.verify_at

    def source(self, status: SourceStatus) -> None:
        self._pause_graces(status)
        if (held := self._intake.held) is not None and status.state is SourceState.STREAMING:
            status = SourceStatus(SourceState.CATCHING_UP, held.since, REMOVALS_HELD, held.message, status.last_contact)
        changed = status.state is not self.status.state or status.reason != self.status.reason
        self.status = status
        if changed:
            self._observer.source(status)
            self.notifier.notify()

    def _pause_graces(self, status: SourceStatus) -> None:
        if status.state is not SourceState.STREAMING:
            if self._lost_at is None:
                self._lost_at = status.since if status.last_contact is None else status.last_contact
        elif self._lost_at is not None:
            self.registry.extend_graces(self._lost_at, status.since)
            self._lost_at = None

    def liveness_checked(self, result: str) -> None:
        self._observer.liveness_checked(result)

    def set_targets(self, targets: Iterable[Target], now: float) -> None:
        """Engage the clusters of a mode that knows them from the start."""
        ready: list[SourceEvent[Observation]] = [Listed(Ready(target.uid, "", target)) for target in targets]
        for _ in self.take([ListStarted(), *ready, ListEnded()], now):
            pass
        self.source(SourceStatus(SourceState.STREAMING, now, last_contact=now))

    def _observed(self, source_events: Iterable[SourceEvent[Observation]]) -> Iterator[SourceEvent[Observation]]:
        for event in source_events:
            match event:
                case Relisting(reason):
                    self._observer.relisting(reason)
                case EventIgnored(problem):
                    self._observer.event_ignored(problem)
                case ObjectChanged(Malformed() as seen) | Listed(Malformed() as seen) if self._is_newly_malformed(seen):
                    self._observer.malformed(seen)
            yield event

    def _refused(self, seen: Malformed) -> None:
        self._observer.malformed(seen)

    def _is_newly_malformed(self, seen: Malformed) -> bool:
        record = self.registry[seen.name]
        return record is None or record.state is not ObjectState.MALFORMED

    def _publish(self, events: list[Event], read_at: float) -> None:
        self._tell(events)
        if events and self.synced:
            self.notifier.published(self.log.head, read_at)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self._observer.changed(event, is_live=self.synced)
            for kind, call in self._listeners:
                if event.type is kind:
                    call(event.cluster)


def _now(steady: float) -> Moment:
    return Moment(time.time(), steady)
