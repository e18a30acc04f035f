"""The fleet as the daemon knows it: where findings come in, and where readers look.

It gives the pure parts of this room the time of day, and rings the bells when something changed. The steady time comes
from its callers: it is their loop's.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from milo_discoveryd.connectivity.schedule import ConnectivityChange
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, Ready
from milo_discoveryd.model.source import SourceState, SourceStatus
from milo_discoveryd.reflect.pending_deletions import ConfirmationRequest, ConfirmationResult, PendingDeletions
from milo_discoveryd.reflect.reflector import (
    EventIgnored,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
)
from milo_discoveryd.registry.change_notifier import LOW_PRIORITY_DELAY_S, ChangeNotifier
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.registry import ObjectState, Registry
from milo_discoveryd.registry.removal_guard import RemovalGuard

REMOVALS_HELD = "RemovalsHeld"
"""Why a source that is followed is not all believed."""


class Observer(Protocol):
    """Who keeps count, and tells people."""

    def changed(self, done: Event, *, is_live: bool) -> None:
        """`is_live`: after the first complete list."""

    def synced(self, engaged: int) -> None: ...

    def relisting(self, reason: str) -> None: ...

    def event_ignored(self, problem: str) -> None: ...

    def malformed(self, seen: Malformed) -> None:
        """An object can't be used as it is, and could be before, or is new."""

    def source(self, status: SourceStatus) -> None:
        """Its state, or the reason for it, changed."""

    def liveness_checked(self, result: str) -> None:
        """It was silent, and asked whether it is there."""


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
        self.registry = Registry(log, not_ready_grace_s)
        self.pending_deletions = pending_deletions
        self.signal = ChangeNotifier()
        self.status = SourceStatus(SourceState.CATCHING_UP, time.monotonic(), "Starting", "nothing was read yet")
        self._intake = Intake(self.registry, pending_deletions, guard)
        self._observer = observer
        self._listeners: list[tuple[EventType, Callable[[Cluster], None]]] = []

    def on(self, kind: EventType, tell: Callable[[Cluster], None]) -> None:
        """`tell` hears of each change of that kind within the step that makes it, before any subscriber can."""
        self._listeners.append((kind, tell))

    @property
    def log(self) -> ChangeLog:
        return self.registry.log

    @property
    def synced(self) -> bool:
        """One complete list was seen, by this run of the daemon or an earlier one."""
        return self._intake.synced

    @property
    def is_restored(self) -> bool:
        """That list was an earlier run's. Some may have come since that it doesn't name."""
        return self._intake.is_restored

    def restore(self, kept: Iterable[tuple[Ready, float]], status: SourceStatus) -> None:
        """What an earlier run knew is served at once, under a status that says how old it is."""
        self._publish(self._intake.restore(kept, _now(status.since)), status.since)
        self.source(status)
        self._observer.synced(self.registry.engaged)
        self.signal.ring()

    def take(self, findings: Iterable[SourceEvent], read_at: float) -> Iterator[None]:
        synced, remembered = self.synced, self.is_restored
        for done in self._intake.take(self._noted(findings), _now(read_at)):
            self._publish(done, read_at)
            yield
        if self.synced and not synced:
            self._observer.synced(self.registry.engaged)
            self.signal.ring()
        elif remembered and not self.is_restored:
            self.signal.ring()

    @property
    def witnesses(self) -> tuple[tuple[str, str], ...]:
        return self._intake.witnesses

    def answer(self, question: ConfirmationRequest, answer: ConfirmationResult, read_at: float) -> None:
        self._publish(self._intake.answer(question, answer, _now(read_at)), read_at)

    def probed(self, verdict: ConnectivityChange) -> None:
        now = _now(time.monotonic())
        name, incarnation, found = verdict.name, verdict.incarnation, verdict.connectivity
        done = list(self.registry.probed(name, incarnation, found, now))
        if verdict.is_given_up:
            done += self.registry.give_up(name, incarnation, f"not reached for too long; {found.message}", now)
        if all(change.type is EventType.UPDATED for change in done):
            self._tell(done)
            self.signal.ring(LOW_PRIORITY_DELAY_S)
        else:
            self._publish(done, now.steady)

    @property
    def due_at(self) -> float | None:
        """When `tick` will have something to do, if nothing else happens."""
        return self.registry.due_at

    def tick(self, now: float) -> None:
        """Ends what was held in the hope that it would be ready again."""
        self._publish(self.registry.due(_now(now)), now)

    @property
    def relist_at(self) -> float | None:
        """When a second list is wanted, to hold against one that was not believed."""
        return None if self._intake.held is None else self._intake.held.verify_at

    def source(self, status: SourceStatus) -> None:
        if (held := self._intake.held) is not None and status.state is SourceState.STREAMING:
            status = SourceStatus(SourceState.CATCHING_UP, held.since, REMOVALS_HELD, held.message, status.last_contact)
        changed = status.state is not self.status.state or status.reason != self.status.reason
        self.status = status
        if changed:
            self._observer.source(status)
            self.signal.ring()

    def liveness_checked(self, result: str) -> None:
        self._observer.liveness_checked(result)

    def hold(self, targets: Iterable[Target], now: float) -> None:
        """For a source that knows its clusters from the start."""
        ready = [Listed(Ready(target.uid, "", target)) for target in targets]
        for _ in self.take([ListStarted(), *ready, ListEnded()], now):
            pass
        self.source(SourceStatus(SourceState.STREAMING, now, last_contact=now))

    def _noted(self, findings: Iterable[SourceEvent]) -> Iterator[SourceEvent]:
        for finding in findings:
            match finding:
                case Relisting(reason):
                    self._observer.relisting(reason)
                case EventIgnored(problem):
                    self._observer.event_ignored(problem)
                case ObjectChanged(Malformed() as seen) | Listed(Malformed() as seen) if self._is_new_to_be_so(seen):
                    self._observer.malformed(seen)
            yield finding

    def _is_new_to_be_so(self, seen: Malformed) -> bool:
        record = self.registry[seen.name]
        return record is None or record.state is not ObjectState.MALFORMED

    def _publish(self, done: list[Event], read_at: float) -> None:
        self._tell(done)
        if done and self.synced:
            self.signal.published(self.log.head, read_at)

    def _tell(self, done: list[Event]) -> None:
        for change in done:
            self._observer.changed(change, is_live=self.synced)
            for kind, tell in self._listeners:
                if change.type is kind:
                    tell(change.cluster)


def _now(steady: float) -> Moment:
    return Moment(time.time(), steady)
