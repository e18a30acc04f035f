"""The records of all known clusters, engaged or not."""

import enum

import msgspec

from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from milo_discoveryd.model.observation import ObjectFields
from milo_discoveryd.registry.events import Event, EventType, Frame

TRANSITIONS_KEPT = 8


class PastState(msgspec.Struct, frozen=True, gc=False):
    """The state of a cluster, as filters see it, from revision `since` up to, but not including, `until`."""

    cluster: Cluster
    since: int
    until: int
    reason: DisengageReason | None
    """Why the cluster was disengaged at `until`; None if only its labels or its organization changed."""
    message: str


class LogEntry(msgspec.Struct, gc=False):
    """One name in the change log. Records inherit it because a separate object per cluster would cost more memory."""

    cluster: Cluster | None = None
    """None unless the cluster is engaged."""
    revision: int = 0
    """The revision of the last change."""
    same_view_since: int = 0
    """The last revision that could change the result of a filter for the cluster."""
    history: tuple[PastState, ...] = ()
    frame: Frame | None = None
    """The frame of the current cluster, of the type that was last requested. All live readers need UPDATED and all
    snapshots need ENGAGED, so caching one type is enough."""

    def known_at(self, revision: int) -> Cluster | None:
        """Return the cluster as a reader at `revision` knows it, as far as filters and incarnations are concerned."""
        if self.cluster is not None and self.same_view_since <= revision:
            return self.cluster
        for past in reversed(self.history):  # the latest is the most likely match
            if past.since <= revision < past.until:
                return past.cluster
        return None

    def needs_slot(self, revision: int) -> bool:
        """Return whether a reader whose batch ends soon after `revision` needs the entry's slot at that revision.

        A change that a filter can see must be sent even if the entry changed again beyond the end of that batch.
        """
        if not self.history:  # the common case; this runs for thousands of slots in a row
            return self.cluster is not None and revision in (self.revision, self.same_view_since)
        return revision in (self.revision, self.same_view_since) or any(
            revision in (past.since, past.until) for past in self.history
        )

    def end_of(self, cluster: Cluster, revision: int) -> PastState | None:
        """Return how the cluster's incarnation had ended by `revision`, or None if it was still engaged."""
        return next(
            (
                past
                for past in self.history
                if past.reason and past.until <= revision and past.cluster.incarnation == cluster.incarnation
            ),
            None,
        )


class ObjectState(enum.Enum):
    """The state of a cluster's object, which decides whether the cluster is engaged."""

    READY = "ready"
    NOT_READY = "not_ready"
    OUTSIDE = "outside_selector"
    REFUSED = "refused"
    """The object belongs to another organization than the source's context."""
    WITHDRAWN = "withdrawn"
    """The source disengaged the cluster by rules of its own."""
    MALFORMED = "malformed"
    UNASSIGNED = "unassigned"
    """The object is ready; another member of the shard group owns the cluster, or has not released it yet."""
    UNREACHABLE = "disengaged_unreachable"
    """The object is ready; the cluster was disengaged because it could not be reached for long."""
    DELETED = "deleted"


class RecordedTransition(msgspec.Struct, frozen=True):
    type: EventType
    at: float
    incarnation: int
    reason: DisengageReason | None = None
    message: str = ""


class ClusterRecord(LogEntry, kw_only=True, gc=False):
    """Everything that is known about the cluster of one name."""

    uid: str
    version: str
    state: ObjectState
    since: float
    """The time at which `state` last changed."""
    message: str = ""
    present: ObjectFields | Target | None = None
    """The fields that authorization scopes match, if the object was last seen in a state that is not engaged."""
    former: Cluster | None = None
    """The cluster as it was last engaged, if it is not engaged now."""
    past: tuple[RecordedTransition, ...] = ()
    """Earlier transitions, oldest first. The transition to the current engagement is derived from `cluster`."""

    @property
    def engaged(self) -> bool:
        return self.cluster is not None

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
        """Record the end of `cluster` as a transition, and return its event. Call it before `cluster` is unset."""
        ended = RecordedTransition(EventType.DISENGAGED, at, cluster.incarnation, reason, message)
        self.past = (*self.transitions, ended)[-TRANSITIONS_KEPT:]
        return Event(EventType.DISENGAGED, cluster, reason, message)
