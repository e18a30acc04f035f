"""What is wanted against what is engaged. `commit` is the one place where anything is engaged or disengaged."""

import enum
from collections.abc import Iterable, Iterator

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready
from milo_discoveryd.reflect.deletions import Gone
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.log import ChangeLog


class Standing(enum.Enum):
    """Why a name is engaged or not, as far as its object goes."""

    READY = "ready"
    NOT_READY = "not_ready"
    OUTSIDE = "outside_selector"
    MALFORMED = "malformed"
    GONE = "gone"


class Transition(msgspec.Struct, frozen=True):
    type: EventType
    at: float
    incarnation: int
    reason: DisengageReason | None = None
    message: str = ""


class Record(msgspec.Struct, gc=False):
    """All that is known of a name."""

    uid: str
    version: str
    standing: Standing
    since: float
    """When the standing became what it is."""
    message: str = ""
    cluster: Cluster | None = None
    """As engaged; as last engaged where it no longer is."""
    engaged: bool = False
    past: tuple[Transition, ...] = ()
    """Earlier transitions, oldest first; that to the present engagement can be told from the cluster itself."""

    @property
    def transitions(self) -> tuple[Transition, ...]:
        if not self.engaged or self.cluster is None:
            return self.past
        return (*self.past, Transition(EventType.ENGAGED, self.cluster.engaged_at, self.cluster.incarnation))


class Done(msgspec.Struct, frozen=True):
    """One engagement, update or disengagement that a commit made."""

    type: EventType
    cluster: Cluster
    reason: DisengageReason | None = None
    message: str = ""


TRANSITIONS_KEPT = 8
GONE_KEPT = 10_000


