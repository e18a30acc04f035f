"""The records of all known clusters, engaged or not."""

import msgspec

from milo_discoveryd.log.events import Event, EventType, LogEntry
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.object_state import ABSENT_STATES, FORGETTABLE_RECORDS_KEPT, FORGETTABLE_STATES, ObjectState
from milo_discoveryd.model.observation import ObjectFields, Observation

TRANSITIONS_KEPT = 8


class RecordedTransition(msgspec.Struct, frozen=True):
    type: EventType
    at: float
    incarnation: int
    reason: DisengageReason | None = None
    message: str = ""


class ClusterRecord(msgspec.Struct, kw_only=True, gc=False):
    """Everything that is known about the cluster of one name."""

    entry: LogEntry = msgspec.field(default_factory=LogEntry)
    uid: str
    version: str
    state: ObjectState
    since: float
    """The time at which `state` last changed."""
    message: str = ""
    present: ObjectFields | Target | None = None
    """The fields that authorization scopes match, if the last observation of the object did not engage the cluster."""
    former: Cluster | None = None
    """The cluster as it was last engaged, if it is not engaged now."""
    past: tuple[RecordedTransition, ...] = ()
    """Earlier transitions, oldest first. The transition to the current engagement is derived from `cluster`."""

    @property
    def cluster(self) -> Cluster | None:
        """None unless the cluster is engaged."""
        return self.entry.cluster

    @property
    def engaged(self) -> bool:
        return self.entry.cluster is not None

    @property
    def latest(self) -> Cluster | None:
        """The cluster as engaged, or as last engaged."""
        return self.cluster or self.former

    @property
    def target(self) -> Target | None:
        """The cluster that the object describes, or last described while it was ready."""
        if isinstance(self.present, Target):
            return self.present
        return None if self.latest is None else self.latest.target

    @property
    def transitions(self) -> tuple[RecordedTransition, ...]:
        if self.cluster is None:
            return self.past
        return (*self.past, RecordedTransition(EventType.ENGAGED, self.cluster.engaged_at, self.cluster.incarnation))

    def record_end(self, cluster: Cluster, reason: DisengageReason, message: str, ended_at: float) -> Event:
        """Record the end of `cluster` as a transition, and return its event. Call it before the event is appended to
        the log."""
        ended = RecordedTransition(EventType.DISENGAGED, ended_at, cluster.incarnation, reason, message)
        self.past = (*self.transitions, ended)[-TRANSITIONS_KEPT:]
        return Event(EventType.DISENGAGED, cluster, reason, message)


class ClusterRecords:
    """The records by key, and how many clusters are in each state."""

    def __init__(self) -> None:
        self.engaged = 0
        self.by_key: dict[str, ClusterRecord] = {}
        self._absent: dict[str, None] = {}
        """Keys of clusters in forgettable states, oldest first."""
        self._counts = dict.fromkeys(ObjectState, 0)

    def count(self, state: ObjectState) -> int:
        return self._counts[state]

    @property
    def present_count(self) -> int:
        """The number of clusters whose objects a complete list within the selector should contain."""
        return len(self.by_key) - sum(map(self._counts.__getitem__, ABSENT_STATES))

    def add(self, observation: Observation, state: ObjectState, now: Moment) -> ClusterRecord:
        record = ClusterRecord(uid=observation.uid, version=observation.version, state=state, since=now.wall)
        self.by_key[observation.name] = record
        self._counts[state] += 1
        return record

    def move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> str | None:
        """Record that a cluster's object entered a state. Return the key of the record that is dropped, if any."""
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state, record.since = state, now.wall
        return self.note_absent(name, state)

    def keep(self, name: str) -> None:
        """Exempt a record from the limit of records in forgettable states."""
        self._absent.pop(name, None)

    def note_absent(self, name: str, state: ObjectState) -> str | None:
        """Count a record in a forgettable state toward the limit of such records. Return the key of the record that is
        dropped, if any."""
        self._absent.pop(name, None)
        if state not in FORGETTABLE_STATES:
            return None
        self._absent[name] = None
        if len(self._absent) <= FORGETTABLE_RECORDS_KEPT:
            return None
        dropped = next(iter(self._absent))
        del self._absent[dropped]
        self._counts[self.by_key.pop(dropped).state] -= 1
        return dropped
