"""The records of all known clusters, and the reconciliation of each cluster's desired state with the engaged state.

Only this module writes to the change log. `commit` applies what the source reported, `end_not_ready` disengages a
cluster whose grace period is over, `end_drain` one whose drain has ended, `reassign` and `lose` apply changes of
ownership within a shard group, `set_connectivity` and `disengage_unreachable` apply the results of probes, and
`contest`, `end_contested` and `begin_uncontested` apply the results of comparing claims on the same UID or address.

A disengagement is planned if the cluster's API server stays available: if the row of the object's state in `MEANINGS`
says so, or if another member of the shard group owns the cluster. Such a cluster drains first, if a subscriber confirms
releases. All other disengagements are immediate, even during a drain.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec

from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.engagement.pending_releases import PendingReleases
from milo_discoveryd.log.change_log import ChangeLog, LogEntry
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
    Target,
    without_draining,
)
from milo_discoveryd.model.object_state import (
    ABSENT_STATES,
    FORGETTABLE_RECORDS_KEPT,
    FORGETTABLE_STATES,
    FORGETTABLE_WEIGHT_KEPT,
    GRACED_STATES,
    MEANINGS,
    READY_STATES,
    ObjectState,
)
from milo_discoveryd.model.observation import (
    Malformed,
    NotWanted,
    ObjectFields,
    Observation,
    Ready,
    Withdrawn,
)
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.objects.store import ObjectPosition, weigh
from milo_kube.moment import Moment
from milo_kube.reflect.wire import text_bytes

TRANSITIONS_KEPT = 8
"""The number of earlier transitions of each cluster that are kept."""
TRANSITION_CHARACTERS = 256
"""Length limit of the message of a transition. Those of conditions have thousands of characters, and are of any number:
they count in no budget."""
TRANSITIONS_WEIGHT_KEPT = 32 << 20
"""The maximum weight, in bytes, of the earlier transitions of all clusters of a source. Beyond it, those of clusters
that ended least recently are dropped."""
_TRANSITION_OVERHEAD = 128
ClusterState = Observation | ConfirmedDeletion
"""The state of one cluster that follows from the objects of a source."""


class ClusterStates(msgspec.Struct, frozen=True, gc=False):
    """States of clusters to apply in one step, with the position of their objects."""

    states: Sequence[ClusterState]
    position: ObjectPosition


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
    state: ObjectState
    since: float
    """The time at which `state` last changed."""
    message: str = ""
    observed: Observation | None = None
    """The last observation of the object, if it did not engage the cluster."""
    former: Cluster | None = None
    """The cluster as it was last engaged, if it is not engaged now."""
    past: tuple[RecordedTransition, ...] = ()
    """Earlier transitions, oldest first. The transition to the current engagement is derived from `cluster`."""

    @property
    def cluster(self) -> Cluster | None:
        """The engaged cluster; None if it is not engaged."""
        return self.entry.cluster

    @property
    def engaged(self) -> bool:
        return self.entry.cluster is not None

    @property
    def latest(self) -> Cluster | None:
        """The cluster as it is engaged now, or as it was last engaged."""
        return self.cluster or self.former

    @property
    def present(self) -> ObjectFields | Target | None:
        """The fields that authorization scopes match, if the last observation did not engage the cluster."""
        return None if self.observed is None else self.observed.fields

    @property
    def ready(self) -> Ready:
        """The observation from which a cluster in one of the states `READY_STATES` is or can be engaged."""
        if isinstance(self.observed, Ready):
            return self.observed
        assert self.latest is not None, "the record of a ready cluster has no target"
        return Ready(self.uid, self.latest.source_version, self.latest.target)

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
        ended = RecordedTransition(EventType.DISENGAGED, ended_at, cluster.incarnation, reason, _excerpt(message))
        self.past = (*self.transitions, ended)[-TRANSITIONS_KEPT:]
        return Event(EventType.DISENGAGED, cluster, reason, message)


class ClusterRecords:
    """The records by key, and how many clusters are in each state."""

    def __init__(self) -> None:
        self.engaged = 0
        self.by_key: dict[str, ClusterRecord] = {}
        self._absent: dict[str, int] = {}
        """The weights of clusters in forgettable states that are not engaged, oldest first."""
        self._absent_weight = 0
        self._past = OrderedDict[str, int]()
        """The weights of the earlier transitions of clusters, by when each ended last."""
        self._past_weight = 0
        self._counts = dict.fromkeys(ObjectState, 0)

    def count(self, state: ObjectState) -> int:
        return self._counts[state]

    @property
    def present_count(self) -> int:
        """The number of clusters whose objects a complete list with the label selector should contain."""
        return len(self.by_key) - sum(map(self._counts.__getitem__, ABSENT_STATES))

    def add(self, observation: Observation, state: ObjectState, now: Moment) -> ClusterRecord:
        record = ClusterRecord(uid=observation.uid, state=state, since=now.wall)
        self.by_key[observation.name] = record
        self._counts[state] += 1
        return record

    def move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> list[str]:
        """Record that a cluster's object entered a state. Return the keys of the records that are dropped.

        The record of an engaged cluster counts toward `FORGETTABLE_RECORDS_KEPT` only once the cluster is disengaged.
        """
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state, record.since = state, now.wall
        return [] if record.engaged else self.note_absent(name, record)

    def note_absent(self, name: str, record: ClusterRecord) -> list[str]:
        """Count a record in a forgettable state toward the limits of such records. Return the keys of the records that
        are dropped."""
        self._absent_weight -= self._absent.pop(name, 0)
        if record.state not in FORGETTABLE_STATES:
            return []
        weight = self._absent[name] = weigh((record.latest, record.observed))
        self._absent_weight += weight
        dropped = []
        while len(self._absent) > FORGETTABLE_RECORDS_KEPT or self._absent_weight > FORGETTABLE_WEIGHT_KEPT:
            oldest = next(iter(self._absent))
            self._absent_weight -= self._absent.pop(oldest)
            self._counts[self.by_key.pop(oldest).state] -= 1
            self._past_weight -= self._past.pop(oldest, 0)
            dropped.append(oldest)
        return dropped

    def note_past(self, name: str, record: ClusterRecord) -> None:
        """Count the earlier transitions of a cluster that has ended toward their limit."""
        self._past_weight -= self._past.pop(name, 0)
        weight = sum(_TRANSITION_OVERHEAD + text_bytes(transition.message) for transition in record.past)
        self._past[name] = weight
        self._past_weight += weight
        while self._past_weight > TRANSITIONS_WEIGHT_KEPT:
            oldest, weight = self._past.popitem(last=False)
            self._past_weight -= weight
            self.by_key[oldest].past = ()


class Engagements:
    def __init__(
        self,
        log: ChangeLog,
        not_ready: NotReadyClusters | None = None,
        report: Callable[[Malformed], None] = lambda _: None,
        *,
        drain_timeout_s: float = 0.0,
        releases: PendingReleases | None = None,
    ) -> None:
        """`report` is called with each cluster that becomes contested or malformed. `log` and `releases` are shared by
        all sources of the daemon.
        """
        self.log = log
        self._records = ClusterRecords()
        self.releases = PendingReleases() if releases is None else releases
        self.assigned_elsewhere: Callable[[str], str | None] = lambda _: None
        """Returns why this daemon must not engage a cluster; None if it may."""
        self._drain_timeout_s = drain_timeout_s
        self._report = report
        self._contested: dict[str, Ready] = {}
        """Ready objects whose claims are not valid, by cluster. Such a cluster is reported as malformed."""
        self.dropped_names: list[str] = []
        """Clusters whose records were dropped. Their claims must be dropped."""
        self.not_ready = not_ready or NotReadyClusters()
        self.unreachable = 0
        """The number of engaged clusters that do not answer connectivity probes."""
        self.draining_count = 0

    @property
    def engaged(self) -> int:
        return self._records.engaged

    @property
    def present_count(self) -> int:
        """The number of clusters whose objects a complete list with the label selector should contain."""
        return self._records.present_count

    @property
    def contested(self) -> Collection[str]:
        """The clusters whose objects are ready, but have a claim that is not valid."""
        return self._contested.keys()

    def count(self, state: ObjectState) -> int:
        return self._records.count(state)

    def __getitem__(self, name: str) -> ClusterRecord | None:
        return self._records.by_key.get(name)

    def items(self) -> Iterator[tuple[str, ClusterRecord]]:
        return iter(self._records.by_key.items())

    def clusters(self) -> Iterator[Cluster]:
        return (record.cluster for record in self._records.by_key.values() if record.cluster is not None)

    def commit(self, states: Iterable[ClusterState], now: Moment, events: list[Event] | None = None) -> list[Event]:
        """Apply states of clusters in order. Each resulting change gets a separate revision.

        The changes are added to `events`, which the caller has even after an unexpected exception.
        """
        events = [] if events is None else events
        for state in states:
            if isinstance(state, ConfirmedDeletion):
                events += self._delete(state, now)
                continue
            if self._contested:
                self._contested.pop(state.name, None)
            events += self._ready(state, now) if isinstance(state, Ready) else self._not_wanted(state, now)
        self.log.forget(now.steady)
        return events

    def grace_until(self, name: str, now: Moment) -> float | None:
        """Return when a cluster that is not ready will be disengaged, in Unix time; None if no grace period or hold
        applies."""
        until = self.not_ready.until(name)
        return None if until is None else now.wall + until - now.steady

    def end_not_ready(self, name: str, now: Moment) -> list[Event]:
        """Disengage, or begin to drain, a cluster that `not_ready` returned as overdue."""
        record = self._known(name)
        reason = MEANINGS[record.state].ends
        assert reason is not None, "a grace period ended for a cluster whose state does not disengage it"
        return self._plan_end(record, reason, record.message, now)

    def end_drain(self, name: str, now: Moment) -> list[Event]:
        """Disengage a draining cluster, and engage it again if it is ready and this daemon may engage it."""
        record = self._known(name)
        cluster = record.cluster
        assert cluster is not None, "the cluster is not engaged"
        assert cluster.draining is not None, "the cluster does not drain"
        events = self._end(record, cluster.draining.reason, cluster.draining.message, now)
        elsewhere = self.assigned_elsewhere(name)
        may_engage = record.state is ObjectState.READY or self._is_kept(record, cluster)
        if may_engage and elsewhere is not None:
            self._unassign(record, elsewhere, now)
        elif may_engage:
            again = msgspec.structs.replace(cluster, draining=None, connectivity=UNPROBED)
            events.append(self._engage_again(record, again, now))
        return events

    def reassign(self, name: str, timeout_s: float, now: Moment) -> list[Event]:
        """Apply the current result of `assigned_elsewhere`: engage a ready cluster, or drain or disengage it."""
        record = self._known(name)
        elsewhere = self.assigned_elsewhere(name)
        if elsewhere is None:
            return self._ready(record.ready, now) if record.state is ObjectState.UNASSIGNED else []
        before = record.cluster
        events = self._plan_end(record, DisengageReason.MOVED, elsewhere, now, timeout_s)
        self._unassign_ready(record, before, elsewhere, now)
        return events

    def lose(self, name: str, message: str, now: Moment) -> list[Event]:
        """Disengage a cluster at once, because this daemon can't renew its ownership."""
        record = self._known(name)
        before = record.cluster
        events = self._end(record, DisengageReason.OWNERSHIP_LOST, message, now)
        self._unassign_ready(record, before, message, now)
        return events

    def _unassign_ready(self, record: ClusterRecord, before: Cluster | None, message: str, now: Moment) -> None:
        """Record that this daemon must not engage a ready cluster, unless the cluster still drains here. `before`: the
        cluster, if it was engaged until now."""
        is_ready = record.state in READY_STATES or (before is not None and self._is_kept(record, before))
        if record.cluster is None and is_ready:
            self._unassign(record, message, now)

    def _is_kept(self, record: ClusterRecord, cluster: Cluster) -> bool:
        """Return whether only the shard group has ended an engagement that continued, as the object last described it,
        while the object is malformed."""
        is_malformed = record.state is ObjectState.MALFORMED and cluster.target.name not in self._contested
        return is_malformed and (cluster.draining is None or cluster.draining.reason is DisengageReason.MOVED)

    def _unassign(self, record: ClusterRecord, message: str, now: Moment) -> None:
        record.observed, record.message = record.ready, message
        if record.state is not ObjectState.UNASSIGNED:
            self._move(record.observed.name, record, ObjectState.UNASSIGNED, now)

    def needs_probe(self, name: str, incarnation: int) -> bool:
        """Return whether a probe of the cluster is still needed."""
        record = self._records.by_key.get(name)
        return (
            record is not None
            and (record.engaged or record.state is ObjectState.UNREACHABLE)
            and record.latest is not None
            and record.latest.incarnation == incarnation
        )

    def set_connectivity(
        self, name: str, incarnation: int, connectivity: ConnectivityStatus, now: Moment
    ) -> list[Event]:
        """Apply the result of probes. The result is ignored if no probe of the cluster is needed any more."""
        if not self.needs_probe(name, incarnation):
            return []
        record = self._known(name)
        assert record.latest is not None, "the cluster was never engaged"
        probed = msgspec.structs.replace(record.latest, connectivity=connectivity)
        if probed == record.latest:
            return []
        if record.engaged:
            self.unreachable += _is_unreachable(probed) - _is_unreachable(record.latest)
            return self._update(record, probed, now)
        if connectivity.state is not Reachability.REACHABLE:
            return []
        if (elsewhere := self.assigned_elsewhere(name)) is not None:
            self._unassign(record, elsewhere, now)
            return []
        self._move(name, record, ObjectState.READY, now)
        record.message = ""
        return [self._engage_again(record, probed, now)]

    def disengage_unreachable(self, name: str, incarnation: int, message: str, now: Moment) -> list[Event]:
        """Disengage a cluster until it is reachable again or its endpoint changes."""
        record = self._records.by_key.get(name)
        if record is None or record.state is not ObjectState.READY or not self.needs_probe(name, incarnation):
            return []
        self._move(name, record, ObjectState.UNREACHABLE, now)
        record.message = message
        return self._end(record, DisengageReason.UNREACHABLE, message, now)

    # --- claims of several objects ---

    def contest(self, observation: Ready, problem: str, now: Moment) -> list[Event]:
        """Record that a claim of a ready object is not valid, so that the object cannot engage its cluster. A cluster
        that is engaged for the same object stays as it is."""
        contested = Malformed(observation.name, observation.uid, observation.version, problem)
        self.report_malformed(contested)
        self._contested[observation.name] = observation
        return self._not_wanted(contested, now)

    def end_contested(self, name: str, problem: str, now: Moment) -> list[Event]:
        """Disengage a cluster at once, because a claim of its object is no longer valid."""
        record, events = self._known(name), list[Event]()
        if record.state in READY_STATES:
            events += self.contest(record.ready, problem, now)
        return events + self._end(record, DisengageReason.NOT_READY, problem, now)

    def begin_uncontested(self, name: str, now: Moment) -> list[Event]:
        """Engage a cluster that was contested and no longer is; no-op for other clusters."""
        observation = self._contested.pop(name, None)
        return [] if observation is None else self._ready(observation, now)

    def report_malformed(self, observation: Malformed) -> None:
        """Report that a cluster cannot be used, unless its record is `MALFORMED` already."""
        record = self._records.by_key.get(observation.name)
        if record is None or record.state is not ObjectState.MALFORMED:
            self._report(observation)

    def _ready(self, observation: Ready, now: Moment) -> list[Event]:
        former = self._records.by_key.get(observation.name)
        if (
            former is not None
            and former.state is ObjectState.READY
            and former.uid == observation.uid
            and former.cluster is not None
        ):
            return self._still_engaged(former, former.cluster, observation, now)  # the most frequent case
        if former is not None and _stays_unreachable(former, observation):
            return []
        replaced = _replaced_by(former, observation)
        readiness = None if former is not None and _was_engaged(former, observation) else observation.readiness
        elsewhere = self.assigned_elsewhere(observation.name)
        if elsewhere is not None and (replaced or former is None or not former.engaged):
            record = self._record(former, observation, ObjectState.UNASSIGNED, now)
            record.observed = Ready(record.uid, observation.version, observation.target)
            record.message = elsewhere
            return self._end(record, DisengageReason.REPLACED, replaced, now)
        record = self._record(former, observation, ObjectState.READY, now)
        before = record.cluster
        if before is not None and not replaced:
            return self._still_engaged(record, before, observation, now)
        cluster = Cluster(
            target=observation.target,
            source_version=observation.version,
            engaged_at=now.wall,
            incarnation=self.log.next_revision,
            object_uid=observation.uid,
        )
        engaged = Event(EventType.ENGAGED, cluster, readiness=readiness)
        if before is None:
            return [self._engage(record, engaged, now)]
        self.releases.end_drain(observation.name)
        self.draining_count -= before.draining is not None
        ended = record.record_end(before, DisengageReason.REPLACED, replaced, now.wall)
        self._records.note_past(observation.name, record)
        self.unreachable -= _is_unreachable(before)
        self.log.append(record.entry, ended, now.steady, then=engaged)
        return [ended, engaged]

    def _still_engaged(self, record: ClusterRecord, before: Cluster, observation: Ready, now: Moment) -> list[Event]:
        if observation.target == before.target:
            return []
        cluster = msgspec.structs.replace(before, target=observation.target, source_version=observation.version)
        return self._update(record, cluster, now)

    def _not_wanted(self, observation: NotWanted, now: Moment) -> list[Event]:
        former = self._records.by_key.get(observation.name)
        replaced = _replaced_by(former, observation)
        record = self._record(former, observation, observation.state, now)
        meaning = MEANINGS[observation.state]
        reason, message = (DisengageReason.REPLACED, replaced) if replaced else (meaning.ends, observation.message)
        if reason is None:
            return []  # the cluster stays in its last state
        if replaced or meaning.ends_at_once:
            return self._end(record, reason, message, now)
        if meaning.has_grace and self._keeps_for_now(observation.name, record, now):
            return []
        drain_s = observation.drain_s if isinstance(observation, Withdrawn) else None
        return self._plan_end(record, reason, message, now, drain_s)

    def _keeps_for_now(self, name: str, record: ClusterRecord, now: Moment) -> bool:
        """Return whether a cluster that is not ready stays engaged for now: for a grace period, or until it is decided
        whether too many clusters are not ready."""
        if record.cluster is None or name in self.releases:
            return False
        return not self.not_ready.begin_wait(name, now.steady, record.cluster.target.tenant)

    def _record(
        self, record: ClusterRecord | None, observation: Observation, state: ObjectState, now: Moment
    ) -> ClusterRecord:
        """Create or update the record of an observed object, and return it. `record` is the cluster's existing one."""
        observed = None if isinstance(observation, Ready) else observation
        if record is None:
            record = self._records.add(observation, state, now)
            record.observed = observed
            if state in FORGETTABLE_STATES:
                self.dropped_names += self._records.note_absent(observation.name, record)
        else:
            is_replaced = _replaced_by(record, observation)
            record.observed = observed
            if record.state is not state or is_replaced:
                self._move(observation.name, record, state, now)
        record.uid, record.message = observation.uid or record.uid, observation.message
        return record

    def _delete(self, deleted: ConfirmedDeletion, now: Moment) -> list[Event]:
        record = self._records.by_key.get(deleted.name)
        if record is None or record.uid != deleted.uid or record.state is ObjectState.DELETED:
            return []
        self._contested.pop(deleted.name, None)
        self._move(deleted.name, record, ObjectState.DELETED, now)
        record.message = "the object was deleted"
        return self._end(record, DisengageReason.DELETED, record.message, now)

    def _engage(self, record: ClusterRecord, engaged: Event, now: Moment) -> Event:
        record.former = None
        self._records.engaged += 1
        self.log.append(record.entry, engaged, now.steady)
        return engaged

    def _engage_again(self, record: ClusterRecord, former: Cluster, now: Moment) -> Event:
        """Engage a cluster as another incarnation."""
        cluster = msgspec.structs.replace(former, engaged_at=now.wall, incarnation=self.log.next_revision)
        return self._engage(record, Event(EventType.ENGAGED, cluster), now)

    def _update(self, record: ClusterRecord, cluster: Cluster, now: Moment) -> list[Event]:
        before = record.cluster
        if self.releases.is_sharded and before is not None and before.target is not cluster.target:
            self.releases.note_change(before, cluster, now.steady)
        updated = Event(EventType.UPDATED, cluster)
        self.log.append(record.entry, updated, now.steady)
        if cluster.draining is not None and self.releases.update_drain(cluster):
            return [updated, *self.end_drain(cluster.target.name, now)]
        return [updated]

    def _plan_end(
        self,
        record: ClusterRecord,
        reason: DisengageReason,
        message: str,
        now: Moment,
        timeout_s: float | None = None,
    ) -> list[Event]:
        if record.cluster is None:
            return []
        # Scopes and filters match the present fields of the object.
        cluster = _with_fields(record.cluster, record.present)
        if cluster.draining is not None:
            return [] if cluster is record.cluster else self._update(record, cluster, now)
        timeout_s = self._drain_timeout_s if timeout_s is None else timeout_s
        moves = reason is DisengageReason.MOVED
        until = now.steady + timeout_s
        if not timeout_s or not self.releases.begin_drain(cluster, until, now.steady, moves=moves):
            return self._end(record, reason, message, now)
        self.draining_count += 1
        self.not_ready.ended(cluster.target.name)
        draining = Drain(reason, message, now.wall + timeout_s)
        return self._update(record, msgspec.structs.replace(cluster, draining=draining), now)

    def _end(self, record: ClusterRecord, reason: DisengageReason, message: str, now: Moment) -> list[Event]:
        cluster = record.cluster
        if cluster is None:
            return []
        name = cluster.target.name
        self.not_ready.ended(name)
        if cluster.draining is not None:
            self.releases.end_drain(name)
            self.draining_count -= 1
        ended = record.record_end(cluster, reason, message, now.wall)
        self._records.note_past(name, record)
        self.dropped_names += self._records.note_absent(name, record)
        record.former = without_draining(cluster)
        self.log.append(record.entry, ended, now.steady)
        self._records.engaged -= 1
        self.unreachable -= _is_unreachable(cluster)
        return [ended]

    def _move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> None:
        had_grace = record.state in GRACED_STATES and record.latest is not None
        if had_grace and state not in GRACED_STATES:
            self.not_ready.forget(name)
        self.dropped_names += self._records.move(name, record, state, now)

    def _known(self, name: str) -> ClusterRecord:
        record = self._records.by_key.get(name)
        assert record is not None, f"no record of cluster {name!r}"
        return record


