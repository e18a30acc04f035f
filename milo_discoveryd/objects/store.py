"""The known states of the objects of one collection, by key, and comparisons of observations with them.

Each change has a position in the order in which the daemon observed objects, across all sources. The objects of one
list share a position, because none of them is known to be earlier; so do the objects of all first lists of a source.
After these lists, each change that a watch or a read shows gets the next position.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import filterfalse
from sys import getsizeof
from typing import Any

import msgspec

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.contributions import ContributingObject, ObjectContent, ObservedObject
from milo_discoveryd.model.object_state import (
    ABSENT_STATES,
    FORGETTABLE_RECORDS_KEPT,
    FORGETTABLE_STATES,
    REPORTED_STATES,
    ObjectState,
)
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.objects.budget import (
    MARKERS,
    OVER_BUDGET_RETRY_S,
    ObjectBudget,
    least_marker,
    marker,
    over_budget_problem,
)
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_kube.reflect.versions import is_older

RESTORED_POSITION = 0
"""The position of objects from an earlier run of the daemon: before all other positions."""
OBJECT_OVERHEAD = 1024
"""Weight of each object in addition to its content, in bytes: with that, the small objects of an engaged cluster weigh
what they take in memory."""
_USUAL_FRAME = 512
"""The size up to which a frame is part of the overhead."""
CONTRIBUTION_OVERHEAD = 2560
"""Weight of each cluster to which an object contributes, in addition: the contribution, the cluster and its claims have
their own strings, and nearly every such cluster is probed at a host of its own."""
NEED_OVERHEAD = 512
"""Weight of each other object that a contribution needs, in addition."""
_FREE_PAIRS = 2
PAIR_OVERHEAD = 160
"""Weight of each label or annotation beyond the first `_FREE_PAIRS`, in addition to its content, in bytes: a tuple and
two strings."""
_PAIR = b'["'
"""The beginning of a pair of strings in JSON."""
_GRAIN = 16
_USUAL = tuple(range(0, 8192, _GRAIN))
"""The usual weights. Records of equal weight share one of these int objects, to save memory."""
_encode = msgspec.json.Encoder(enc_hook=repr).encode
Weighed = tuple[ObservedObject, int, str]
"""An observation, its weight in the budget, and the tenant to which that belongs."""


class ObjectPosition(msgspec.Struct, frozen=True, gc=False):
    """The position of a batch of changes."""

    number: int
    is_shared: bool = True
    """Whether all objects of the batch share this position. Otherwise each object takes the next number."""
    is_first: bool = False
    """The objects are from the first lists of their source, so they may be older than their position."""

    def number_at(self, index: int) -> int:
        """Return the position of one object of the batch."""
        return self.number if self.is_shared else self.number + index


class Positions:
    """A counter of positions, shared by all sources."""

    def __init__(self) -> None:
        self._latest = RESTORED_POSITION

    def take_next(self, count: int = 1) -> int:
        """Return the first of `count` new positions."""
        first = self._latest + 1
        self._latest += count
        return first


class SourcePositions:
    """Assigns positions to the lists and the changes of one source."""

    def __init__(self, positions: Positions, collections: Iterable[int]) -> None:
        self._positions = positions
        self._unlisted = {*collections}
        """The collections of which this run has not applied a complete list yet."""
        self._of_first_lists: ObjectPosition | None = None

    def end_list(self, collection: int) -> None:
        """Record that a complete list of a collection was applied."""
        self._unlisted.discard(collection)

    @property
    def of_first_lists(self) -> ObjectPosition:
        if self._of_first_lists is None:
            self._of_first_lists = ObjectPosition(self._positions.take_next(), is_first=True)
        return self._of_first_lists

    def of_list(self) -> ObjectPosition:
        return self.of_first_lists if self._unlisted else ObjectPosition(self._positions.take_next())

    def of_changes(self, count: int) -> ObjectPosition:
        if self._unlisted:
            return self.of_first_lists
        return ObjectPosition(self._positions.take_next(count), is_shared=False)


class CollectionWeight:
    """The weights of one collection's objects in the budget: sums that each change adjusts.

    While a list is in progress, it counts instead of the known objects, so that a source at its limit recovers with a
    shorter list.
    """

    def __init__(self, budget: ObjectBudget) -> None:
        self.budget = budget
        budget.add_collection(self)
        self.by_owner: dict[str, int] = {}
        self._known = self._kept = 0
        self.known_by_owner = self.by_owner
        self.names: dict[str, str] = {}
        """One instance of the name of each tenant, which saves memory."""
        self._listed: int | None = None
        self._kept_with_list = 0
        """The weight of all objects, and what the list in progress adds to it."""
        self._left_out = 0
        """The weight of the objects that the list in progress leaves out, without their content."""
        self.problem = ""
        """Why an object exceeded the budget; empty if none has since the start of the last list."""
        self.is_over_share = False
        """Whether an object exceeded the share of its tenant since the start of the last list."""
        self.relist_at: float | None = None
        """When to list again because of that."""

    @property
    def used(self) -> int:
        return self._known if self._listed is None else self._listed

    def fits(self, owner: str, more_used: int, more_kept: int) -> bool:
        """Return whether the budget has room for more weight of a tenant's objects."""
        budget = self.budget
        is_below = more_used <= 0 or budget.used + more_used <= budget.limit
        has_room = more_kept <= 0 or budget.of_all.kept + more_kept <= budget.most_kept
        if is_below and (has_room or budget.is_reserved(more_kept)):
            return True
        return budget.fits_share(owner, more_used, more_kept)

    def fits_marker(self, more_used: int, more_kept: int, *, is_new: bool) -> bool:
        """Return whether there is room for a marker. Those that a list adds leave room for the known ones."""
        if is_new and self._listed is not None:
            more_used += self.known_by_owner.get(MARKERS, 0)
        return self.budget.fits_marker(more_used, more_kept)

    def leave_out(self, owner: str, weight: int) -> bool:
        """Return whether to leave out a new object, for which there is not even room as a marker."""
        if self._listed is not None:
            self._left_out += OBJECT_OVERHEAD
            if not self.budget.leaves_out(self._left_out):
                return False
        return self.budget.is_beyond_share(owner, weight)

    def add(self, owner: str, more_used: int, more_kept: int) -> None:
        """Add a change in the weight of the known objects."""
        self._known += more_used
        self._kept += more_kept
        if by_owner := self.known_by_owner.get(owner, 0) + more_used:
            self.known_by_owner[owner] = by_owner
        else:
            self.known_by_owner.pop(owner, None)
            self.names.pop(owner, None)
        if self._listed is None:
            budget = self.budget
            budget.used += more_used
            budget.kept += more_kept
            budget.of_all.kept += more_kept
            budget.changed += abs(more_used)

    def list_started(self) -> None:
        if self._listed is not None:
            self.list_ended()  # the previous list was not completed
        self.budget.add(-self._known, 0)
        self._listed, self._kept_with_list, self.by_owner, self.names = 0, self._kept, {}, {}
        self._left_out = 0
        self.problem, self.is_over_share, self.relist_at = "", False, None

    def add_listed(self, owner: str, weight: int, more_kept: int) -> None:
        """Add the weight of an object to the list in progress."""
        assert self._listed is not None, "no list was started"
        self._listed += weight
        self._kept_with_list += more_kept
        self.by_owner[owner] = self.by_owner.get(owner, 0) + weight
        budget = self.budget
        budget.used += weight
        budget.kept += more_kept
        budget.of_all.kept += more_kept
        budget.changed += weight

    def add_unchanged(self, owner: str, weight: int) -> None:
        """Add the weight of a known object to the list in progress."""
        if self.budget.used + weight > self.budget.limit:
            self.is_over_share |= not self.fits(owner, weight, 0)
        self.add_listed(owner, weight, 0)

    def list_again(self, now: float) -> None:
        if self.relist_at is None:
            self.relist_at = now + OVER_BUDGET_RETRY_S

    def exceed(self) -> None:
        """Record that the source exceeds its budget."""
        self.problem = over_budget_problem(self.budget.limit)

    def list_ended(self) -> None:
        assert self._listed is not None, "no list was started"
        self.budget.add(self._known - self._listed, self._kept - self._kept_with_list)
        self._listed, self.by_owner = None, self.known_by_owner


