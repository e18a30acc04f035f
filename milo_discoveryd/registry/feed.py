"""The receiver of what one driver reports: the events of one collection, and the results of confirmation reads."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.model.observation import NotWanted, Observation, Ready
from milo_discoveryd.model.resource import ObjectKeys
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.known_objects import KnownObjects
from milo_discoveryd.registry.observer import Observer
from milo_discoveryd.registry.pending_deletions import (
    Absent,
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_kube.reflect.messages import EventIgnored, Listed, ObjectChanged, Relisting, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus

REMOVALS_HELD = "RemovalsHeld"
"""The status reason of a source that is followed, but whose lists are not fully accepted."""
_RESULTS = {Absent: "not_found", Found: "found", Inconclusive: "inconclusive"}


class FedSource(Protocol):
    """The source of clusters to which a feed belongs."""

    @property
    def due_at(self) -> float | None: ...

    def tick(self, now: float) -> None: ...

    def apply(self, feed: "Feed", changes: list[Any], read_at: float) -> Iterator[None]:
        """Apply changes of the feed's objects, in batches."""

    def began(self) -> object:
        """Record that events are about to be applied. Return the progress of the source for `ended`."""

    def ended(self, progress: Any, read_at: float) -> None: ...

    def status_changed(self) -> None: ...


class Feed:
    def __init__(
        self,
        source: FedSource,
        watch: int,
        objects: KnownObjects[Any, Any],
        *,
        pending_deletions: PendingDeletions,
        observer: Observer,
        status: ViewStatus,
        guard: RemovalGuard | None,
        keys: ObjectKeys,
    ) -> None:
        """`watch` is the position of the collection among those of the source."""
        self.watch = watch
        self.objects = objects
        self.pending_deletions = pending_deletions
        self.intake = Intake(objects, pending_deletions, guard, keys=keys)
        self.followed = status
        """The status of the collection itself; `status` also says whether its lists are accepted."""
        self._source = source
        self._observer = observer

    @property
    def synced(self) -> bool:
        """True after one complete list, in this run or in the run that wrote the state file."""
        return self.intake.synced

    @property
    def is_restored(self) -> bool:
        """True while the state is from the state file. It may differ from that of the objects since then."""
        return self.intake.is_restored

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        return self.intake.reference_objects

    @property
    def ignores_lists(self) -> bool:
        return self.intake.ignores_lists

    @property
    def over_budget(self) -> str:
        """Why source events were dropped; empty if none was."""
        return self.objects.weight.problem

    @property
    def relist_at(self) -> float | None:
        """When to list again, to verify a list."""
        return self.intake.relist_at

    @property
    def due_at(self) -> float | None:
        return self._source.due_at

    @property
    def status(self) -> ViewStatus:
        status, held = self.followed, self.intake.held
        if held is not None and status.state is ViewState.STREAMING:
            return ViewStatus(ViewState.CATCHING_UP, held.since, REMOVALS_HELD, held.message, status.last_contact)
        return status

    def tick(self, now: float) -> None:
        self._source.tick(now)

    def liveness_checked(self, result: str) -> None:
        self._observer.liveness_checked(result)

    def accept(self, now: float) -> bool:
        """Accept the source's next list, which ends the hold of removals. Return whether any are held."""
        return self.intake.accept(now)

    def take(self, source_events: Iterable[SourceEvent[Observation]], read_at: float) -> Iterator[None]:
        """Apply source events in batches; the caller may let other tasks run between them."""
        progress = self._source.began()
        for changes in self.intake.take(self._observed(source_events), at(read_at)):
            yield from self._source.apply(self, changes, read_at)
        self._source.ended(progress, read_at)

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> None:
        """Apply the result of a confirmation read."""
        was_refused = self.pending_deletions.refused
        progress = self._source.began()
        changes = self.intake.resolve(request, result, at(read_at))
        is_refusal = isinstance(result, Inconclusive) and result.is_refusal
        self._observer.confirmed("refused" if is_refusal else _RESULTS[type(result)])
        refused = self.pending_deletions.refused
        if refused and not was_refused:
            self._observer.confirmations_refused(refused)
        elif was_refused and not refused:
            self._observer.confirmations_accepted()
        for _ in self._source.apply(self, changes, read_at):
            pass
        self._source.ended(progress, read_at)

    def source(self, status: ViewStatus) -> None:
        self.followed = status
        self._source.status_changed()

    def problem_of(self, key: str) -> str:
        """Return why an object cannot be used, or an empty string if it can."""
        record = self.objects[key]
        return record.message if record is not None and record.state is ObjectState.MALFORMED else ""

    def _observed(self, source_events: Iterable[SourceEvent[Observation]]) -> Iterator[SourceEvent[Observation]]:
        for event in source_events:
            match event:
                case ObjectChanged() | Listed():
                    seen = event.observation
                    if not isinstance(seen, Ready) and self._is_newly_refused(seen):
                        self._observer.object_refused(seen)
                case Relisting(reason):
                    self._observer.relisting(reason)
                case EventIgnored(problem):
                    self._observer.event_ignored(problem)
            yield event

    def _is_newly_refused(self, seen: NotWanted) -> bool:
        record = self.objects[seen.name]
        return MEANINGS[seen.state].is_reported and (record is None or record.state is not seen.state)


_SEVERITY = {ViewState.STREAMING: 0, ViewState.CATCHING_UP: 1, ViewState.STALE: 2}


def worst(statuses: Sequence[ViewStatus]) -> ViewStatus:
    """Return a status that summarizes several: the worst one, with the oldest contact."""
    found = max(statuses, key=lambda status: _SEVERITY[status.state])
    contacts = [status.last_contact for status in statuses if status.last_contact is not None]
    last_contact = min(contacts) if len(contacts) == len(statuses) else None
    return msgspec.structs.replace(found, last_contact=last_contact)


def at(steady: float) -> Moment:
    return Moment(time.time(), steady)