class Registry:
    def __init__(self, log: ChangeLog) -> None:
        self.log = log
        self._records: dict[str, Record] = {}
        self._gone: dict[str, None] = {}
        """In the order they went, so that explanations are kept for the last of them."""
        self._counts = dict.fromkeys(Standing, 0)
        self._engaged = 0
        self.outdated = 0
        """Observations passed over because a later one of the same object had come before them."""

    def __getitem__(self, name: str) -> Record | None:
        return self._records.get(name)

    @property
    def engaged(self) -> int:
        return self._engaged

    def count(self, standing: Standing) -> int:
        return self._counts[standing]

    def clusters(self) -> Iterator[Cluster]:
        return (record.cluster for record in self._records.values() if record.engaged and record.cluster)

    def present(self) -> Iterator[tuple[str, str]]:
        """Names, and the UIDs under them, that a complete list within the selector should hold."""
        elsewhere = (Standing.GONE, Standing.OUTSIDE)
        return ((name, record.uid) for name, record in self._records.items() if record.standing not in elsewhere)

    def would_change(self, observation: Observation) -> bool:
        record = self._records.get(observation.name)
        return record is None or record.uid != observation.uid or record.version != observation.version

    def commit(self, told: Iterable[Observation | Gone], now: float, *, listed: bool = False) -> list[Done]:
        """Applies what was told, in order. Each change it makes has a revision of its own.

        What was `listed` stands, whatever version was seen before: after a restore upstream, versions go back.
        """
        done: list[Done] = []
        for item in told:
            if isinstance(item, Gone):
                done += self._delete(item, now)
            elif not listed and self._is_outdated(item):
                self.outdated += 1
            elif isinstance(item, Ready):
                done += self._ready(item, now)
            elif isinstance(item, Malformed):
                done += self._malformed(item, now)
            else:
                done += self._not_wanted(item, now)
        self.log.forget(now)
        return done

    def clear(self) -> None:
        """Forgets all. Only before anything was published."""
        self._records.clear()
        self._gone.clear()
        self._counts = dict.fromkeys(Standing, 0)
        self._engaged = 0
        self.log.clear()

    def _ready(self, seen: Ready, now: float) -> Iterable[Done]:
        def make(revision: int) -> Cluster:
            return Cluster(target=seen.target, source_version=seen.version, engaged_at=now, incarnation=revision)

        record = self._records.get(seen.name)
        engaged = record.cluster if record is not None and record.engaged else None
        if record is None or engaged is None:
            record = self._stand(seen, Standing.READY, now)
            cluster = self._engage(record, self.log.engage(seen.name, make))
            return (Done(EventType.ENGAGED, cluster),)
        if record.uid != seen.uid:
            message = _replaced(record.uid, seen.uid)
            self._disengage(record, engaged, DisengageReason.REPLACED, message, now)
            self._stand(seen, Standing.READY, now)
            cluster = self._engage(record, self.log.replace(seen.name, message, make, now))
            return (
                Done(EventType.DISENGAGED, engaged, DisengageReason.REPLACED, message),
                Done(EventType.ENGAGED, cluster),
            )
        self._stand(seen, Standing.READY, now)
        if seen.target == engaged.target:
            return ()
        record.cluster = msgspec.structs.replace(engaged, target=seen.target, source_version=seen.version)
        self.log.update(record.cluster, now)
        return (Done(EventType.UPDATED, record.cluster),)

    def _not_wanted(self, seen: NotReady | Outside, now: float) -> Iterable[Done]:
        before = self._records.get(seen.name)
        if before is not None and before.uid != seen.uid:
            reason, message = DisengageReason.REPLACED, _replaced(before.uid, seen.uid)
        elif isinstance(seen, NotReady):
            reason, message = DisengageReason.NOT_READY, seen.message
        else:
            reason, message = DisengageReason.LABELS_CHANGED, seen.message
        standing = Standing.NOT_READY if isinstance(seen, NotReady) else Standing.OUTSIDE
        return self._end(self._stand(seen, standing, now), reason, message, now)

    def _malformed(self, seen: Malformed, now: float) -> Iterable[Done]:
        before = self._records.get(seen.name)
        if before is None:
            self._stand(seen, Standing.MALFORMED, now)
            return ()
        if seen.uid in ("", before.uid):
            # Something is wrong with the same object: the cluster is kept as it last was.
            self._stand(msgspec.structs.replace(seen, uid=before.uid), Standing.MALFORMED, now)
            return ()
        message = _replaced(before.uid, seen.uid)
        return self._end(self._stand(seen, Standing.MALFORMED, now), DisengageReason.REPLACED, message, now)

    def _delete(self, gone: Gone, now: float) -> Iterable[Done]:
        record = self._records.get(gone.name)
        if record is None or record.uid != gone.uid or record.standing is Standing.GONE:
            return ()
        self._move(record, Standing.GONE, now)
        record.message = "the object is gone"
        self._gone[gone.name] = None
        ended = self._end(record, DisengageReason.DELETED, record.message, now)
        if len(self._gone) > GONE_KEPT:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            self._counts[Standing.GONE] -= 1
            del self._records[oldest]
        return ended

    def _end(self, record: Record, reason: DisengageReason, message: str, now: float) -> Iterable[Done]:
        cluster = record.cluster
        if not record.engaged or cluster is None:
            return ()
        self._disengage(record, cluster, reason, message, now)
        self.log.disengage(cluster.target.name, reason, message, now)
        return (Done(EventType.DISENGAGED, cluster, reason, message),)

    def _engage(self, record: Record, cluster: Cluster) -> Cluster:
        record.cluster, record.engaged = cluster, True
        self._engaged += 1
        return cluster

    def _disengage(self, record: Record, cluster: Cluster, reason: DisengageReason, message: str, now: float) -> None:
        ended = Transition(EventType.DISENGAGED, now, cluster.incarnation, reason, message)
        record.past = (*record.transitions, ended)[-TRANSITIONS_KEPT:]
        record.engaged = False
        self._engaged -= 1

    def _stand(self, seen: Observation, standing: Standing, now: float) -> Record:
        message = "" if isinstance(seen, Ready) else seen.message
        record = self._records.get(seen.name)
        if record is None:
            self._records[seen.name] = record = Record(seen.uid, seen.version, standing, now, message)
            self._counts[standing] += 1
            return record
        if record.standing is Standing.GONE:
            del self._gone[seen.name]
        if record.standing is not standing or record.uid != seen.uid:
            self._move(record, standing, now)
        record.uid, record.version, record.message = seen.uid, seen.version, message
        return record

    def _move(self, record: Record, standing: Standing, now: float) -> None:
        self._counts[record.standing] -= 1
        self._counts[standing] += 1
        record.standing, record.since = standing, now

    def _is_outdated(self, seen: Observation) -> bool:
        record = self._records.get(seen.name)
        if record is None or record.uid != seen.uid:
            return False
        # Versions are opaque by the old rules and comparable by the new: where they aren't numbers, the order in which
        # they come is all there is.
        new, old = seen.version, record.version
        return new.isascii() and new.isdigit() and old.isascii() and old.isdigit() and int(new) < int(old)


def _replaced(before: str, after: str) -> str:
    return f"the name now belongs to another object: UID {after or 'unknown'}, before {before or 'unknown'}"