class ObjectRecord(msgspec.Struct, kw_only=True, gc=False):
    """The known state of one object."""

    uid: str
    version: str
    state: ObjectState
    content: Target | ObjectContent | None = None
    """The cluster or `ObjectContent` that the object describes while it is ready; a malformed object keeps the last
    one. None in all other states, or if unknown."""
    message: str = ""
    weight: int = 0
    """The record's weight in the memory budget of its source, in bytes."""
    owner: str = ""
    """The tenant of the object in that budget; `MARKERS` if only a marker is kept."""
    is_established: bool = False
    """Whether the object was ready at least once since it appeared within the selector, under its UID. The guard
    against mass removal counts such objects."""
    is_terminating: bool = False
    """Whether the deletion of the object was requested when it was last seen ready."""


class ObjectChange(msgspec.Struct, frozen=True, gc=False):
    """An observation that was applied, with the content of the object before and after it."""

    key: str
    uid: str
    version: str
    before: Any
    after: Any
    state: Observation | ConfirmedDeletion | None
    """The state of the cluster that the object is; None if the object contributes to clusters."""
    is_replaced: bool = False
    """A different object now has the key."""
    is_newly_reported: bool = False
    """The object became malformed or refused, a state whose `StateMeaning.is_reported` is set."""


class ObjectChanges(msgspec.Struct, frozen=True, gc=False):
    """Changes in order, with the position of the objects."""

    changes: list[ObjectChange]
    position: ObjectPosition


