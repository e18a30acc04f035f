"""The objects of one collection of a source: applies its lists, its watch events and its confirmed deletions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import ABSENT_STATES, ObjectState
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.objects.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    ConfirmedDeletion,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_discoveryd.objects.removal_guard import (
    ConfirmAtRate,
    ConfirmEach,
    HeldRemovals,
    JudgedRemovals,
    ListJudgement,
    RemovalGuard,
)
from milo_discoveryd.objects.staged_list import StagedList
from milo_discoveryd.objects.store import (
    RESTORED_POSITION,
    ObjectChange,
    ObjectChanges,
    ObjectPosition,
    ObjectRecord,
    ObjectStore,
    SourcePositions,
)
from milo_kube.moment import Moment
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
from milo_kube.reflect.view_status import ViewState, ViewStatus

REMOVALS_HELD = "RemovalsHeld"
"""The status reason of a source that can be listed and watched, but whose removals are held or lists are ignored."""
EVENTS_PER_STEP = 250
"""Maximum number of source events applied per event-loop iteration (a few milliseconds)."""
REFERENCE_OBJECTS = 3
OLDER_READ = Inconclusive("the read returned an older version than the watch or a list", is_older=True)


class ListProgress(msgspec.Struct):
    """Which lists of a collection were applied."""

    is_synced: bool = False
    """A complete list was applied, in this run or in the run that wrote the state file."""
    lists: int = 0
    """The number of complete lists that were applied, at least in part."""
    awaits_list: bool = False
    """The state is that of an earlier run: this run has not yet accepted a complete list."""
    version: int = 0
    """The resource version up to which the collection is followed; 0 if versions cannot be compared."""


class ObjectCollection:
    """The objects of one collection, with their pending deletions.

    A list is staged until it is complete, and then only its changes are applied. Without a guard, the confirmation of a
    deletion starts at once for every object that is missing from a list.
    """

    def __init__(
        self,
        number: int,
        store: ObjectStore,
        pending_deletions: PendingDeletions,
        positions: SourcePositions,
        guard: RemovalGuard | None = None,
        *,
        keys: ObjectKeys = NAMES,
        status: ViewStatus | None = None,
    ) -> None:
        """`number` is the index of the collection within the source."""
        self.number = number
        self.store = store
        self.pending_deletions = pending_deletions
        self.progress = ListProgress()
        self.followed = status or ViewStatus(ViewState.CATCHING_UP, 0.0)
        """The raw status of the watch; `status` also reflects held lists."""
        self._keys = keys
        self._positions = positions
        self._guard = guard
        self._list = StagedList(store, pending_deletions)
        self._released: set[str] = set()
        """Objects whose held removal was released, so that their deletion is being confirmed."""
        self._reference_objects: tuple[tuple[str, str], ...] = ()
        self._last_list = _LastList()
        self._unconfirmed: set[str] = set()
        """Objects known from an earlier run, or from another server. The first accepted list lacks them, and they were
        not read since."""

    def apply_events(
        self, source_events: Iterable[SourceEvent[ObservedObject]], now: Moment
    ) -> Iterator[ObjectChanges]:
        """Apply source events in batches, so that thousands of them do not block the event loop."""
        rest = iter(source_events)
        while batch := list(islice(rest, EVENTS_PER_STEP)):
            yield from self._apply_batch(batch, now)
            if self.store.weight.problem:
                return

    def restore(self, stored: Iterable[ObservedObject]) -> ObjectChanges:
        """Start with the objects of an earlier run. The first list is then compared with them, like any later one."""
        self.progress.is_synced = self.progress.awaits_list = True
        weighed = ((observation, self.store.weight_of(observation)) for observation in stored)
        return ObjectChanges(self.store.apply_listed(weighed), ObjectPosition(RESTORED_POSITION))

    @property
    def is_restored(self) -> bool:
        """True while the state is from an earlier run, or contains objects that are missing from the first list of this
        run and were not read since."""
        if self.progress.awaits_list or not self._unconfirmed:
            return self.progress.awaits_list
        return any(map(self.pending_deletions.awaits_read, self._unconfirmed))

    @property
    def held(self) -> HeldRemovals | None:
        """Why clusters stay engaged although a list lacks them or the watch reported their deletion, or why lists are
        ignored. None if neither is the case."""
        guard = self._guard
        if guard is None or guard.hold is None:
            return None
        is_current = guard.ignores_lists or self.pending_deletions.held or self.progress.awaits_list
        return guard.hold.held if is_current else None

    @property
    def status(self) -> ViewStatus:
        followed, held = self.followed, self.held
        if held is None or followed.state is not ViewState.STREAMING:
            return followed
        return ViewStatus(ViewState.CATCHING_UP, held.since, REMOVALS_HELD, held.message, followed.last_contact)

    @property
    def over_budget(self) -> str:
        """Why source events were dropped; empty if none was dropped."""
        return self.store.weight.problem

    @property
    def relist_at(self) -> float | None:
        """When to list again, because of held removals or to verify the first list of this run; None if not needed."""
        if self._guard is None:
            return None
        return self._guard.first_list.verify_at if self.held is None else self._guard.relist_at

    @property
    def unverified(self) -> RemovalLimits | None:
        """The removal limits for the first list of this run; None if a second list verified it, or no verification is
        needed."""
        return None if self._guard is None or self._guard.is_verified else self._guard.limits

    @property
    def ignores_lists(self) -> bool:
        """True while lists are older than the known state: the server lags behind, or was restored from a backup."""
        return self._guard is not None and self._guard.ignores_lists

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        """Names and UIDs of a few objects that should exist. A server that has none of them counts as a different
        server. Several objects are used, because the deletion of a single one may have been missed.
        """
        if len(self._reference_objects) < REFERENCE_OBJECTS or not all(
            map(self._should_exist, self._reference_objects)
        ):
            existing = filter(self._should_exist, self.store.present())
            self._reference_objects = tuple(islice(existing, REFERENCE_OBJECTS))
        return self._reference_objects

    def _should_exist(self, present: tuple[str, str]) -> bool:
        name, uid = present
        return not self.pending_deletions.is_doubted(name) and self.store.is_present(name, uid)

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, now: Moment) -> ObjectChanges:
        """Apply the result of a confirmation read."""
        self._list.suspect(request.name)
        self._unconfirmed.discard(request.name)
        if (guard := self._guard) is not None and isinstance(result, Found):
            since = self.pending_deletions.older_since(request.name)
            since = now.steady if since is None else since
            if self.store.is_older_than_known(result.observation):
                is_pending = self.pending_deletions.explain(request.name) is not None
                self.pending_deletions.resolve(request, OLDER_READ, now.steady)
                if is_pending and (held := guard.older_read(since, now.steady)) is not None:
                    self._hold(result.observation, held, now.steady)
                return self._unlisted_changes([])
            if guard.is_catching_up(since, now.steady) and self._contradicts_list(result.observation):
                result = OLDER_READ
        settled = self.pending_deletions.resolve(request, result, now.steady)
        if request.name in self._released and self._still_exists(settled):
            self._hold_again(now.steady)
        return self._unlisted_changes([] if settled is None else self.store.apply_read(settled))

    def problem_of(self, key: str) -> str:
        """Return why an object is malformed, so that its last known content is kept; empty if it is not malformed."""
        record = self.store[key]
        return record.message if record is not None and record.state is ObjectState.MALFORMED else ""

    def _unlisted_changes(self, changes: list[ObjectChange]) -> ObjectChanges:
        return ObjectChanges(changes, self._positions.of_changes(len(changes)))

    def _contradicts_list(self, observation: ObservedObject) -> bool:
        """Return whether a read returned a state that is older than the last list, but that the list did not show.

        An object outside of the selector contradicts no list, because lists do not contain it. There is one exception:
        if the version of the known object is unknown, as after a restart, and the read returns a different object,
        either of the two may be the later one. Then the read is not trusted.
        """
        if self._last_list.replacing.get(observation.name) == (observation.uid, observation.version):
            return False
        record, is_absent = self.store[observation.name], observation.state in ABSENT_STATES
        if record is not None and observation.uid == record.uid:
            is_expected = is_absent or observation.version == record.version
        else:
            is_expected = is_absent and (record is None or record.version != "")
        return not is_expected and is_older(observation.version, self._last_list.version)

    def _hold(self, observation: ObservedObject, held: HeldRemovals, now: float) -> None:
        record = self.store[observation.name]
        assert record is not None, "no record of an object with a pending deletion"
        self.store.set_version(observation.name, observation.version)
        self.pending_deletions.hold(observation.name, record.uid, now, held.message)

    def _apply_batch(self, batch: list[SourceEvent[ObservedObject]], now: Moment) -> Iterator[ObjectChanges]:
        changed: list[ObservedObject] = []
        for event in batch:
            match event:
                case ObjectChanged(observation):
                    if self._accepts(observation):
                        changed.append(observation)
                case DeletionReported(name, uid, namespace) if not self._last_list.is_foreign:
                    # The changes before this event decide which UID has the name, so apply them first.
                    if changed:
                        yield self._unlisted_changes(self.store.apply_watched(changed))
                        changed = []
                    deleted = self._report_deletion(self._keys.key(namespace, name), uid, now)
                    if deleted:
                        yield self._unlisted_changes(deleted)
                case ListStarted() | Listed() | Unlisted():
                    self._stage(event)
                    if self.store.weight.problem:
                        break
                case ListEnded() as ended:
                    yield from self._end_list(ended, now)
                    self.store.weight.list_ended()
                case _:
                    pass  # Relisting and EventIgnored change no object; reports of a foreign server are ignored
        if changed:
            self.progress.version = max(self.progress.version, comparable(changed[-1].version))
            yield self._unlisted_changes(self.store.apply_watched(changed))

    def _stage(self, event: ListStarted | Listed[ObservedObject] | Unlisted) -> None:
        match event:
            case ListStarted():
                self._list.start()
            case Listed(observation):
                self._list.add(observation)
            case unlisted:
                self._list.remove(self._keys.key(unlisted.namespace, unlisted.name))

    def _accepts(self, observation: ObservedObject) -> bool:
        """Return whether to apply a watch event. A newer state ends the pending deletion of the object."""
        if self._last_list.is_foreign:
            return False
        if self.pending_deletions.doubted:
            if self._is_held_back(observation):
                return False
            if self.store.is_news(observation):
                self.pending_deletions.discard(observation.name)
        if self._guard is not None and self._guard.restored_at is not None:
            self._guard.note_version(observation.version)
        return True

    # --- the end of a list ---

    def _end_list(self, ended: ListEnded, now: Moment) -> Iterator[ObjectChanges]:
        """Apply the list, which is complete now, as far as the guard accepts it."""
        versions_went_back = ended.versions_went_back
        if (guard := self._guard) and self.progress.is_synced:
            versions_went_back = versions_went_back or self._is_older_than_objects(ended.version)
            if self._last_list.is_foreign and guard.restored_at is None:
                # The versions in a foreign list are from another server: compare with the last list before the foreign
                # one.
                guard.restored_at = self._last_list.version
            versions_went_back = guard.is_behind(ended.version, versions_went_back=versions_went_back)
            if guard.ignores(ended.version, is_behind=versions_went_back, now=now.steady):
                self._list.drop()
                return
        older = self._keep_newer_objects(versions_went_back=versions_went_back)
        # Objects that are already held because of their older state are no evidence of another restore.
        versions_went_back = versions_went_back or not all(map(self._is_held_by_restore, older))
        lacking = self._lacking(versions_went_back=versions_went_back)
        judgement = self._judge(lacking, now, versions_went_back=versions_went_back)
        last = self._last_list
        last.is_foreign, last.replacing = judgement.is_foreign, lacking.replacing
        if last.is_foreign:
            self._list.drop()
        for group in judgement.removals:
            if not isinstance(group.decision, ConfirmEach):
                self._list.remove_changes(name for name, _ in group.objects)
        yield from self._apply_differences()
        # Leave out objects that no longer exist: the list replaced them, or a read between two batches confirmed their
        # deletion.
        missing = self._still_present(lacking.missing)
        judged = [JudgedRemovals(self._still_present(group.objects), group.decision) for group in judgement.removals]
        self.pending_deletions.discard_all(self._list.uids.keys())
        if not last.is_foreign:
            last.version = ended.version
            self.progress.version = comparable(ended.version)
            self.store.set_missing(name for name, _ in missing)
            yield from self._confirm_at_once(missing, lacking.announced, now)
            self.store.end_list((name for name, _ in missing if name not in older) if versions_went_back else ())
            self._positions.end_list(self.number)
        self._apply_decisions(judged, now.steady)
        self._list.drop()
        self._end_restore(lacking.announced, judged)

    def _apply_differences(self) -> Iterator[ObjectChanges]:
        position: ObjectPosition | None = None
        for portion in self._list.portions(EVENTS_PER_STEP):
            position = position or self._positions.of_list()
            yield ObjectChanges(self.store.apply_listed(portion), position)

    def _still_present(self, objects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name, uid) for name, uid in objects if self.store.is_present(name, uid)]

    def _end_restore(self, announced: set[str], judged: Sequence[JudgedRemovals]) -> None:
        """Record that a list was applied. A list that the guard accepted replaces the state of an earlier run."""
        progress = self.progress
        is_any_released = any(isinstance(group.decision, ConfirmAtRate) for group in judged)
        if (progress.awaits_list and self.held is None) or (is_any_released and self.unverified is not None):
            progress.awaits_list = False
            self._unconfirmed = announced.union(name for group in judged for name, _ in group.objects)
        progress.is_synced = True
        progress.lists += not self._last_list.is_foreign

    def _lacking(self, *, versions_went_back: bool) -> "_Lacking":
        """Return the objects that are missing from the list, in the groups that the guard judges."""
        missing = self._list.missing()
        established = [
            (name, uid)
            for name, uid in missing
            if self.store.is_established(name) and not self._is_held_by_restore(name)
        ]
        suspects = [
            (observation, record) for observation, record in self._suspects() if observation.uid not in ("", record.uid)
        ]
        replaced = [(observation.name, record.uid) for observation, record in suspects]
        replacing = {observation.name: (observation.uid, observation.version) for observation, _ in suspects}
        if self._guard is None:
            return _Lacking(missing, established, replaced)
        is_foreign = bool(established or replaced) and self._proves_nothing()
        announced: set[str] = set()
        if not (is_foreign or versions_went_back):
            announced = {name for name, _ in (*established, *replaced) if self.store.is_terminating(name)}
            established, replaced = (
                [(name, uid) for name, uid in objects if name not in announced] for objects in (established, replaced)
            )
        return _Lacking(missing, established, replaced, announced, is_foreign, replacing)

    def _judge(self, lacking: "_Lacking", now: Moment, *, versions_went_back: bool) -> ListJudgement:
        if self._guard is None:
            return ListJudgement([JudgedRemovals(lacking.established + lacking.replaced, ConfirmEach())])
        return self._guard.judge(
            lacking.established + lacking.replaced,
            self.store,
            versions_went_back=versions_went_back,
            now=now.steady,
            announced=lacking.announced,
            listed_count=len(self._list.uids),
            is_foreign=lacking.is_foreign,
            is_restored=self.progress.awaits_list,
            still_held=self.pending_deletions.held if self._guard.holds_restored else 0,
        )

    def _confirm_at_once(
        self, missing: list[tuple[str, str]], announced: set[str], now: Moment
    ) -> Iterator[ObjectChanges]:
        """Confirm the deletions that do not count towards a mass removal: those of objects that no subscriber knows, or
        whose deletion was announced."""
        changes: list[ObjectChange] = []
        for name, uid in missing:
            if name in announced or not self.store.is_established(name):
                changes += self._confirm(name, uid, now)
        if changes:
            yield self._unlisted_changes(changes)

    def _is_older_than_objects(self, version: str) -> bool:
        """Return whether a list is older than a known object; False if the previous list has a version to compare."""
        return not self._last_list.version and version != "0" and self.store.is_older_than_any(version)

    def _apply_decisions(self, judged: Iterable[JudgedRemovals], now: float) -> None:
        self._released.clear()
        for group in judged:
            match group.decision:
                case ConfirmEach():
                    for name, uid in group.objects:
                        self.pending_deletions.add(name, uid, now)
                case HeldRemovals(message=message):
                    for name, uid in group.objects:
                        self.pending_deletions.hold(name, uid, now, message)
                case at_rate:
                    for name, uid in group.objects:
                        confirm_at = now + len(self._released) / at_rate.per_second  # one rate for all groups
                        self.pending_deletions.add(name, uid, now, confirm_at=confirm_at)
                        self._released.add(name)

    def _keep_newer_objects(self, *, versions_went_back: bool) -> set[str]:
        """Keep the established objects that the list shows in an older state, and return their names.

        A server that was restored from a backup lists the state at the time of the backup.
        """
        if self._guard is None or not self.progress.is_synced or self._guard.is_accepting:
            return set()
        older = [
            observation
            for observation, record in self._suspects(everything=versions_went_back)
            if self._differs(observation, record)
            and self._is_regressed(observation, record, versions_went_back=versions_went_back)
        ]
        for observation in older:
            self._list.remove(observation.name)
            self.store.set_version(observation.name, observation.version)
        return {observation.name for observation in older}

    def _suspects(self, *, everything: bool = False) -> Iterator[tuple[ObservedObject, ObjectRecord]]:
        """Yield listed objects with the established records that they would change. Without `everything`, yield only
        objects that may be older than the record, or may be a different object of the same name."""
        for observation in self._list.differing() if everything else self._list.suspects():
            record = self.store[observation.name]
            if record is not None and record.is_established:
                yield observation, record

    def _differs(self, observation: ObservedObject, record: ObjectRecord) -> bool:
        if isinstance(observation, Malformed):
            return False
        if observation.state is not ObjectState.READY or observation.uid != record.uid:
            return True
        return record.content is not None and observation.content != record.content

    def _is_regressed(self, observation: ObservedObject, record: ObjectRecord, *, versions_went_back: bool) -> bool:
        is_older = self.store.is_older_than_known(observation) or (versions_went_back and not record.version)
        return is_older or self._is_held_back(observation)

    def _is_held_back(self, observation: ObservedObject) -> bool:
        """Return whether the object is held, and a list again shows the older state: see `_keep_newer_objects`."""
        if not self.pending_deletions.is_held(observation.name):
            return False
        record = self.store[observation.name]
        return record is not None and record.version != "" and observation.version == record.version

    def _is_held_by_restore(self, name: str) -> bool:
        """Return whether an object that is missing from lists is kept until an administrator decides."""
        if self._guard is None or not self._guard.holds_restored or self._guard.is_accepting:
            return False
        return self.pending_deletions.is_held(name)

    def accept(self, now: float) -> bool:
        """Accept the next list, which ends the hold of removals. Return whether removals are held."""
        if self._guard is None:
            return False
        self._guard.verify_first(now)
        return self.held is not None and self._guard.accept(now)

    def _proves_nothing(self) -> bool:
        """Return whether no listed object is known, so that the list may be from another server."""
        uids = self._list.uids
        return bool(uids) and not any(map(self._is_known, uids.items()))

    def _is_known(self, listed: tuple[str, str]) -> bool:
        return self.store.is_established(listed[0]) or self.store.is_present(*listed)

    # --- deletions ---

    def _still_exists(self, settled: ConfirmedDeletion | ObservedObject | None) -> bool:
        if settled is None or isinstance(settled, ConfirmedDeletion) or settled.state in ABSENT_STATES:
            return False
        record = self.store[settled.name]
        return record is not None and settled.uid in ("", record.uid)

    def _hold_again(self, now: float) -> None:
        """Hold again the removals that only lists show: a read found an object that is missing from these lists."""
        assert self._guard is not None
        held = self._guard.contradicted(now)
        for name in self._released:
            record = self.store[name]
            if record is not None and self.pending_deletions.explain(name) is not None:
                self.pending_deletions.hold(name, record.uid, now, held.message)
        self._released.clear()

    def _report_deletion(self, name: str, uid: str, now: Moment) -> list[ObjectChange]:
        record = self.store[name]
        if record is None or record.state is ObjectState.DELETED or uid not in ("", record.uid):
            return []
        held, is_expected = None, self.pending_deletions.is_doubted(name) or record.is_terminating
        if self._guard is not None and record.is_established and not is_expected:
            held = self._guard.deletion_reported(self.store, now.steady)
        if held is None:
            return self._confirm(name, record.uid, now)
        self.pending_deletions.hold(name, record.uid, now.steady, held.message)
        return []

    def _confirm(self, name: str, uid: str, now: Moment) -> list[ObjectChange]:
        if not self._keys.can_be_read(name):
            # An object with an invalid name cannot be read, and was never engaged: no subscriber knows it.
            return self.store.apply_read(ConfirmedDeletion(name, uid))
        self.pending_deletions.add(name, uid, now.steady)
        return []


class _LastList(msgspec.Struct):
    """The properties of the last complete list that affect how later events and reads are applied."""

    is_foreign: bool = False
    """The list came from another server, so the watch that follows it is ignored too."""
    replacing: Mapping[str, tuple[str, str]] = {}
    """UID and version of each listed object that has the name of a different established object, by name."""
    version: str = ""
    """The resource version of the last list that was applied and not foreign."""


class _Lacking(msgspec.Struct, frozen=True):
    """Names and UIDs of the objects that are missing from a complete list."""

    missing: list[tuple[str, str]]
    established: list[tuple[str, str]]
    """The objects of `missing` about which the guard decides."""
    replaced: list[tuple[str, str]]
    """Established objects whose names belong to different objects in the list."""
    announced: set[str] = set()
    """Names of established objects whose deletion was requested before the list. The guard does not count them."""
    is_foreign: bool = False
    """The list contains objects, but none of them is known."""
    replacing: Mapping[str, tuple[str, str]] = {}
    """UID and version of each listed object that has the name of a different established object, by name."""
