"""What is wanted against what is engaged. `commit` is the one place where anything is engaged or disengaged.

With a grace for clusters that stop being ready, `due` is the other: it ends those that nothing brought back in time.
"""

import enum
from collections.abc import Callable, Iterable, Iterator

import msgspec

from milo_discoveryd.model.cluster import Cluster, Connectivity, ConnectivityState, DisengageReason
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready
from milo_discoveryd.reflect.deletions import Gone
from milo_discoveryd.registry.entry import Entry
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.log import ChangeLog


class Standing(enum.Enum):
    """Why a name is engaged or not, as far as its object goes."""

    READY = "ready"
    NOT_READY = "not_ready"
    OUTSIDE = "outside_selector"
    MALFORMED = "malformed"
    UNREACHABLE = "unreachable"
    """It is ready, and was given up for as long as it can't be reached."""
    GONE = "gone"


_ELSEWHERE = (Standing.GONE, Standing.OUTSIDE)
"""No list within the selector holds these. Two are found sooner without a set: members of an Enum are slow to hash."""
_WELL = (Standing.READY, Standing.UNREACHABLE)
"""Its object is ready."""


class Transition(msgspec.Struct, frozen=True):
    type: EventType
    at: float
    incarnation: int
    reason: DisengageReason | None = None
    message: str = ""


class Record(Entry, kw_only=True, gc=False):
    """All that is known of a name."""

    uid: str
    version: str
    standing: Standing
    since: float
    """When the standing became what it is."""
    message: str = ""
    former: Cluster | None = None
    """As last engaged, where it no longer is."""
    held_until: float | None = None
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


