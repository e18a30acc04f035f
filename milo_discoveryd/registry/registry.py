"""What is wanted against what is engaged. `commit` is the one place where anything is engaged or disengaged.

With a grace for clusters that stop being ready, `due` is the other: it ends those that nothing brought back in time.
"""

import enum
from collections.abc import Callable, Iterable, Iterator

import msgspec

from milo_discoveryd.model.cluster import Cluster, Connectivity, ConnectivityState, DisengageReason
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready
from milo_discoveryd.reflect.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.log_entry import LogEntry


class ObjectState(enum.Enum):
    """Why a name is engaged or not, as far as its object goes."""

    READY = "ready"
    NOT_READY = "not_ready"
    OUTSIDE = "outside_selector"
    MALFORMED = "malformed"
    UNREACHABLE = "unreachable"
    """It is ready, and was given up for as long as it can't be reached."""
    GONE = "gone"


_ABSENT = (ObjectState.GONE, ObjectState.OUTSIDE)
"""No list within the selector holds these. Two are found sooner without a set: members of an Enum are slow to hash."""
_OBJECT_READY = (ObjectState.READY, ObjectState.UNREACHABLE)
"""Its object is ready."""


class Transition(msgspec.Struct, frozen=True):
    type: EventType
    at: float
    incarnation: int
    reason: DisengageReason | None = None
    message: str = ""


class ClusterRecord(LogEntry, kw_only=True, gc=False):
    """All that is known of a name."""

    uid: str
    version: str
    state: ObjectState
    since: float
    """When the state became what it is."""
    message: str = ""
    former: Cluster | None = None
    """As last engaged, where it no longer is."""
    grace_until: float | None = None
    """It isn't ready, and stays engaged until then all the same, in case it is again by then."""
    past: tuple[Transition, ...] = ()
    """Earlier transitions, oldest first; that to the present engagement can be told from the cluster itself."""

    @property
    def engaged(self) -> bool:
        return self.cluster is not None

    @property
    def latest(self) -> Cluster | None:
        """As engaged, or as last engaged."""
        return self.cluster or self.former

    @property
    def transitions(self) -> tuple[Transition, ...]:
        if self.cluster is None:
            return self.past
        return (*self.past, Transition(EventType.ENGAGED, self.cluster.engaged_at, self.cluster.incarnation))


TRANSITIONS_KEPT = 8
ABSENT_RECORDS_KEPT = 10_000