class ObjectStore:
    def __init__(self, weight: CollectionWeight | None = None) -> None:
        self.weight = weight or CollectionWeight(ObjectBudget())
        self.established_count = 0
        self.outdated = 0
        """The number of observations that were dropped because a newer one of the same object had been applied."""
        self.applied = 0
        """The number of observations that were applied."""
        self._records: dict[str, ObjectRecord] = {}
        self._absent: dict[str, None] = {}
        """Keys of absent objects, oldest first."""
        self._missing: set[str] = set()

    # --- changes ---

    def apply_watched(self, observed: Iterable[ObservedObject]) -> list[ObjectChange]:
        """Apply observations of a watch in order, and return what they changed.

        Nothing more is applied after an object that exceeds the budget of the source: see `CollectionWeight.problem`.
        """
        changes: list[ObjectChange] = []
        for observation in observed:
            if self._is_outdated(observation, self._records.get(observation.name)):
                self.outdated += 1
                continue
            admitted = self.admit(observation)
            if admitted is not None:
                changes.append(self._put(*admitted))
            elif self.weight.problem:
                break
        return changes

    def apply_listed(self, listed: Iterable[Weighed]) -> list[ObjectChange]:
        """Apply observations of a list, with their weights, regardless of the versions that were seen before: after a
        restore from a backup, versions go back.
        """
        return [self._put(*weighed) for weighed in listed]

    def apply_read(self, settled: ObservedObject | ConfirmedDeletion) -> list[ObjectChange]:
        """Apply the result of a consistent read of one object, regardless of the version that was seen before.

        The known state of the object is kept if the state that was read exceeds the budget of the source.
        """
        if isinstance(settled, ConfirmedDeletion):
            return self._delete(settled)
        admitted = self.admit(settled)
        return [] if admitted is None else [self._put(*admitted)]

    def admit(self, observed: ObservedObject, *, is_listed: bool = False) -> Weighed | None:
        """Return what to apply of an observation, which may be part of the list in progress: all of it, or a marker if
        its tenant is over its share.

        Returns None if nothing is to be applied: a new object of such a tenant for which there is no room as a marker,
        or the source exceeds its budget (see `CollectionWeight.problem`).
        """
        record = self._records.get(observed.name)
        kept = 0 if record is None else record.weight
        used = 0 if is_listed or observed.name in self._missing else kept
        weight = _weight_of(observed, record)
        if record is not None and weight == used:
            return observed, weight, record.owner
        owner = self._owner_of(observed, record)
        if self.weight.fits(owner, weight - used, weight - kept):
            return observed, weight, owner
        if is_listed or self.weight.budget.has_others(owner):  # once the list is complete, its tenants are known
            self.weight.is_over_share = True
            marked = self._marked(observed, record, owner, used)
            if marked is not None or self.weight.leave_out(owner, weight):
                return marked
        self.weight.exceed()
        return None

    def _marked(self, observed: ObservedObject, record: ObjectRecord | None, owner: str, used: int) -> Weighed | None:
        """Return the marker of an object that is not taken; None if there is no room for it and the object is new."""
        marked = marker(observed, owner, self.weight.budget.limit)
        bare, kept = weigh(marked), 0 if record is None else record.weight
        is_marker = record is not None and record.owner is MARKERS
        if bare <= kept and not is_marker:
            return marked, kept, owner  # the record keeps its content
        if self.weight.fits_marker(bare - used if is_marker else bare, bare - kept, is_new=not is_marker):
            return marked, bare, MARKERS
        if record is None or record.state in ABSENT_STATES:
            return None
        return least_marker(marked), kept, record.owner

    def weighed(self, observed: ObservedObject) -> Weighed:
        """Return an observation with its weight in the memory budget once it is applied."""
        record = self._records.get(observed.name)
        return observed, _weight_of(observed, record), self._owner_of(observed, record)

    def _owner_of(self, observed: ObservedObject, record: ObjectRecord | None) -> str:
        owner = observed.name.rpartition("/")[0]
        if not owner and (fields := observed.fields) is not None:
            owner = fields.organization
        if not owner and record is not None and record.owner is not MARKERS:
            owner = record.owner
        return self.weight.names.setdefault(owner, owner)

    def end_list(self) -> None:
        """Record that a complete list was applied. Versions of absent objects are no longer compared: see
        `apply_listed`."""
        for name in self._absent:
            self._records[name].version = ""

    def set_version(self, name: str, version: str) -> None:
        """Record that the source now has the object at that version, without applying its state.

        An empty version is not compared: that of an object which is missing from a list whose version went back. The
        next object of its name may have a lower version than the known one.
        """
        self._records[name].version = version

    @property
    def missing(self) -> Set[str]:
        """Keys of the objects that are missing from the last list and were not seen since: see `ObjectBudget`."""
        return self._missing

    def set_missing(self, names: Iterable[str], *, is_missing: bool) -> None:
        """Record which objects are missing from a complete list that was applied, or are in it again."""
        for name in names:
            if (name in self._missing) is is_missing:
                continue
            record = self._records[name]
            self.weight.add(record.owner, -record.weight if is_missing else record.weight, 0)
            if is_missing:
                self._missing.add(name)
            else:
                self._missing.remove(name)

    def _put(self, observation: ObservedObject, weight: int, owner: str) -> ObjectChange:
        name, state, content = observation.name, observation.state, observation.content
        self.applied += 1
        record = self._records.get(name)
        is_newly_reported = state in REPORTED_STATES and (record is None or record.state is not state)
        if record is None:
            record = self._records[name] = ObjectRecord(uid=observation.uid, version=observation.version, state=state)
        is_ready, is_same = state is ObjectState.READY, observation.uid in ("", record.uid)
        before = record.content
        if (state is ObjectState.MALFORMED and is_same) or content == before:
            content = before  # which the cluster has as well
        if is_ready or not is_same:
            record.is_terminating = observation.is_terminating
        is_established = is_ready or (record.is_established and is_same and state not in ABSENT_STATES)
        if is_established is not record.is_established:
            self.established_count += is_established - record.is_established
            record.is_established = is_established
        record.state, record.content, record.version = state, content, observation.version
        record.uid, record.message = observation.uid or record.uid, observation.message
        if weight != record.weight or owner != record.owner or name in self._missing:
            self._set_weight(name, record, weight, owner)
        if not is_ready or name in self._absent:
            self._note_absent(name, state)
        cluster = None if isinstance(observation, ContributingObject) else observation
        uid, version = observation.uid, observation.version
        return ObjectChange(name, uid, version, before, content, cluster, not is_same, is_newly_reported)

    def _delete(self, deleted: ConfirmedDeletion) -> list[ObjectChange]:
        record = self._records.get(deleted.name)
        if record is None or record.uid != deleted.uid or record.state is ObjectState.DELETED:
            return []
        before = record.content
        record.state, record.content = ObjectState.DELETED, None
        self._forget_established(record)
        # The number of records of deleted objects is limited, but not the length of their names.
        self._set_weight(deleted.name, record, weigh(deleted) - OBJECT_OVERHEAD, record.owner)
        self._note_absent(deleted.name, record.state)
        return [ObjectChange(deleted.name, deleted.uid, "", before, None, deleted)]

    def _forget_established(self, record: ObjectRecord) -> None:
        self.established_count -= record.is_established
        record.is_established = False

    def _set_weight(self, name: str, record: ObjectRecord, weight: int, owner: str) -> None:
        counted, kept = 0 if name in self._missing else record.weight, record.weight
        self._missing.discard(name)
        if kept and owner != record.owner:
            self.weight.add(record.owner, -counted, -kept)
            counted = kept = 0
        self.weight.add(owner, weight - counted, weight - kept)
        record.weight, record.owner = weight, owner

    def _note_absent(self, name: str, state: ObjectState) -> None:
        self._absent.pop(name, None)
        if state in FORGETTABLE_STATES:
            self._absent[name] = None
            if len(self._absent) > FORGETTABLE_RECORDS_KEPT:
                self._drop(next(iter(self._absent)))

    def _drop(self, name: str) -> None:
        del self._absent[name]
        record = self._records.pop(name)
        self._set_weight(name, record, 0, record.owner)
        self._forget_established(record)

    # --- known state ---

    def __getitem__(self, name: str) -> ObjectRecord | None:
        return self._records.get(name)

    def items(self) -> Iterator[tuple[str, ObjectRecord]]:
        return iter(self._records.items())

    @property
    def present_count(self) -> int:
        """The number of objects that a complete list within the selector should contain."""
        return len(self._records) - sum(self._records[name].state in ABSENT_STATES for name in self._absent)

    def present(self) -> Iterator[tuple[str, str]]:
        """Yield the names and UIDs that a complete list within the selector should contain."""
        return ((name, record.uid) for name, record in self._records.items() if record.state not in ABSENT_STATES)

    def is_present(self, name: str, uid: str) -> bool:
        record = self._records.get(name)
        return record is not None and record.uid == uid and record.state not in ABSENT_STATES

    def is_established(self, name: str) -> bool:
        """Return `ObjectRecord.is_established`; False for an unknown object."""
        record = self._records.get(name)
        return record is not None and record.is_established

    def is_terminating(self, name: str) -> bool:
        """Return whether the deletion of an object was requested when it was last seen ready."""
        record = self._records.get(name)
        return record is not None and record.is_terminating

    def owner(self, name: str) -> str:
        """Return `ObjectRecord.owner`; empty for an unknown object."""
        record = self._records.get(name)
        return "" if record is None else record.owner

    # --- comparisons ---

    def sharing_content(self, listed: ObservedObject) -> ObservedObject:
        """Return an object of a list with the known content if that is equal: the first list after a restart has all
        objects of the state file again."""
        record = self._records.get(listed.name)
        if record is None or record.uid != listed.uid or listed.content is None or record.content != listed.content:
            return listed
        if isinstance(record.content, Target):
            return Ready(record.uid, listed.version, record.content)
        return msgspec.structs.replace(listed, content=record.content)

    def missing_from(self, listed: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """Yield the names and UIDs that a complete list within the selector should contain, but does not."""
        unlisted = filterfalse(listed.__contains__, self._records)  # usually empty; `filterfalse` is faster than a loop
        return ((name, self._records[name].uid) for name in unlisted if self._records[name].state not in ABSENT_STATES)

    def would_change(self, listed: ObservedObject) -> bool:
        """Return whether an object of a list differs from the known one, regardless of their versions.

        After a restore from a backup, the server may reuse a version for a different state.
        """
        record = self._records.get(listed.name)
        if record is None or record.state in ABSENT_STATES:
            return True
        if (record.uid, record.version) != (listed.uid, listed.version) or record.state is not listed.state:
            return True
        return record.state is ObjectState.READY and record.content != listed.content

    def is_news(self, observation: ObservedObject) -> bool:
        """Return whether an observation is newer than the known state, and not a repetition of it."""
        record = self._records.get(observation.name)
        return self.would_change(observation) and not self._is_outdated(observation, record)

    def is_older_than_known(self, observation: ObservedObject) -> bool:
        record = self._records.get(observation.name)
        return record is not None and is_older(observation.version, record.version)

    @staticmethod
    def _is_outdated(observation: ObservedObject, record: ObjectRecord | None) -> bool:
        if record is None:
            return False
        if observation.version == record.version and observation.uid == record.uid:
            return record.state is ObjectState.DELETED  # the last state, reported again after the deletion
        return is_older(observation.version, record.version)


def _weight_of(observation: ObservedObject, record: ObjectRecord | None) -> int:
    if type(observation) is ContributingObject:
        return weigh(observation.content, _contributions_weight(observation.content), has_frame=True)
    if observation.state is ObjectState.READY:
        return weigh(observation.content, has_frame=True)
    # The cluster of an object that is no longer ready is kept, so the weight of the object does not decrease.
    return weigh((observation, None)) if record is None else max(record.weight, weigh((observation, record.content)))


def _contributions_weight(content: ObjectContent) -> int:
    weight = 0
    for contribution in content.contributions:
        weight += CONTRIBUTION_OVERHEAD + NEED_OVERHEAD * len(contribution.needs)
    return weight


def weigh(content: Any, more: int = 0, *, has_frame: bool = False) -> int:
    """Return the object's weight in the memory budget, in bytes; `content` is what the daemon keeps of the object, and
    again in a frame of the change log if `has_frame`. `more` is added to the weight.

    It is rounded down to a multiple of `_GRAIN`.
    """
    encoded = _encode(content)
    size = len(encoded)
    if not encoded.isascii():
        # A single character can make a string take four bytes for each, and the string keeps the UTF-8 too.
        size += getsizeof(encoded.decode())
    if has_frame:
        size += max(0, len(encoded) - _USUAL_FRAME)
    grains = (OBJECT_OVERHEAD + more + size + PAIR_OVERHEAD * max(0, encoded.count(_PAIR) - _FREE_PAIRS)) // _GRAIN
    return _USUAL[grains] if grains < len(_USUAL) else grains * _GRAIN
