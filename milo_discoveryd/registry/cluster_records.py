"""The records of all known clusters, engaged or not."""

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import ObjectFields
from milo_discoveryd.registry.events import Event, EventType, LogEntry

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
    weight: int = 0
    """What the record counts in the budget of its source."""
    is_established: bool = False
    """See `Record`."""
    present: ObjectFields | Target | None = None
    """The fields that authorization scopes match, if the object was last seen in a state that is not engaged."""
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
    def is_terminating(self) -> bool:
        return self.target is not None and self.target.deletion_requested_at is not None

    @property
    def kept(self) -> Target | None:
        return self.target

    def describes(self, target: Target) -> bool:
        return (self.target if self.cluster is None else self.cluster.target) == target

    @property
    def transitions(self) -> tuple[RecordedTransition, ...]:
        if self.cluster is None:
            return self.past
        return (*self.past, RecordedTransition(EventType.ENGAGED, self.cluster.engaged_at, self.cluster.incarnation))

    def end(self, cluster: Cluster, reason: DisengageReason, message: str, at: float) -> Event:
        """Record the end of `cluster` as a transition, and return its event. Call it before the log has it."""
        ended = RecordedTransition(EventType.DISENGAGED, at, cluster.incarnation, reason, message)
        self.past = (*self.transitions, ended)[-TRANSITIONS_KEPT:]
        return Event(EventType.DISENGAGED, cluster, reason, message)