class Done(msgspec.Struct, frozen=True):
    """One engagement, update or disengagement that a commit made."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason | None = None
    message: str = ""


TRANSITIONS_KEPT = 8
ELSEWHERE_KEPT = 10_000


class Registry:
    def __init__(self, log: ChangeLog, not_ready_grace_s: float = 0.0) -> None:
        self.log = log
        self._grace_s = not_ready_grace_s
        self._records: dict[str, Record] = {}
        self._elsewhere: dict[str, None] = {}
        """In the order they went, so that explanations are kept for the last of them."""
        self._held: dict[str, float] = {}
        """When to give up those that are held, soonest first: all are held for the same time."""
        self._counts = dict.fromkeys(Standing, 0)
        self._engaged = 0
        self.outdated = 0
        """Observations passed over because a later one under the same name had come before them."""

    def __getitem__(self, name: str) -> Record | None:
        return self._records.get(name)

    @property
    def engaged(self) -> int:
        return self._engaged

    def items(self) -> Iterator[tuple[str, Record]]:
        """All that is known, by name."""
        return iter(self._records.items())

    def count(self, standing: Standing) -> int:
        return self._counts[standing]

    def clusters(self) -> Iterator[Cluster]:
        return (record.cluster for record in self._records.values() if record.cluster is not None)

    def records(self) -> Iterator[Record]:
        return iter(self._records.values())

    def present(self) -> Iterator[tuple[str, str]]:
        """Names, and the UIDs under them, that a complete list within the selector should hold."""
        return ((name, record.uid) for name, record in self._records.items() if record.standing not in _ELSEWHERE)

    def is_present(self, name: str, uid: str) -> bool:
        record = self._records.get(name)
        return record is not None and record.uid == uid and record.standing not in _ELSEWHERE

    def would_change(self, listed: Observation) -> bool:
        record = self._records.get(listed.name)
        if record is None or record.standing in _ELSEWHERE:
            return True
        if (record.uid, record.version) != (listed.uid, listed.version):
            return True
        # After a restore upstream, a version may be used again, for something else.
        if isinstance(listed, Ready):
            return record.standing not in _WELL or record.latest is None or record.latest.target != listed.target
        return record.standing is not _STANDINGS[type(listed)]

    def is_news(self, seen: Observation) -> bool:
        """Neither a repetition of what is known nor something from before it."""
        return self.would_change(seen) and not self._is_outdated(seen)

    def commit(self, told: Iterable[Observation | Gone], now: Moment, *, consistent: bool = False) -> list[Done]:
        """Applies what was told, in order. Each change it makes has a revision of its own.

        What a `consistent` read showed (a list, a look at one object) stands, whatever version was seen before: after
        a restore upstream, versions go back.
        """
        done: list[Done] = []
        for item in told:
            if isinstance(item, Gone):
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

    def due(self, now: Moment) -> list[Done]:
        """Ends what was held for long enough."""
        done: list[Done] = []
        for name in [name for name, until in self._held.items() if until <= now.steady]:
            record = self._records[name]
            done += self._end(record, DisengageReason.NOT_READY, record.message, now)
        return done

    def restore(self, seen: Ready, engaged_at: float, now: Moment) -> Done:
        """Engages what an earlier run of the daemon had engaged. Only before anything was published."""
        (done,) = self._ready(seen, Moment(engaged_at, now.steady))
        assert done.type is EventType.ENGAGED, "nothing else is known yet"
        return done

    def is_probed(self, name: str, incarnation: int) -> bool:
        """Whether it matters what probes find of that cluster."""
        record = self._records.get(name)
        return (
            record is not None
            and (record.engaged or record.standing is Standing.UNREACHABLE)
            and record.latest is not None
            and record.latest.incarnation == incarnation
        )

    def probed(self, name: str, incarnation: int, connectivity: Connectivity, now: Moment) -> list[Done]:
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
            return [Done(EventType.UPDATED, found)]
        if connectivity.state is not ConnectivityState.REACHABLE:
            return []

        def make(revision: int) -> Cluster:
            return msgspec.structs.replace(found, engaged_at=now.wall, incarnation=revision)

        self._move(name, record, Standing.READY, now)
        record.message = ""
        return [self._engage(record, make)]

    def give_up(self, name: str, incarnation: int, message: str, now: Moment) -> Iterable[Done]:
        """It has been unreachable for long: it is disengaged until it is reached again, or is another."""
        record = self._records.get(name)
        if record is None or record.standing is not Standing.READY or not self.is_probed(name, incarnation):
            return ()
        self._move(name, record, Standing.UNREACHABLE, now)
        record.message = message
        return self._end(record, DisengageReason.UNREACHABLE, message, now)

    def clear(self) -> None:
        """Forgets all. Only before anything was published."""
        self._records.clear()
        self._elsewhere.clear()
        self._held.clear()
        self._counts = dict.fromkeys(Standing, 0)
        self._engaged = 0
        self.log.clear()

    def _ready(self, seen: Ready, now: Moment) -> Iterable[Done]:
        def make(revision: int) -> Cluster:
            return Cluster(target=seen.target, source_version=seen.version, engaged_at=now.wall, incarnation=revision)

        if self._stays_given_up(seen):
            return ()
        replaced = self._replaced_by(seen)
        record = self._stand(seen, Standing.READY, now)
        before = record.cluster
        if before is None:
            return (self._engage(record, make),)
        if replaced:
            ended = _ended(record, before, DisengageReason.REPLACED, replaced, now)
            return (ended, Done(EventType.ENGAGED, self.log.replace(record, replaced, make, now.steady)))
        if seen.target == before.target:
            return ()
        cluster = msgspec.structs.replace(before, target=seen.target, source_version=seen.version)
        self.log.update(record, cluster, now.steady)
        return (Done(EventType.UPDATED, cluster),)

    def _stays_given_up(self, seen: Ready) -> bool:
        """It is what it was, and where it was: as unreachable as before."""
        record = self._records.get(seen.name)
        if record is None or record.standing is not Standing.UNREACHABLE or seen.uid not in ("", record.uid):
            return False
        assert record.former is not None, "it was engaged before"
        if seen.target.endpoint != record.former.target.endpoint:
            return False
        record.version = seen.version
        record.former = msgspec.structs.replace(record.former, target=seen.target, source_version=seen.version)
        return True

    def _not_wanted(self, seen: NotReady | Outside | Malformed, now: Moment) -> Iterable[Done]:
        replaced = self._replaced_by(seen)
        record = self._stand(seen, _STANDINGS[type(seen)], now)
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

    def _delete(self, gone: Gone, now: Moment) -> Iterable[Done]:
        record = self._records.get(gone.name)
        if record is None or record.uid != gone.uid or record.standing is Standing.GONE:
            return ()
        self._move(gone.name, record, Standing.GONE, now)
        record.message = "the object is gone"
        return self._end(record, DisengageReason.DELETED, record.message, now)

    def _end(self, record: Record, reason: DisengageReason, message: str, now: Moment) -> Iterable[Done]:
        cluster = record.cluster
        if cluster is None:
            return ()
        self._release(cluster.target.name, record)
        ended = _ended(record, cluster, reason, message, now)
        record.former = cluster
        self.log.disengage(record, reason, message, now.steady)
        self._engaged -= 1
        return (ended,)

    def _engage(self, record: Record, make: Callable[[int], Cluster]) -> Done:
        record.former = None
        self._engaged += 1
        return Done(EventType.ENGAGED, self.log.engage(record, make))

    def _hold(self, name: str, record: Record, now: Moment) -> None:
        if name not in self._held:
            self._held[name] = now.steady + self._grace_s
            record.held_until = now.wall + self._grace_s

    def _release(self, name: str, record: Record) -> None:
        self._held.pop(name, None)
        record.held_until = None

    def _stand(self, seen: Observation, standing: Standing, now: Moment) -> Record:
        message = "" if isinstance(seen, Ready) else seen.message
        record = self._records.get(seen.name)
        if record is None:
            record = Record(uid=seen.uid, version=seen.version, standing=standing, since=now.wall)
            self._records[seen.name] = record
            self._counts[standing] += 1
            self._note_elsewhere(seen.name, standing)
        elif record.standing is not standing or self._replaced_by(seen):
            self._move(seen.name, record, standing, now)
        record.uid, record.version, record.message = seen.uid or record.uid, seen.version, message
        return record

    def _move(self, name: str, record: Record, standing: Standing, now: Moment) -> None:
        self._counts[record.standing] -= 1
        self._counts[standing] += 1
        record.standing, record.since = standing, now.wall
        if standing is not Standing.NOT_READY:
            self._release(name, record)
        self._note_elsewhere(name, standing)

    def _note_elsewhere(self, name: str, standing: Standing) -> None:
        self._elsewhere.pop(name, None)
        if standing in _ELSEWHERE:
            self._elsewhere[name] = None
            if len(self._elsewhere) > ELSEWHERE_KEPT:
                oldest = next(iter(self._elsewhere))
                del self._elsewhere[oldest]
                self._counts[self._records.pop(oldest).standing] -= 1

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
            return record.standing is Standing.GONE  # said again after it was certain
        return _is_before(seen.version, record.version)


def _ended(record: Record, cluster: Cluster, reason: DisengageReason, message: str, now: Moment) -> Done:
    """Notes it as well: before the log does, while the record still says when it was engaged."""
    ended = Transition(EventType.DISENGAGED, now.wall, cluster.incarnation, reason, message)
    record.past = (*record.transitions, ended)[-TRANSITIONS_KEPT:]
    return Done(EventType.DISENGAGED, cluster, reason, message)


_STANDINGS = {NotReady: Standing.NOT_READY, Outside: Standing.OUTSIDE, Malformed: Standing.MALFORMED}


def _is_before(one: str, other: str) -> bool:
    """Versions are opaque by the old rules and comparable by the new.

    Where they aren't numbers, the order in which they come is all there is. They may be longer than Python likes
    numbers to be, and have no leading zeros.
    """
    comparable = one.isdecimal() and other.isdecimal() and one.isascii() and other.isascii()
    return comparable and (len(one), one) < (len(other), other)
