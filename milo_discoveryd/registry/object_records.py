"""The objects that the source reported, by cluster name."""

from collections.abc import Container, Iterable, Iterator

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready, Refused, Withdrawn
from milo_discoveryd.registry.cluster_records import ClusterRecord, ObjectState
from milo_kube.reflect.versions import is_older

# Tuples: faster than a set, because members of an Enum are slow to hash.
_ABSENT = (ObjectState.DELETED, ObjectState.OUTSIDE, ObjectState.REFUSED)
"""States of objects that a list within the selector does not contain."""
_FORGETTABLE = (*_ABSENT, ObjectState.WITHDRAWN)
"""States in which only a limited number of records is kept."""
OBJECT_READY = (ObjectState.READY, ObjectState.UNREACHABLE, ObjectState.UNASSIGNED)
ABSENT_RECORDS_KEPT = 10_000
STATES = {
    NotReady: ObjectState.NOT_READY,
    Withdrawn: ObjectState.WITHDRAWN,
    Outside: ObjectState.OUTSIDE,
    Refused: ObjectState.REFUSED,
    Malformed: ObjectState.MALFORMED,
}


class ObjectRecords:
    """The known state of each object, and comparisons of observations with it."""

    def __init__(self) -> None:
        self._records: dict[str, ClusterRecord] = {}
        self._absent: dict[str, None] = {}
        """Names of absent objects, oldest first. The latest are kept to explain why a cluster is not engaged."""
        self._counts = dict.fromkeys(ObjectState, 0)

    def clear(self) -> None:
        """Drop all records. Only allowed before anything was published."""
        self._records.clear()
        self._absent.clear()
        self._counts = dict.fromkeys(ObjectState, 0)

    def __getitem__(self, name: str) -> ClusterRecord | None:
        return self._records.get(name)

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        return iter(self._records.items())

    def count(self, state: ObjectState) -> int:
        return self._counts[state]

    def clusters(self) -> Iterator[Cluster]:
        return (record.cluster for record in self._records.values() if record.cluster is not None)

    def records(self) -> Iterator[ClusterRecord]:
        return iter(self._records.values())

    def present(self) -> Iterator[tuple[str, str]]:
        """Yield the names and UIDs that a complete list within the selector should contain."""
        return ((name, record.uid) for name, record in self._records.items() if record.state not in _ABSENT)

    def missing_from(self, listed: Container[str]) -> list[tuple[str, str]]:
        """Return the names and UIDs that a complete list within the selector should contain, but does not."""
        # Test the membership first: nearly all objects are listed.
        return [
            (name, record.uid)
            for name, record in self._records.items()
            if name not in listed and record.state not in _ABSENT
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
            return record.state not in OBJECT_READY or record.target != listed.target
        return record.state is not STATES[type(listed)]

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

    def _was_engaged(self, seen: Ready) -> bool:
        """Return whether this object, and not another one of the same name, is or was engaged."""
        record = self._records.get(seen.name)
        return record is not None and record.latest is not None and record.latest.object_uid == seen.uid

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

    def _record(self, seen: Observation, state: ObjectState, now: Moment) -> ClusterRecord:
        """Return the record of the observed object, in that state."""
        message = "" if isinstance(seen, Ready) else seen.message
        record = self._records.get(seen.name)
        if record is None:
            record = ClusterRecord(uid=seen.uid, version=seen.version, state=state, since=now.wall)
            self._records[seen.name] = record
            self._counts[state] += 1
            self._note_absent(seen.name, state)
        elif record.state is not state or self._replaced_by(seen):
            self._move(seen.name, record, state, now)
        record.uid, record.version, record.message = seen.uid or record.uid, seen.version, message
        record.present = seen.fields if isinstance(seen, NotReady | Withdrawn | Outside) else None
        return record

    def _move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state, record.since = state, now.wall
        self._note_absent(name, state)

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
        self._counts[self._records.pop(name).state] -= 1

    def _forget_versions(self, missing: Iterable[str]) -> None:
        for name in (*self._absent, *missing):
            self._records[name].version = ""
