"""Turns the reflector's events into commits: compares lists, and requests the confirmation of deletions."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Generic

from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, Observation, Outside, Ready
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.registry.known_objects import Change, KnownObjects
from milo_discoveryd.registry.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    ConfirmedDeletion,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_discoveryd.registry.removal_guard import (
    ConfirmAtRate,
    ConfirmEach,
    GuardDecision,
    HeldRemovals,
    RemovalGuard,
    RemovalLimits,
)
from milo_kube.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
    Unlisted,
)
from milo_kube.reflect.versions import comparable, is_older

EVENTS_PER_STEP = 250
"""Maximum number of source events applied per event-loop iteration (a few milliseconds)."""
REFERENCE_OBJECTS = 3
OLDER_READ = Inconclusive("the read returned an older version than the watch or a list", is_older=True)


class Intake(Generic[Change]):
    """The step between a driver and the known objects of its collection: it applies lists and watch events.

    A list is staged until it is complete, and then only its changes are applied. Without a guard, the deletion of
    everything that a list lacks is confirmed at once.
    """

    def __init__(
        self,
        objects: KnownObjects[Any, Change],
        pending_deletions: PendingDeletions,
        guard: RemovalGuard | None = None,
        *,
        keys: ObjectKeys = NAMES,
    ) -> None:
        self._objects = objects
        self._keys = keys
        self._pending_deletions = pending_deletions
        self._guard = guard
        self._released: set[str] = set()
        """Clusters that two lists lack, and whose deletion is being confirmed."""
        self._reference_objects: tuple[tuple[str, str], ...] = ()
        self._is_foreign = False
        """The last list came from another server, so the watch that follows it is ignored too."""
        self._listed: dict[str, str] = {}
        """The UIDs of the listed objects, by name."""
        self._staged: dict[str, Observation] = {}
        self._suspects: dict[str, None] = {}
        """Staged objects that may be older than the known ones, or other objects of the same name. They are found
        while the list is read, since looking for them at its end would block the event loop."""
        self._listed_version = ""
        self.version = 0
        """The resource version up to which the collection is followed; 0 if versions cannot be compared."""
        """The version of the last complete list that was applied."""
        self.synced = False
        self.lists = 0
        """The number of complete lists that were applied, at least in part."""
        self.awaits_list = False
        """The state is that of an earlier run: this run has not yet accepted a complete list."""
        self._unconfirmed: set[str] = set()
        """Objects of an earlier run, or of another server, that the first accepted list lacks and that were not read
        since."""

    def take(self, source_events: Iterable[SourceEvent[Observation]], now: Moment) -> Iterator[list[Change]]:
        """Apply source events in batches, so that thousands of them do not block the event loop."""
        rest = iter(source_events)
        while batch := list(islice(rest, EVENTS_PER_STEP)):
            yield from self._batch(batch, now)
            if self._objects.weight.problem:
                return

    def restore(self, stored: Iterable[tuple[Ready, float]], now: Moment) -> list[Change]:
        """Start with the clusters of an earlier run and their engagement times.

        The first list is then compared with them, like any later one.
        """
        self.synced = self.awaits_list = True
        return [event for seen, engaged_at in stored for event in self._objects.restore(seen, engaged_at, now)]

    @property
    def is_restored(self) -> bool:
        """True while the state is not that of a list of this run, or contains objects that the first one lacks."""
        if self.awaits_list or not self._unconfirmed:
            return self.awaits_list
        return any(map(self._pending_deletions.awaits_read, self._unconfirmed))

    @property
    def held(self) -> HeldRemovals | None:
        """The reason why clusters that are missing from a list stay engaged, or why the list is not applied."""
        if self._guard is None or self._guard.held is None:
            return None
        is_current = self._guard.held.is_stale or self._pending_deletions.held or self.awaits_list
        return self._guard.held if is_current else None

    @property
    def relist_at(self) -> float | None:
        """When to list again, to verify a list."""
        if (held := self.held) is not None:
            return held.verify_at
        return None if self._guard is None else self._guard.verify_first_at

    @property
    def unverified(self) -> RemovalLimits | None:
        """The limits that judge the first list of this run; None if a second one verified it, or if none is needed."""
        return None if self._guard is None or self._guard.is_verified else self._guard.limits

    @property
    def ignores_lists(self) -> bool:
        """True while lists are older than what was seen: the server lags behind, or was restored from a backup."""
        return self._guard is not None and self._guard.held is not None and self._guard.held.is_stale

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        """Names and UIDs of a few objects that should exist. A server that has none of them is another server.

        There are several, because the deletion of a single one may have been missed.
        """
        if len(self._reference_objects) < REFERENCE_OBJECTS or not all(
            map(self._should_exist, self._reference_objects)
        ):
            found = filter(self._should_exist, self._objects.present())
            self._reference_objects = tuple(islice(found, REFERENCE_OBJECTS))
        return self._reference_objects

    def _should_exist(self, present: tuple[str, str]) -> bool:
        name, uid = present
        return not self._pending_deletions.is_doubted(name) and self._objects.is_present(name, uid)

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, now: Moment) -> list[Change]:
        if request.name in self._listed:
            self._suspects[request.name] = None  # the result may be newer than the list that is being read
        self._unconfirmed.discard(request.name)
        if (guard := self._guard) is not None and isinstance(result, Found):
            since = self._pending_deletions.older_since(request.name)
            since = now.steady if since is None else since
            if self._objects.is_older_than_known(result.observation):
                is_pending = self._pending_deletions.explain(request.name) is not None
                self._pending_deletions.resolve(request, OLDER_READ, now.steady)
                if is_pending and (held := guard.older_read(since, now.steady)) is not None:
                    self._hold(result.observation, held, now.steady)
                return []
            if guard.is_catching_up(since, now.steady) and self._contradicts_list(result.observation):
                result = OLDER_READ
        settled = self._pending_deletions.resolve(request, result, now.steady)
        if request.name in self._released and self._still_exists(settled):
            self._hold_again(now.steady)
        return [] if settled is None else self._objects.commit((settled,), now, consistent=True)

    def _contradicts_list(self, seen: Observation) -> bool:
        """Return whether a state that is older than the last list is news, although the list did not show it.

        No list shows an object outside of the selector. If that is another object than the known one, whose version
        is not known after a restart, then either may be the later one.
        """
        record = self._objects[seen.name]
        if record is not None and seen.uid == record.uid:
            is_expected = isinstance(seen, Outside) or seen.version == record.version
        else:
            is_expected = isinstance(seen, Outside) and (record is None or record.version != "")
        return not is_expected and is_older(seen.version, self._listed_version)

    def _hold(self, seen: Observation, held: HeldRemovals, now: float) -> None:
        record = self._objects[seen.name]
        assert record is not None, "no record of an object with a pending deletion"
        self._objects.set_version(seen.name, seen.version)
        self._pending_deletions.hold(seen.name, record.uid, now, held.message)

    def _batch(self, batch: list[SourceEvent[Observation]], now: Moment) -> Iterator[list[Change]]:
        changed: list[Observation] = []
        for event in batch:
            match event:
                case ObjectChanged(observation):
                    if self._accepts(observation):
                        changed.append(observation)
                case DeletionReported() if self._is_foreign:
                    pass
                case DeletionReported(name, uid, namespace):
                    # The UID that has the name depends on the changes before this event, so commit them first.
                    yield self._objects.commit(changed, now)
                    changed = []
                    self._deletion_reported(self._keys.key(namespace, name), uid, now)
                case ListStarted() | Listed() | Unlisted():
                    self._stage(event)
                    if self._objects.weight.problem:
                        break
                case ListEnded() as ended:
                    yield from self._apply_list(now, ended)
                    self._objects.weight.list_ended()
                case _:
                    pass  # Relisting and EventIgnored are for the log and the metrics
        if changed:
            self.version = max(self.version, comparable(changed[-1].version))
            yield self._objects.commit(changed, now)

    def _accepts(self, seen: Observation) -> bool:
        """Return whether to commit a watch event. If it is news, drop the pending deletion of the object."""
        if self._is_foreign:
            return False
        if not self._pending_deletions.is_idle:
            if self._is_held_back(seen):
                return False
            if self._objects.is_news(seen):
                self._pending_deletions.discard(seen.name)
        if self._guard is not None:
            self._guard.seen(seen.version)
        return True

    def _stage(self, event: ListStarted | Listed[Observation] | Unlisted) -> None:
        match event:
            case ListStarted():
                self._drop_list()
                self._objects.weight.list_started()
            case Listed(observation):
                self._listed[observation.name] = observation.uid
                record = self._objects[observation.name]
                if record is not None and not self._objects.would_change(observation):
                    self._objects.weight.add_listed(record.weight)
                elif self._objects.weight.add_listed(self._objects.weight_of(observation)):
                    self._staged[observation.name] = observation
                    if record is not None and self._is_suspect(observation, record.uid):
                        self._suspects[observation.name] = None
            case unlisted:
                key = self._keys.key(unlisted.namespace, unlisted.name)
                self._listed.pop(key, None)
                self._staged.pop(key, None)

    def _apply_list(self, now: Moment, ended: ListEnded) -> Iterator[list[Change]]:
        versions_went_back = ended.versions_went_back
        if (guard := self._guard) and self.synced:
            versions_went_back = versions_went_back or self._is_older_than_objects(ended.version)
            versions_went_back = guard.is_behind(ended.version, versions_went_back=versions_went_back)
            if guard.ignores(ended.version, is_behind=versions_went_back, now=now.steady):
                self._drop_list()
                return
        regressed = list(self._regressed(versions_went_back=versions_went_back))
        # Objects that are already held in their older state are no evidence of another restore.
        versions_went_back = versions_went_back or not all(self._is_held_by_restore(seen.name) for seen in regressed)
        for seen in regressed:
            del self._staged[seen.name], self._listed[seen.name]
            self._objects.set_version(seen.name, seen.version)
        missing = self._objects.missing_from(self._listed)
        engaged = [
            (name, uid)
            for name, uid in missing
            if self._objects.is_established(name) and not self._is_held_by_restore(name)
        ]
        replaced = list(self._replaced())
        announced: set[str] = set()
        decision: GuardDecision = ConfirmEach()
        if self._guard is not None:
            is_foreign = (
                bool(self._listed) and not self.awaits_list and not any(map(self._proves, self._listed.items()))
            )
            if not (is_foreign or versions_went_back):
                announced = {name for name, _ in (*engaged, *replaced) if self._objects.is_terminating(name)}
                engaged, replaced = (
                    [(name, uid) for name, uid in each if name not in announced] for each in (engaged, replaced)
                )
            decision = self._guard.judge(
                engaged + replaced,
                self._objects.established_count - len(announced),
                versions_went_back=versions_went_back,
                now=now.steady,
                is_foreign=is_foreign,
                is_larger=len(self._listed) > self._objects.present_count,
                still_held=self._pending_deletions.held if self._guard.holds_restored else 0,
            )
        self._is_foreign = isinstance(decision, HeldRemovals) and decision.is_foreign
        if self._is_foreign:
            self._drop_list()
        if not isinstance(decision, ConfirmEach):
            engaged += replaced
            for name, _ in replaced:
                self._staged.pop(name, None)
        staged = iter(self._staged.values())
        while batch := list(islice(staged, EVENTS_PER_STEP)):
            yield self._objects.commit(batch, now, consistent=True, listed=True)
        # Other tasks ran between batches: a confirmation may have settled some of these.
        missing, engaged = (
            [(name, uid) for name, uid in each if self._objects.is_present(name, uid)] for each in (missing, engaged)
        )
        self._pending_deletions.discard_all(self._listed.keys())
        if not self._is_foreign:
            self._listed_version = ended.version
            self.version = comparable(ended.version)
            self._confirm_at_once(missing, announced, now)
            older = {seen.name for seen in regressed}
            self._objects.forget_weight(name for name, _ in missing)
            self._objects.list_ended((name for name, _ in missing if name not in older) if versions_went_back else ())
        self._apply_decision(engaged, decision, now.steady)
        self._drop_list()
        takes_first_place = isinstance(decision, ConfirmAtRate) and self.unverified is not None
        if (self.awaits_list and self.held is None) or takes_first_place:
            self.awaits_list, self._unconfirmed = False, announced.union(name for name, _ in engaged)
        self.synced = True
        self.lists += not self._is_foreign

    def _confirm_at_once(self, missing: list[tuple[str, str]], announced: set[str], now: Moment) -> None:
        """Confirm deletions that are no mass removal: nobody knows the object, or its deletion was announced."""
        for name, uid in missing:
            if name in announced or not self._objects.is_established(name):
                self._confirm(name, uid, now)

    def _is_older_than_objects(self, version: str) -> bool:
        """Return whether a list is older than an object of the one before, if that had no version of its own."""
        if self._listed_version or version == "0":
            return False
        return any(is_older(version, record.version) for record in self._objects.records())

    def _apply_decision(self, engaged: list[tuple[str, str]], decision: GuardDecision, now: float) -> None:
        self._released = {name for name, _ in engaged} if isinstance(decision, ConfirmAtRate) else set()
        match decision:
            case ConfirmEach():
                for name, uid in engaged:
                    self._pending_deletions.add(name, uid, now)
            case HeldRemovals():
                for name, uid in engaged:
                    self._pending_deletions.hold(name, uid, now, decision.message)
            case at_rate:
                for position, (name, uid) in enumerate(engaged):
                    self._pending_deletions.add(name, uid, now, confirm_at=now + position / at_rate.per_second)

    def _regressed(self, *, versions_went_back: bool) -> Iterator[Observation]:
        """Yield the listed objects that are older than the known, established ones, and differ from them.

        A server that was restored from a backup lists the state at the time of the backup.
        """
        if self._guard is None or not self.synced or self._guard.is_accepting:
            return
        for seen in self._staged_suspects(everything=versions_went_back):
            record = self._objects[seen.name]
            if record is None or not record.is_established or isinstance(seen, Malformed):
                continue
            is_older = self._objects.is_older_than_known(seen) or (versions_went_back and not record.version)
            differs = not isinstance(seen, Ready) or seen.uid != record.uid or not record.describes(seen.target)
            if differs and (is_older or self._is_held_back(seen)):
                yield seen

    def _is_suspect(self, staged: Observation, known_uid: str) -> bool:
        return (
            staged.uid not in ("", known_uid)
            or self._objects.is_older_than_known(staged)
            or self._pending_deletions.explain(staged.name) is not None
        )

    def _staged_suspects(self, *, everything: bool = False) -> Iterator[Observation]:
        names = list(self._staged if everything else self._suspects)
        return (self._staged[name] for name in names if name in self._staged)

    def _drop_list(self) -> None:
        self._listed, self._staged, self._suspects = {}, {}, {}

    def _is_held_back(self, seen: Observation) -> bool:
        """Return whether this is the older state that a restored server has of a cluster: see `_regressed`."""
        if not self._pending_deletions.is_held(seen.name):
            return False
        record = self._objects[seen.name]
        return record is not None and record.version != "" and seen.version == record.version

    def _is_held_by_restore(self, name: str) -> bool:
        """Return whether a cluster that lists lack stays engaged until an administrator decides."""
        if self._guard is None or not self._guard.holds_restored or self._guard.is_accepting:
            return False
        return self._pending_deletions.is_held(name)

    def accept(self, now: float) -> bool:
        """Accept the next list, which ends the hold of clusters. Return whether any are held."""
        if self._guard is None:
            return False
        self._guard.verify_first(now)
        return self.held is not None and self._guard.accept(now)

    def _proves(self, listed: tuple[str, str]) -> bool:
        """Return whether a listed object is known, which proves that the list is not from another server."""
        return self._objects.is_established(listed[0]) or self._objects.is_present(*listed)

    def _replaced(self) -> Iterator[tuple[str, str]]:
        """Yield the established objects under whose names the list has other objects."""
        for seen in self._staged_suspects():
            record = self._objects[seen.name]
            if record is not None and record.is_established and seen.uid not in ("", record.uid):
                yield seen.name, record.uid

    def _still_exists(self, settled: ConfirmedDeletion | Observation | None) -> bool:
        if settled is None or isinstance(settled, ConfirmedDeletion | Outside):
            return False
        record = self._objects[settled.name]
        return record is not None and settled.uid in ("", record.uid)

    def _hold_again(self, now: float) -> None:
        """Hold the removals again for which lists are the only evidence: one cluster that they lack exists."""
        assert self._guard is not None
        held = self._guard.contradicted(now)
        for name in self._released:
            record = self._objects[name]
            if record is not None and self._pending_deletions.explain(name) is not None:
                self._pending_deletions.hold(name, record.uid, now, held.message)
        self._released.clear()

    def _deletion_reported(self, name: str, uid: str, now: Moment) -> None:
        record = self._objects[name]
        if record is None or record.state is ObjectState.DELETED or uid not in ("", record.uid):
            return
        held, is_known = None, self._pending_deletions.is_doubted(name) or self._objects.is_terminating(name)
        if self._guard is not None and self._objects.is_established(name) and not is_known:
            held = self._guard.reported(self._objects.established_count, now.steady)
        if held is None:
            self._confirm(name, record.uid, now)
        else:
            self._pending_deletions.hold(name, record.uid, now.steady, held.message)

    def _confirm(self, name: str, uid: str, now: Moment) -> None:
        if self._keys.can_be_read(name):
            self._pending_deletions.add(name, uid, now.steady)
        else:
            # An object with an invalid name cannot be read, and was never engaged: no subscriber knows it.
            self._objects.commit((ConfirmedDeletion(name, uid),), now)
