"""The common part of all receivers of source events from a driver: intake, confirmation and status."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, Observation, Refused
from milo_discoveryd.model.resource import ObjectKeys
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.object_records import STATES
from milo_discoveryd.registry.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    NotFound,
    PendingDeletions,
)
from milo_discoveryd.registry.pending_releases import AwaitedRelease
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_kube.reflect.messages import EventIgnored, Listed, ObjectChanged, Relisting, SourceEvent
from milo_kube.reflect.source_status import SourceState, SourceStatus

REMOVALS_HELD = "RemovalsHeld"
"""The status reason of a source that is followed, but whose lists are not fully accepted."""


class Observer(Protocol):
    """The receiver of events for metrics and the log."""

    def changed(self, event: Event, *, is_live: bool) -> None:
        """Record a change. `is_live` is False for the changes of the first complete list."""

    def synced(self, engaged: int) -> None: ...

    def relisting(self, reason: str) -> None: ...

    def event_ignored(self, problem: str) -> None: ...

    def object_refused(self, seen: Malformed | Refused) -> None:
        """Record that an object cannot be used, or must not be, since this observation of it."""

    def source(self, status: SourceStatus) -> None:
        """Record that the source's state, or the reason for it, changed."""

    def liveness_checked(self, result: str) -> None: ...

    def drained(self, cluster: Cluster, unreleased: Sequence[AwaitedRelease]) -> None:
        """Record that a drain ended: when the cluster was released, or at its deadline if some subscribers have not
        released it.
        """

    def confirmed(self, result: str) -> None:
        """Record the result of a confirmation read of an apparently deleted object, as a metric label."""

    def confirmations_refused(self, problem: str) -> None:
        """Record that the API server began to refuse confirmation reads, so all of them wait."""

    def confirmations_accepted(self) -> None:
        """Record that the API server answers confirmation reads again."""


_RESULTS = {NotFound: "not_found", Found: "found", Inconclusive: "inconclusive"}


class IntakeSink:
    """An intake, and the registry that contains its objects."""

    pending_deletions: PendingDeletions

    def __init__(
        self,
        objects: Registry,
        pending_deletions: PendingDeletions,
        observer: Observer,
        *,
        guard: RemovalGuard | None,
        keys: ObjectKeys,
        shares_log: bool,
    ) -> None:
        self.pending_deletions = pending_deletions
        self._objects = objects
        self._intake = Intake(objects, pending_deletions, guard, keys=keys, shares_log=shares_log)
        self._observer = observer

    @property
    def synced(self) -> bool:
        """True after one complete list, in this run or in the run that wrote the state file."""
        return self._intake.synced

    @property
    def is_restored(self) -> bool:
        """True while the state is from the state file. It may lack objects that were created since then."""
        return self._intake.is_restored

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        return self._intake.reference_objects

    @property
    def ignores_lists(self) -> bool:
        return self._intake.ignores_lists

    @property
    def relist_at(self) -> float | None:
        """When to list again, to compare the result with a list that was not accepted."""
        return None if self._intake.held is None else self._intake.held.verify_at

    def liveness_checked(self, result: str) -> None:
        self._observer.liveness_checked(result)

    def accept(self, now: float) -> bool:
        """Accept the source's next list, which ends the hold of removals. Return whether any are held."""
        return self._intake.accept(now)

    def _resolved(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> list[Event]:
        was_refused = self.pending_deletions.refused
        events = self._intake.resolve(request, result, at(read_at))
        is_refusal = isinstance(result, Inconclusive) and result.is_refusal
        self._observer.confirmed("refused" if is_refusal else _RESULTS[type(result)])
        refused = self.pending_deletions.refused
        if refused and not was_refused:
            self._observer.confirmations_refused(refused)
        elif was_refused and not refused:
            self._observer.confirmations_accepted()
        return events

    def _believed(self, status: SourceStatus) -> SourceStatus:
        """Return the status, adjusted if the source is followed but its lists are not fully accepted."""
        if (held := self._intake.held) is not None and status.state is SourceState.STREAMING:
            return SourceStatus(SourceState.CATCHING_UP, held.since, REMOVALS_HELD, held.message, status.last_contact)
        return status

    def _observed(self, source_events: Iterable[SourceEvent[Observation]]) -> Iterator[SourceEvent[Observation]]:
        for event in source_events:
            match event:
                case ObjectChanged() | Listed():
                    if isinstance(seen := event.observation, Malformed | Refused) and self._is_newly_refused(seen):
                        self._observer.object_refused(seen)
                case Relisting(reason):
                    self._observer.relisting(reason)
                case EventIgnored(problem):
                    self._observer.event_ignored(problem)
            yield event

    def _is_newly_refused(self, seen: Malformed | Refused) -> bool:
        record = self._objects[seen.name]
        return record is None or record.state is not STATES[type(seen)]


def at(steady: float) -> Moment:
    return Moment(time.time(), steady)