def _stays_unreachable(record: ClusterRecord, observation: Ready) -> bool:
    """Return whether a cluster stays disengaged as unreachable, and update its record if so.

    A cluster with a different endpoint, or that belongs to a different object, does not stay disengaged.
    """
    if record.state is not ObjectState.UNREACHABLE or observation.uid not in ("", record.uid):
        return False
    assert record.former is not None, "the unreachable cluster was never engaged"
    if observation.target.endpoint != record.former.target.endpoint:
        return False
    record.former = msgspec.structs.replace(
        record.former, target=observation.target, source_version=observation.version
    )
    return True


def _replaced_by(record: ClusterRecord | None, observation: Observation) -> str:
    """Return a message if a different object has the name now, or "" if the object is, or may be, the known one."""
    if record is None or observation.uid in ("", record.uid):
        return ""
    return f"the name now belongs to another object: UID {observation.uid}, previously {record.uid or 'unknown'}"


def _was_engaged(record: ClusterRecord, observation: Ready) -> bool:
    """Return whether this object, and not another one of the same name, is or was engaged."""
    return record.latest is not None and record.latest.object_uid == observation.uid


def _is_unreachable(cluster: Cluster) -> bool:
    return cluster.connectivity.state is Reachability.UNREACHABLE


def _with_fields(cluster: Cluster, present: ObjectFields | Target | None) -> Cluster:
    """Return the cluster with the present labels and organization of its object, which may no longer match a
    subscriber's filter or authorization rules."""
    target = cluster.target
    if present is None or (present.labels, present.organization) == (target.labels, target.organization):
        return cluster
    target = msgspec.structs.replace(target, labels=present.labels, organization=present.organization)
    return msgspec.structs.replace(cluster, target=target)


def _excerpt(message: str) -> str:
    # A single character can make a string take four bytes for each.
    most = TRANSITION_CHARACTERS if message.isascii() else TRANSITION_CHARACTERS // 4
    return message if len(message) <= most else f"{message[:most]}..."
