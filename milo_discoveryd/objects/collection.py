"""The objects of one collection of a source: applies its lists, its watch events and its confirmed deletions."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain, count, islice

import msgspec

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import ABSENT_STATES, ObjectState
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.model.tenant_counts import in_turns
from milo_discoveryd.objects.comparison import OBJECTS_PER_STEP, Comparison, compare, in_steps, is_held_back
from milo_discoveryd.objects.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    ConfirmedDeletion,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_discoveryd.objects.recent_deletions import RecentDeletions
from milo_discoveryd.objects.staged_list import UNLIMITED, StagedList, StepLimit
from milo_discoveryd.objects.store import (
    RESTORED_POSITION,
    ObjectChange,
    ObjectChanges,
    ObjectPosition,
    ObjectStore,
    SourcePositions,
)
from milo_discoveryd.objects.trust import (
    ACCEPT,
    Nothing,
    Stored,
    Trust,
    Unverified,
    Verdict,
    Verified,
    Why,
    contradicted,
    judge,
    judge_deletion,
    verify_soon,
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
    VersionReached,
)
from milo_kube.reflect.versions import is_older
from milo_kube.reflect.view_status import ViewState, ViewStatus

REMOVALS_HELD = "RemovalsHeld"
"""The status reason of a source that can be listed and watched, but whose removals are held or lists are ignored."""
EVENTS_PER_STEP = 100
"""Maximum number of source events applied per event-loop iteration (a few milliseconds)."""
REFERENCE_OBJECTS = 3
OLDER_READ = Inconclusive("the read returned an older version than the watch or a list", is_older=True)
READ_DURING_COMPARISON = Inconclusive("a list was being compared with the known objects when the response arrived")

OLDER_SERVER = (
    "the API server's resource versions went back, as after a restore from a backup: the cluster stays as it is until "
    f"it is seen again, or until {ACCEPT}"
)


class Held(msgspec.Struct, frozen=True):
    """Why clusters stay engaged although a list lacks them or the watch reported their deletion, or why lists are
    ignored."""

    since: float
    message: str


class References(msgspec.Struct, frozen=True):
    """The objects that were found for `ObjectCollection.reference_objects`."""

    objects: tuple[tuple[str, str], ...] = ()
    exhausted: tuple[int, int] | None = None
    """If no others exist: what counts the objects that may exist since. While a fleet is removed one by one, all of its
    objects would be searched each time."""


class ObjectCollection:
    """The objects of one collection, with their pending deletions.

    A list is staged until it is complete, and then only its changes are applied, as far as it is believed.
    """

    def __init__(
        self,
        number: int,
        store: ObjectStore,
        pending_deletions: PendingDeletions,
        positions: SourcePositions,
        limits: RemovalLimits,
        *,
        keys: ObjectKeys = NAMES,
        status: ViewStatus | None = None,
        step_limit: StepLimit = UNLIMITED,
    ) -> None:
        """`number` is the index of the collection within the source."""
        self.number = number
        self.store = store
        self.pending_deletions = pending_deletions
        self.trust = Trust()
        self.lists = 0
        """The number of complete lists that were applied, at least in part."""
        self.followed = status or ViewStatus(ViewState.CATCHING_UP, 0.0)
        """The raw status of the watch; `status` also reflects held lists."""
        self._keys = keys
        self._positions = positions
        self._limits = limits
        self._list = StagedList(store, pending_deletions, step_limit)
        self._recent_deletions = RecentDeletions(limits.verify_after_s)
        self._references = References()
        self._replacing: Mapping[str, tuple[str, str]] = {}
        """`Comparison.replacing` of the last list that was used."""
        self._unconfirmed: dict[str, None] = {}
        """Objects known from an earlier run, or from another server. The first accepted list lacks them, and they were
        not read since."""

    def apply_events(
        self, source_events: Iterable[SourceEvent[ObservedObject]], now: Moment
    ) -> Iterator[ObjectChanges]:
        """Apply source events in batches, so that thousands of them do not block the event loop."""
        rest = iter(source_events)
        while batch := list(islice(rest, min(EVENTS_PER_STEP, self._list.step_limit.clusters_per_step))):
            for changes in self._apply_batch(batch, now):
                yield self._unlisted_changes([]) if changes is None else changes
            if self.store.weight.is_over_share:
                self.store.weight.list_again(now.steady)
            if self.store.weight.problem:
                return

    def restore(self, stored: Iterable[ObservedObject]) -> ObjectChanges:
        """Start with the objects of an earlier run, or more of them, until `end_restore`. The first list is then
        compared with them, like any later one."""
        weighed = map(self.store.weighed, stored)
        return ObjectChanges(self.store.apply_listed(weighed), ObjectPosition(RESTORED_POSITION))

    def end_restore(self, version: str = "") -> None:
        """Trust the restored objects. The earlier run followed the collection up to `version`."""
        self.trust = Trust(Stored(), version=version)

    @property
    def is_synced(self) -> bool:
        """Whether a complete list was applied, in this run or in the run that wrote the state file."""
        return not isinstance(self.trust.basis, Nothing)

    @property
    def is_listed(self) -> bool:
        """Whether a complete list was accepted in this run."""
        return isinstance(self.trust.basis, Unverified | Verified)

    @property
    def is_restored(self) -> bool:
        """True while the state is from an earlier run, or contains objects that are missing from the first list of this
        run and were not read since."""
        if isinstance(self.trust.basis, Stored):
            return True
        while self._unconfirmed:  # those that were seen again are dropped: this is read after every change
            name, _ = self._unconfirmed.popitem()
            if self.pending_deletions.awaits_read(name):
                self._unconfirmed[name] = None
                return True
        return False

    @property
    def held(self) -> Held | None:
        """Why clusters stay engaged, or lists are ignored; None if neither is the case."""
        doubt = self.trust.doubt
        if doubt is None and not self.pending_deletions.doubted:
            return None
        until_accepted = self.pending_deletions.until_accepted
        count = sum(until_accepted.values())
        if doubt is not None:
            is_holding = self.trust.is_ignoring or isinstance(self.trust.basis, Stored)
            if is_holding or self.pending_deletions.held > count:
                return Held(doubt.since, doubt.message)
        if not until_accepted:
            return None
        message = (
            "the API server's resource versions went back, as after a restore from a backup, and it lacks "
            f"{count} engaged clusters or shows them in an older state: these stay as they are until "
            f"they are seen again, or until {ACCEPT}"
        )
        return Held(min(until_accepted), message)

    @property
    def held_count(self) -> int:
        """The number of clusters that stay engaged because of `held`."""
        is_foreign = self.trust.since(Why.FOREIGN) is not None
        return self.store.established_count if is_foreign else self.pending_deletions.held

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
        """When to list again; None if no list is needed."""
        trust, due = self.trust, self.store.weight.relist_at
        if trust.accepted_at is not None:
            return trust.accepted_at
        at = trust.basis.verify_at if trust.doubt is None else trust.doubt.relist_at
        return at if due is None else due if at is None else min(at, due)

    @property
    def unverified(self) -> RemovalLimits | None:
        """The removal limits for the first list of this run; None if a second list verified it."""
        return None if isinstance(self.trust.basis, Verified) else self._limits

    @property
    def reference_objects(self) -> tuple[tuple[str, str], ...]:
        """Names and UIDs of a few objects that should exist. A server that has none of them counts as a different
        server. Several objects are used, because the deletion of a single one may have been missed. Each is drawn:
        a tenant that deletes its objects in the order of the list would delete the first ones before they are read.
        """
        known = self._references.objects
        found = tuple(filter(self._should_exist, known))
        if len(found) == REFERENCE_OBJECTS:
            return known
        state = self.store.applied, self.pending_deletions.doubted.reinstated
        if self._references.exhausted == state:
            return found
        while len(found) < REFERENCE_OBJECTS and (drawn := self._drawn_reference(found)) is not None:
            found = *found, drawn
        self._references = References(found, state if len(found) < REFERENCE_OBJECTS else None)
        return found

    def _drawn_reference(self, others: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
        place = int(self.pending_deletions.jitter() * self.store.present_count)
        present = chain(islice(self.store.present(), place, None), islice(self.store.present(), place))
        return next((each for each in present if self._should_exist(each) and each not in others), None)

    def _should_exist(self, present: tuple[str, str]) -> bool:
        name, uid = present
        return not self.pending_deletions.is_doubted(name) and self.store.is_present(name, uid)

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, now: Moment) -> ObjectChanges:
        """Apply the result of a confirmation read."""
        name, pending = request.name, self.pending_deletions
        self._list.suspect(name)
        self._unconfirmed.pop(name, None)
        was_released = pending.is_released(name)
        if self._list.is_compared and not isinstance(result, Inconclusive):
            result = READ_DURING_COMPARISON
        if isinstance(result, Found):
            since = pending.older_since(name)
            # Until then, a replica that lags behind may have answered.
            is_lasting = since is not None and now.steady >= since + self._limits.verify_after_s
            if self.store.is_older_than_known(result.observation):
                is_pending = pending.explain(name) is not None
                pending.resolve(request, OLDER_READ, now.steady)
                if is_pending and is_lasting:
                    self._hold_older(result.observation, now.steady)
                return self._unlisted_changes([])
            if not is_lasting and self._contradicts_list(result.observation):
                result = OLDER_READ
        settled = pending.resolve(request, result, now.steady)
        if was_released and self._still_exists(settled):
            self.trust = contradicted(self.trust, self._limits, now.steady)
            assert self.trust.doubt is not None
            pending.hold_released(now.steady, self.trust.doubt.message)
        if settled is None:
            return self._unlisted_changes([])
        if not isinstance(settled, ConfirmedDeletion):
            self._follow_to(settled.version)
        return self._unlisted_changes(self.store.apply_read(settled))

    def _hold_older(self, observation: ObservedObject, now: float) -> None:
        """Hold an object of which reads have kept returning an older state than the known one."""
        record = self.store[observation.name]
        assert record is not None, "no record of an object with a pending deletion"
        self.store.set_version(observation.name, observation.version)
        self.pending_deletions.hold(observation.name, record.uid, now, OLDER_SERVER, until_accepted=True)

    def _follow_to(self, version: str) -> None:
        """Record that the server has shown this version."""
        if is_older(self.trust.version, version):
            self.trust = msgspec.structs.replace(self.trust, version=version)

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
        if self._replacing.get(observation.name) == (observation.uid, observation.version):
            return False
        record, is_absent = self.store[observation.name], observation.state in ABSENT_STATES
        if record is not None and observation.uid == record.uid:
            is_expected = is_absent or observation.version == record.version
        else:
            is_expected = is_absent and (record is None or record.version != "")
        return not is_expected and is_older(observation.version, self.trust.version)

    def _apply_batch(self, batch: list[SourceEvent[ObservedObject]], now: Moment) -> Iterator[ObjectChanges | None]:
        changed: list[ObservedObject] = []
        for event in batch:
            match event:
                case ListStarted() | Listed() | Unlisted():
                    self._stage(event)
                    if self.store.weight.problem:
                        break
                case ListEnded() if self.store.weight.is_over_share and not self.store.weight.budget.has_shares:
                    self.store.weight.exceed()
                    break
                case ListEnded(version):
                    yield from self._end_list(version, now)
                    self.store.weight.list_ended()
                case _ if self.trust.doubt and self.trust.is_ignoring:
                    pass  # the watch follows a list that was ignored
                case ObjectChanged(observation):
                    if self._accepts(observation):
                        changed.append(observation)
                case DeletionReported(name, uid, namespace, version):
                    self._follow_to(version)
                    # The changes before this event decide which UID has the name, so apply them first.
                    yield from self._apply_watched(changed)
                    changed = []
                    deleted = self._report_deletion(self._keys.key(namespace, name), uid, now)
                    if deleted:
                        yield self._unlisted_changes(deleted)
                case VersionReached(version):
                    self._follow_to(version)
                case _:
                    pass  # Relisting and EventIgnored change no object
        yield from self._apply_watched(changed)

    def _apply_watched(self, changed: list[ObservedObject]) -> Iterator[ObjectChanges]:
        if changed:
            self._follow_to(changed[-1].version)
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
        if self.pending_deletions.doubted:
            if is_held_back(observation, self.store, self.pending_deletions):
                return False
            if self.store.is_news(observation):
                self.pending_deletions.discard(observation.name)
        return True

    # --- the end of a list ---

    def _end_list(self, version: str, now: Moment) -> Iterator[ObjectChanges | None]:
        """Apply the list, which is complete now, as far as it is believed."""
        before, compared, verdict = yield from self._judge_list(version, now.steady)
        if verdict is Verdict.IGNORE:
            yield from self._list.drop_staged(OBJECTS_PER_STEP)
            self._list.drop()
            return
        yield from self._apply_differences()
        for doubted in in_steps([*self.pending_deletions.doubted]):
            self.pending_deletions.discard_all(self._list.uids.keys() & doubted)
            yield None
        self._replacing = compared.replacing
        yield from self._apply_missing(compared, now)
        self._positions.end_list(self.number)
        unconfirmed, places, removals = dict.fromkeys(compared.announced), count(), compared.judged
        if verdict in (Verdict.CONFIRM_AT_RATE, Verdict.CONFIRM_HELD_AT_RATE):
            removals = in_turns(removals, lambda removal: self.store.owner(removal[0]))
        for step in in_steps(removals):
            judged = self._still_present(step)
            self._apply_verdict(verdict, judged, now.steady, places)
            unconfirmed.update([(name, None) for name, _ in judged])
            yield None
        self._list.drop()
        self.lists += 1
        is_first = isinstance(before.basis, Stored) or verdict is Verdict.CONFIRM_AT_RATE
        if is_first and isinstance(self.trust.basis, Unverified):
            self._unconfirmed = unconfirmed

    def _judge_list(self, version: str, now: float) -> Generator[None, None, tuple[Trust, Comparison, Verdict]]:
        """Compare the list with the known objects, judge it, and leave out what is not believed. Return the trust
        before the list as well. Until then, no read changes these objects."""
        self._list.is_compared, held_since = True, now - self._limits.verify_after_s
        try:
            while True:
                before = self.trust
                compared = yield from compare(
                    self._list, self.store, self.pending_deletions, before, version=version, held_since=held_since
                )
                if self.trust is before:
                    break  # otherwise an administrator has accepted the list meanwhile
            self.trust, verdict = judge(before, compared.facts, self._limits, now)
            if verdict is not Verdict.IGNORE:
                for regressed in in_steps(compared.regressed.items()):
                    for name, listed_version in regressed:  # the known states are newer
                        self._list.remove(name)
                        self.store.set_version(name, listed_version)
                    yield
                for judged in in_steps(() if verdict is Verdict.CONFIRM else compared.judged):
                    self._list.remove_changes(name for name, _ in judged)
                    yield
            return before, compared, verdict
        finally:
            self._list.is_compared = False

    def _apply_differences(self) -> Iterator[ObjectChanges]:
        position: ObjectPosition | None = None
        for portion in self._list.portions(EVENTS_PER_STEP):
            position = position or self._positions.of_list()
            yield ObjectChanges(self.store.apply_listed(portion), position)

    def _still_present(self, objects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name, uid) for name, uid in objects if self.store.is_present(name, uid)]

    def _apply_missing(self, compared: Comparison, now: Moment) -> Iterator[ObjectChanges | None]:
        """Record which objects the list lacks. Confirm the deletions that do not count towards a mass removal: those of
        objects that no subscriber knows, or whose deletion was announced.

        Objects that no longer exist are left out: the list replaced them, or a read between two steps confirmed their
        deletion. The versions of a server that was restored are lower than before.
        """
        is_lowered = compared.facts.is_behind or compared.facts.regressed
        for step in in_steps(compared.missing):
            missing, changes = self._still_present(step), list[ObjectChange]()
            self.store.set_missing((name for name, _ in missing), is_missing=True)
            for name, uid in missing:
                if is_lowered and name not in compared.regressed:
                    self.store.set_version(name, "")
                if name in compared.announced or not self.store.is_established(name):
                    changes += self._confirm(name, uid, now)
            yield self._unlisted_changes(changes)
        for again in in_steps([*self.store.missing]):
            self.store.set_missing(self._list.uids.keys() & again & self.store.missing, is_missing=False)
            yield None
        self.store.end_list()

    def _apply_verdict(
        self, verdict: Verdict, judged: Iterable[tuple[str, str]], now: float, places: Iterator[int]
    ) -> None:
        """`places` counts the objects that are confirmed at a limited rate."""
        is_final, doubt = verdict is Verdict.HOLD_UNTIL_ACCEPTED, self.trust.doubt
        message = OLDER_SERVER if doubt is None else doubt.message
        pending, held_since = self.pending_deletions, now - self._limits.verify_after_s
        for name, uid in judged:
            is_second = verdict is Verdict.CONFIRM_HELD_AT_RATE and pending.is_kept_since(name, held_since)
            if verdict is Verdict.CONFIRM:
                pending.add(name, uid, now, tenant=self.store.owner(name))
            elif verdict is Verdict.CONFIRM_AT_RATE or is_second:
                confirm_at = now + next(places) / self._limits.per_second
                pending.add(name, uid, now, tenant=self.store.owner(name), confirm_at=confirm_at)
            else:
                pending.hold(name, uid, now, message, until_accepted=is_final)

    def accept(self, now: float) -> bool:
        """Accept the next list, which ends the hold of removals. Return whether removals are held."""
        self.trust = verify_soon(self.trust, now)
        if self.held is None:
            return False
        self.trust = msgspec.structs.replace(self.trust, accepted_at=now)
        return True

    # --- deletions ---

    def _still_exists(self, settled: ConfirmedDeletion | ObservedObject | None) -> bool:
        if settled is None or isinstance(settled, ConfirmedDeletion) or settled.state in ABSENT_STATES:
            return False
        record = self.store[settled.name]
        return record is not None and settled.uid in ("", record.uid)

    def _report_deletion(self, name: str, uid: str, now: Moment) -> list[ObjectChange]:
        record = self.store[name]
        if record is None or record.state is ObjectState.DELETED or uid not in ("", record.uid):
            return []
        held, is_expected = None, self.pending_deletions.is_doubted(name) or record.is_terminating
        if record.is_established and not is_expected:
            held = self._judge_deletion(record.owner, now.steady)
        if held is None:
            return self._confirm(name, record.uid, now)
        self.pending_deletions.hold(name, record.uid, now.steady, held)
        return []

    def _judge_deletion(self, tenant: str, now: float) -> str | None:
        """Return why to hold the deletion of an established object that the watch reported; None if it is confirmed."""
        recent, engaged = self._recent_deletions.report(tenant, now), self.store.established_count
        self.trust, held = judge_deletion(self.trust, recent, engaged, self._limits, now)
        return held

    def _confirm(self, name: str, uid: str, now: Moment) -> list[ObjectChange]:
        if not self._keys.can_be_read(name):
            # An object with an invalid name cannot be read, and was never engaged: no subscriber knows it.
            return self.store.apply_read(ConfirmedDeletion(name, uid))
        self.pending_deletions.add(name, uid, now.steady, tenant=self.store.owner(name))
        return []
