"""The known state of a source's objects, and comparisons of observations with it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.registry.object_budget import CollectionWeight, ObjectBudget, weigh
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_kube.reflect.versions import is_older

# Tuples: faster than a set, because members of an Enum are slow to hash.
_ABSENT = tuple(state for state, meaning in MEANINGS.items() if meaning.is_absent)
_FORGETTABLE = tuple(state for state, meaning in MEANINGS.items() if meaning.is_forgettable)
OBJECT_READY = tuple(state for state, meaning in MEANINGS.items() if meaning.is_ready)
ABSENT_RECORDS_KEPT = 10_000


class Record(Protocol):
    """The known state of one object."""

    uid: str
    version: str
    state: ObjectState
    since: float
    message: str
    weight: int
    """What the record counts in the budget of its source."""
    is_established: bool
    """Whether the object was ready at least once since it appeared under its UID. The guard against mass removal counts
    such objects."""

    @property
    def engaged(self) -> bool:
        """Whether the object is in use: its cluster is engaged, or its claims are valid."""

    @property
    def is_terminating(self) -> bool:
        """Whether the deletion of the object was requested when it was last seen in use."""

    @property
    def kept(self) -> Any:
        """What is kept of the object, besides its state."""

    def describes(self, target: Any) -> bool:
        """Return whether the object is in use, or known, with that target."""


R = TypeVar("R", bound=Record)
Change = TypeVar("Change")


class KnownObjects(ABC, Generic[R, Change]):
    """The known state of each object, by key, and comparisons of observations with it."""

    def __init__(self, weight: CollectionWeight | None = None) -> None:
        self.weight = weight or CollectionWeight(ObjectBudget())
        self._records: dict[str, R] = {}
        self._absent: dict[str, None] = {}
        """Keys of absent objects, oldest first. The latest are kept to explain why a cluster is not engaged."""
        self._counts = dict.fromkeys(ObjectState, 0)
        self._engaged = 0
        self.established_count = 0
        """The number of objects that were ready at least once since they appeared under their UID."""
        self.outdated = 0
        """The number of observations that were dropped because a later one of the same object came first."""

    @property
    def engaged(self) -> int:
        """The number of objects in use."""
        return self._engaged

    @property
    def present_count(self) -> int:
        """The number of objects that a complete list within the selector should contain."""
        return len(self._records) - sum(map(self._counts.__getitem__, _ABSENT))

    @abstractmethod
    def restore(self, seen: Ready, engaged_at: float, now: Moment) -> list[Change]:
        """Apply an object of an earlier run. Only allowed before anything was published."""

    @abstractmethod
    def _new(self, seen: Observation, state: ObjectState, now: Moment) -> R: ...

    @abstractmethod
    def _observed(self, seen: Observation, now: Moment, *, listed: bool) -> list[Change]: ...

    @abstractmethod
    def _delete(self, deleted: ConfirmedDeletion, now: Moment) -> list[Change]: ...

    def commit(
        self,
        observed: Iterable[Observation | ConfirmedDeletion],
        now: Moment,
        *,
        consistent: bool = False,
        listed: bool = False,
    ) -> list[Change]:
        """Apply observations in order, and return what changed.

        The result of a `consistent` read (a list, or a read of one object) is applied whatever version was seen
        before: after a restore from a backup, versions go back. `listed` objects are of the list that is being read.
        Nothing more is applied after an object that exceeds the budget of the source: see `CollectionWeight.problem`.
        """
        changes: list[Change] = []
        for item in observed:
            if isinstance(item, ConfirmedDeletion):
                changes += self._delete(item, now)
            elif not consistent and self._is_outdated(item):
                self.outdated += 1
            else:
                weight = self.weight_of(item)
                if not consistent and not self.weight.fits(weight - self._known_weight(item.name)):
                    break
                changes += self._observed(item, now, listed=listed)
                self._set_weight(item.name, weight)
        return changes

    def list_ended(self, missing: Iterable[str] = ()) -> None:
        """Record that a complete list was committed. Versions of absent objects are no longer compared: see `commit`.

        The same holds for objects `missing` from a list of an earlier version: the next object of such a name has a
        version below the known one.
        """
        for name in (*self._absent, *missing):
            self._records[name].version = ""

    def __getitem__(self, name: str) -> R | None:
        return self._records.get(name)

    def items(self) -> Iterator[tuple[str, R]]:
        return iter(self._records.items())

    def count(self, state: ObjectState) -> int:
        return self._counts[state]

    def records(self) -> Iterator[R]:
        return iter(self._records.values())

    def weight_of(self, seen: Observation) -> int:
        """Return what the object counts once it is applied."""
        if isinstance(seen, Ready):
            return weigh(seen.target)
        record = self._records.get(seen.name)
        return weigh((seen, None if record is None else self._kept_beside(seen, record)))

    def _kept_beside(self, seen: Observation, record: R) -> Any:
        """Return what is kept of the object's former state once an observation that is not Ready is applied."""
        return record.kept

    def _known_weight(self, name: str) -> int:
        record = self._records.get(name)
        return 0 if record is None else record.weight

    def _set_weight(self, name: str, weight: int) -> None:
        record = self._records[name]
        self.weight.add(weight - record.weight)
        record.weight = weight

    def forget_weight(self, names: Iterable[str]) -> None:
        """Stop counting objects that a list lacks. One that exists counts again when it is seen."""
        for name in names:
            self._set_weight(name, 0)

    def present(self) -> Iterator[tuple[str, str]]:
        """Yield the names and UIDs that a complete list within the selector should contain."""
        return ((name, record.uid) for name, record in self._records.items() if record.state not in _ABSENT)

    def missing_from(self, listed: Mapping[str, object]) -> list[tuple[str, str]]:
        """Return the names and UIDs that a complete list within the selector should contain, but does not."""
        unlisted = self._records.keys() - listed.keys()  # nearly always empty, and much faster than a loop
        if not unlisted:
            return []
        return [
            (name, record.uid)
            for name, record in self._records.items()
            if name in unlisted and record.state not in _ABSENT
        ]

    def is_present(self, name: str, uid: str) -> bool:
        record = self._records.get(name)
        return record is not None and record.uid == uid and record.state not in _ABSENT

    def would_change(self, listed: Observation) -> bool:
        record = self._records.get(listed.name)
        if record is None or record.state in _ABSENT:
            return True
        if (record.uid, record.version) != (listed.uid, listed.version):
            return True
        # After a restore from a backup, the server may use a version again for another state.
        if isinstance(listed, Ready):
            return record.state not in OBJECT_READY or not record.describes(listed.target)
        return record.state is not listed.state

    def is_news(self, seen: Observation) -> bool:
        """Return whether an observation is newer than the known state, and not a repetition of it."""
        return self.would_change(seen) and not self._is_outdated(seen)

    def is_older_than_known(self, seen: Observation) -> bool:
        record = self._records.get(seen.name)
        return record is not None and is_older(seen.version, record.version)

    def set_version(self, name: str, version: str) -> None:
        """Record that the source now has the object at that version, without applying its state."""
        self._records[name].version = version

    def is_engaged(self, name: str) -> bool:
        record = self._records.get(name)
        return record is not None and record.engaged

    def is_established(self, name: str) -> bool:
        """Return whether the object was ready at least once since it appeared under its UID."""
        record = self._records.get(name)
        return record is not None and record.is_established

    def is_terminating(self, name: str) -> bool:
        """Return whether an object in use was last seen with a requested deletion."""
        record = self._records.get(name)
        return record is not None and record.is_terminating

    def _replaced_by(self, seen: Observation) -> str:
        """Return the message for another object of the same name, or "" if it is, or may be, the known object."""
        record = self._records.get(seen.name)
        if record is None or seen.uid in ("", record.uid):
            return ""
        return f"the name now belongs to another object: UID {seen.uid}, previously {record.uid or 'unknown'}"

    def _is_outdated(self, seen: Observation) -> bool:
        record = self._records.get(seen.name)
        if record is None:
            return False
        if seen.version == record.version and seen.uid == record.uid:
            return record.state is ObjectState.DELETED  # repeated after the deletion was confirmed
        return is_older(seen.version, record.version)

    def _record(self, seen: Observation, state: ObjectState, now: Moment) -> R:
        """Return the record of the observed object, in that state."""
        name, message = seen.name, "" if isinstance(seen, Ready) else seen.message
        record, is_replaced = self._records.get(name), bool(self._replaced_by(seen))
        if record is None:
            record = self._records[name] = self._new(seen, state, now)
            self._counts[state] += 1
            self._note_absent(name, state)
        elif record.state is not state or is_replaced:
            self._move(name, record, state, now)
        is_established = isinstance(seen, Ready) or (record.is_established and not is_replaced)
        self._establish(record, is_established=is_established and state not in _ABSENT)
        record.uid, record.version, record.message = seen.uid or record.uid, seen.version, message
        return record

    def _move(self, name: str, record: R, state: ObjectState, now: Moment) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state, record.since = state, now.wall
        self._note_absent(name, state)
        if state is ObjectState.DELETED:
            self._establish(record, is_established=False)

    def _establish(self, record: R, *, is_established: bool) -> None:
        self.established_count += is_established - record.is_established
        record.is_established = is_established

    def _note_absent(self, name: str, state: ObjectState) -> None:
        self._absent.pop(name, None)
        if state in _FORGETTABLE:
            self._absent[name] = None
            if len(self._absent) > ABSENT_RECORDS_KEPT:
                self._drop(next(iter(self._absent)))

    def _keep(self, name: str) -> None:
        """Keep a record: only absent ones are dropped, oldest first."""
        self._absent.pop(name, None)

    def _drop(self, name: str) -> None:
        del self._absent[name]
        record = self._records.pop(name)
        self.weight.add(-record.weight)
        self._establish(record, is_established=False)
        self._counts[record.state] -= 1