class Registry:
    def __init__(self, log: ChangeLog, not_ready_grace_s: float = 0.0) -> None:
        self.log = log
        self._grace_s = not_ready_grace_s
        self._records: dict[str, ClusterRecord] = {}
        self._elsewhere: dict[str, None] = {}
        """In the order they went, so that explanations are kept for the last of them."""
        self._held: dict[str, float] = {}
        """When to give up those that are held, soonest first: all are held for the same time."""
        self._counts = dict.fromkeys(ObjectState, 0)
        self._engaged = 0
        self.outdated = 0
        """Observations passed over because a later one under the same name had come before them."""

    def __getitem__(self, name: str) -> ClusterRecord | None:
        return self._records.get(name)

    @property
    def engaged(self) -> int:
        return self._engaged

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        """All that is known, by name."""
        return iter(self._records.items())

    def count(self, state: ObjectState) -> int:
        return self._counts[state]

    def clusters(self) -> Iterator[Cluster]:
        return (record.cluster for record in self._records.values() if record.cluster is not None)

    def records(self) -> Iterator[ClusterRecord]:
        return iter(self._records.values())

    def present(self) -> Iterator[tuple[str, str]]:
        """Names, and the UIDs under them, that a complete list within the selector should hold."""
        return ((name, record.uid) for name, record in self._records.items() if record.state not in _ABSENT)

    def is_present(self, name: str, uid: str) -> bool:
        record = self._records.get(name)
        return record is not None and record.uid == uid and record.state not in _ABSENT

    def would_change(self, listed: Observation) -> bool:
        record = self._records.get(listed.name)
        if record is None or record.state in _ABSENT:
            return True
        if (record.uid, record.version) != (listed.uid, listed.version):
            return True
        # After a restore upstream, a version may be used again, for something else.
        if isinstance(listed, Ready):
            return record.state not in _OBJECT_READY or record.latest is None or record.latest.target != listed.target
        return record.state is not _STATES[type(listed)]

    def is_news(self, seen: Observation) -> bool:
        """Neither a repetition of what is known nor something from before it."""
        return self.would_change(seen) and not self._is_outdated(seen)

    def commit(
        self, told: Iterable[Observation | ConfirmedDeletion], now: Moment, *, consistent: bool = False
    ) -> list[Event]:
        """Applies what was told, in order. Each change it makes has a revision of its own.

        What a `consistent` read showed (a list, a look at one object) stands, whatever version was seen before: after
        a restore upstream, versions go back.
        """
        done: list[Event] = []
        for item in told:
            if isinstance(item, ConfirmedDeletion):
                done += self._delete(item, now)
            elif not consistent and self._is_outdated(item):
                self.outdated += 1
            elif isinstance(item, Ready):
                done += self._ready(item, now)
            else:
                done += self._not_wanted(item, now)
        self.log.forget(now.steady)
        return done

    def list_ended(self, missing: Iterable[str] = ()) -> None:
        """A list was committed whole. Versions of what is elsewhere prove nothing any more: see `commit`.

        Nor do those of what is `missing` from a list of an earlier version: what takes such a name next comes with a
        version before the one that is known.
        """
        for name in (*self._elsewhere, *missing):
            self._records[name].version = ""

    @property
    def due_at(self) -> float | None:
        """When `due` will have something to end, on the steady clock."""
        return next(iter(self._held.values()), None)

    def due(self, now: Moment) -> list[Event]:
        """Ends what was held for long enough."""
        done: list[Event] = []
        for name in [name for name, until in self._held.items() if until <= now.steady]:
            record = self._records[name]
            done += self._end(record, DisengageReason.NOT_READY, record.message, now)
        return done

    def restore(self, seen: Ready, engaged_at: float, now: Moment) -> Event:
        """Engages what an earlier run of the daemon had engaged. Only before anything was published."""
        (done,) = self._ready(seen, Moment(engaged_at, now.steady))
        assert done.type is EventType.ENGAGED, "nothing else is known yet"
        return done

    def is_probed(self, name: str, incarnation: int) -> bool:
        """Whether it matters what probes find of that cluster."""
        record = self._records.get(name)
        return (
            record is not None
            and (record.engaged or record.state is ObjectState.UNREACHABLE)
            and record.latest is not None
            and record.latest.incarnation == incarnation
        )

    def probed(self, name: str, incarnation: int, connectivity: Connectivity, now: Moment) -> list[Event]:
        """What probes found of a cluster; of one that has been disengaged meanwhile it says nothing."""
        if not self.is_probed(name, incarnation):
            return []
        record = self._records[name]
        assert record.latest is not None, "it is probed"
        found = msgspec.structs.replace(record.latest, connectivity=connectivity)
        if found == record.latest:
            return []  # said again for what else the verdict says
        if record.engaged:
            self.log.update(record, found, now.steady)
            return [Event(EventType.UPDATED, found)]
        if connectivity.state is not ConnectivityState.REACHABLE:
            return []

        def make(revision: int) -> Cluster:
            return msgspec.structs.replace(found, engaged_at=now.wall, incarnation=revision)

        self._move(name, record, ObjectState.READY, now)
        record.message = ""
        return [self._engage(record, make)]

    def give_up(self, name: str, incarnation: int, message: str, now: Moment) -> Iterable[Event]:
        """It has been unreachable for long: it is disengaged until it is reached again, or is another."""
        record = self._records.get(name)
        if record is None or record.state is not ObjectState.READY or not self.is_probed(name, incarnation):
            return ()
        self._move(name, record, ObjectState.UNREACHABLE, now)
        record.message = message
        return self._end(record, DisengageReason.UNREACHABLE, message, now)

    def clear(self) -> None:
        """Forgets all. Only before anything was published."""
        self._records.clear()
        self._elsewhere.clear()
        self._held.clear()
        self._counts = dict.fromkeys(ObjectState, 0)
        self._engaged = 0
        self.log.clear()

    def _ready(self, seen: Ready, now: Moment) -> Iterable[Event]:
        def make(revision: int) -> Cluster:
            return Cluster(target=seen.target, source_version=seen.version, engaged_at=now.wall, incarnation=revision)

        if self._stays_given_up(seen):
            return ()
        replaced = self._replaced_by(seen)
        record = self._stand(seen, ObjectState.READY, now)
        before = record.cluster
        if before is None:
            return (self._engage(record, make),)
        if replaced:
            ended = _ended(record, before, DisengageReason.REPLACED, replaced, now)
            return (ended, Event(EventType.ENGAGED, self.log.replace(record, replaced, make, now.steady)))
        if seen.target == before.target:
            return ()
        cluster = msgspec.structs.replace(before, target=seen.target, source_version=seen.version)
        self.log.update(record, cluster, now.steady)
        return (Event(EventType.UPDATED, cluster),)

    def _stays_given_up(self, seen: Ready) -> bool:
        """It is what it was, and where it was: as unreachable as before."""
        record = self._records.get(seen.name)
        if record is None or record.state is not ObjectState.UNREACHABLE or seen.uid not in ("", record.uid):
            return False
        assert record.former is not None, "it was engaged before"
        if seen.target.endpoint != record.former.target.endpoint:
            return False
        record.version = seen.version
        record.former = msgspec.structs.replace(record.former, target=seen.target, source_version=seen.version)
        return True

    def _not_wanted(self, seen: NotReady | Outside | Malformed, now: Moment) -> Iterable[Event]:
        replaced = self._replaced_by(seen)
        record = self._stand(seen, _STATES[type(seen)], now)
        if replaced:
            return self._end(record, DisengageReason.REPLACED, replaced, now)
        if isinstance(seen, Malformed):
            return ()  # the cluster is kept as it last was
        if isinstance(seen, Outside):
            return self._end(record, DisengageReason.LABELS_CHANGED, seen.message, now)
        if record.engaged and self._grace_s:
            self._hold(seen.name, record, now)
            return ()
        return self._end(record, DisengageReason.NOT_READY, seen.message, now)

    def _delete(self, gone: ConfirmedDeletion, now: Moment) -> Iterable[Event]:
        record = self._records.get(gone.name)
        if record is None or record.uid != gone.uid or record.state is ObjectState.GONE:
            return ()
        self._move(gone.name, record, ObjectState.GONE, now)
        record.message = "the object is gone"
        return self._end(record, DisengageReason.DELETED, record.message, now)

    def _end(self, record: ClusterRecord, reason: DisengageReason, message: str, now: Moment) -> Iterable[Event]:
        cluster = record.cluster
        if cluster is None:
            return ()
        self._release(cluster.target.name, record)
        ended = _ended(record, cluster, reason, message, now)
        record.former = cluster
        self.log.disengage(record, reason, message, now.steady)
        self._engaged -= 1
        return (ended,)

    def _engage(self, record: ClusterRecord, make: Callable[[int], Cluster]) -> Event:
        record.former = None
        self._engaged += 1
        return Event(EventType.ENGAGED, self.log.engage(record, make))

    def _hold(self, name: str, record: ClusterRecord, now: Moment) -> None:
        if name not in self._held:
            self._held[name] = now.steady + self._grace_s
            record.grace_until = now.wall + self._grace_s

    def _release(self, name: str, record: ClusterRecord) -> None:
        self._held.pop(name, None)
        record.grace_until = None

    def _stand(self, seen: Observation, state: ObjectState, now: Moment) -> ClusterRecord:
        message = "" if isinstance(seen, Ready) else seen.message
        record = self._records.get(seen.name)
        if record is None:
            record = ClusterRecord(uid=seen.uid, version=seen.version, state=state, since=now.wall)
            self._records[seen.name] = record
            self._counts[state] += 1
            self._note_elsewhere(seen.name, state)
        elif record.state is not state or self._replaced_by(seen):
            self._move(seen.name, record, state, now)
        record.uid, record.version, record.message = seen.uid or record.uid, seen.version, message
        return record

    def _move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state, record.since = state, now.wall
        if state is not ObjectState.NOT_READY:
            self._release(name, record)
        self._note_elsewhere(name, state)

    def _note_elsewhere(self, name: str, state: ObjectState) -> None:
        self._elsewhere.pop(name, None)
        if state in _ABSENT:
            self._elsewhere[name] = None
            if len(self._elsewhere) > ABSENT_RECORDS_KEPT:
                oldest = next(iter(self._elsewhere))
                del self._elsewhere[oldest]
                self._counts[self._records.pop(oldest).state] -= 1

    def _replaced_by(self, seen: Observation) -> str:
        """What to say of another object under the same name; nothing where it is, or may be, the one that is known."""
        record = self._records.get(seen.name)
        if record is None or seen.uid in ("", record.uid):
            return ""
        return f"the name now belongs to another object: UID {seen.uid}, before {record.uid or 'unknown'}"

    def _is_outdated(self, seen: Observation) -> bool:
        record = self._records.get(seen.name)
        if record is None:
            return False
        if seen.version == record.version and seen.uid == record.uid:
            return record.state is ObjectState.GONE  # said again after it was certain
        return _is_before(seen.version, record.version)


def _ended(record: ClusterRecord, cluster: Cluster, reason: DisengageReason, message: str, now: Moment) -> Event:
    """Notes it as well: before the log does, while the record still says when it was engaged."""
    ended = Transition(EventType.DISENGAGED, now.wall, cluster.incarnation, reason, message)
    record.past = (*record.transitions, ended)[-TRANSITIONS_KEPT:]
    return Event(EventType.DISENGAGED, cluster, reason, message)


_STATES = {NotReady: ObjectState.NOT_READY, Outside: ObjectState.OUTSIDE, Malformed: ObjectState.MALFORMED}


def _is_before(one: str, other: str) -> bool:
    """Versions are opaque by the old rules and comparable by the new.

    Where they aren't numbers, the order in which they come is all there is. They may be longer than Python likes
    numbers to be, and have no leading zeros.
    """
    comparable = one.isdecimal() and other.isdecimal() and one.isascii() and other.isascii()
    return comparable and (len(one), one) < (len(other), other)
