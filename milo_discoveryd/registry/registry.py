"""The reconciliation of each cluster's desired state with the engaged state.

Only the registry writes to the change log. `commit` applies what the source reported, `end_overdue` ends clusters whose
grace period is over, `set_connectivity` and `disengage_unreachable` apply the results of probes, and `restore` starts
with the state of an earlier run.

An end is planned if the cluster's API server stays available: the object is not ready, or left the selector. Such a
cluster drains first, if a subscriber confirms releases. All other ends are immediate, even during a drain: the object
was deleted or replaced, the API server is unreachable, or another object claims the UID.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    Connectivity,
    ConnectivityState,
    DisengageReason,
    Draining,
    Target,
    with_draining,
    without_draining,
)
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import (
    Malformed,
    NotReady,
    ObjectFields,
    Observation,
    Outside,
    Ready,
    Refused,
    Withdrawn,
)
from milo_discoveryd.registry.cluster_records import ClusterRecord, ObjectState
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.not_ready import HeldNotReady, NotReadyClusters
from milo_discoveryd.registry.object_records import OBJECT_READY, STATES, ObjectRecords
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.pending_releases import PendingReleases
from milo_discoveryd.registry.uid_claims import UidClaims


class Registry(ObjectRecords):
    def __init__(
        self,
        log: ChangeLog,
        not_ready: NotReadyClusters | None = None,
        refused: Callable[[Malformed], None] = lambda _: None,
        *,
        drain_timeout_s: float = 0.0,
    ) -> None:
        """`refused` is called with each object whose claim of a project's UID begins to be refused."""
        super().__init__()
        self.log = log
        self.releases = PendingReleases()
        self.assigned_elsewhere: Callable[[str], str | None] = lambda _: None
        """Returns why this daemon must not engage a cluster; None if it may."""
        self._drain_timeout_s = drain_timeout_s
        self._refused = refused
        self._claims = UidClaims()
        self._not_ready = not_ready or NotReadyClusters()
        self._grace_until: dict[str, float] = {}
        """The results of `grace_until`. They are not a field of the records, because few records need it."""
        self._engaged = 0
        self._unreachable = 0
        self.outdated = 0
        """The number of observations that were dropped because a later one of the same object came first."""

    @property
    def engaged(self) -> int:
        return self._engaged

    @property
    def draining_count(self) -> int:
        return len(self.releases)

    @property
    def unreachable(self) -> int:
        """The number of engaged clusters that do not answer connectivity probes."""
        return self._unreachable

    def commit(
        self,
        observed: Iterable[Observation | ConfirmedDeletion],
        now: Moment,
        *,
        consistent: bool = False,
        listed: bool = False,
    ) -> list[Event]:
        """Apply observations in order. Each resulting change has a revision of its own.

        The result of a `consistent` read (a list, or a read of one object) is applied whatever version was seen
        before: after a restore from a backup, versions go back. `listed` objects are of the list that is being read.
        """
        events: list[Event] = []
        for item in observed:
            if isinstance(item, ConfirmedDeletion):
                events += self._delete(item, now)
            elif not consistent and self._is_outdated(item):
                self.outdated += 1
            else:
                events += self._observed(item, now, listed=listed)
        self.log.forget(now.steady)
        return events

    def list_ended(self, missing: Iterable[str] = ()) -> None:
        """Record that a complete list was committed. Versions of absent objects are no longer compared: see `commit`.

        The same holds for objects `missing` from a list of an earlier version: the next object of such a name has a
        version below the known one.
        """
        self._forget_versions(missing)
        self._claims.list_ended()

    @property
    def due_at(self) -> float | None:
        """When `end_overdue` must be called next, on the monotonic clock."""
        return self._not_ready.due_at

    @property
    def not_ready_held(self) -> HeldNotReady | None:
        """The hold of clusters that are not ready, if there are too many to disengage at once."""
        return self._not_ready.held

    @property
    def not_ready_held_count(self) -> int:
        return self._not_ready.held_count

    def grace_until(self, name: str) -> float | None:
        return self._grace_until.get(name)

    def extend_graces(self, lost_at: float, now: Moment) -> None:
        """Exclude the time since `lost_at`, in which the source sent nothing, from the running grace periods."""
        self._postponed(self._not_ready.extend(lost_at, now.steady), now)

    def end_overdue(self, now: Moment) -> list[Event]:
        """Disengage the clusters whose grace period is over, unless there are too many at once."""
        overdue = self._not_ready.overdue(self._engaged, now.steady)
        self._postponed(overdue.postponed, now)
        events: list[Event] = []
        for name in overdue.disengaged:
            record = self._records[name]
            events += self._plan_end(record, DisengageReason.NOT_READY, record.message, now)
        return events

    def _postponed(self, names: Iterable[str], now: Moment) -> None:
        for name in names:
            until = self._not_ready.until(name)
            assert until is not None, "a postponed cluster has a time"
            self._grace_until[name] = now.wall + until - now.steady

    def end_drain(self, name: str, now: Moment) -> list[Event]:
        """Disengage a draining cluster, and engage it again if the reason for the drain no longer applies."""
        record = self._records[name]
        cluster = record.cluster
        assert cluster is not None, "a draining cluster is engaged"
        assert cluster.draining is not None, "the cluster does not drain"
        events = [*self._end(record, cluster.draining.reason, cluster.draining.message, now)]
        elsewhere = self.assigned_elsewhere(name)
        if record.state is ObjectState.READY and elsewhere is not None:
            self._unassign(record, cluster.target, elsewhere, now)
        elif record.state is ObjectState.READY:

            def make(revision: int) -> Cluster:
                return msgspec.structs.replace(
                    without_draining(cluster), engaged_at=now.wall, incarnation=revision, connectivity=UNPROBED
                )

            events.append(self._engage(record, make))
        return events

    def reassign(self, name: str, timeout_s: float, now: Moment) -> list[Event]:
        """Engage or drain a ready cluster, according to the current result of `assigned_elsewhere`."""
        record = self._records[name]
        elsewhere = self.assigned_elsewhere(name)
        if elsewhere is None:
            if record.state is not ObjectState.UNASSIGNED:
                return []
            assert record.target is not None, "it is ready"
            return self._observed(Ready(record.uid, record.version, record.target), now, listed=False)
        events = [*self._plan_end(record, DisengageReason.MOVED, elsewhere, now, timeout_s)]
        self._unassign_ready(record, elsewhere, now)
        return events

    def lose(self, name: str, message: str, now: Moment) -> list[Event]:
        """Disengage a cluster at once, because this daemon can't renew its ownership."""
        record = self._records[name]
        events = [*self._end(record, DisengageReason.OWNERSHIP_LOST, message, now)]
        self._unassign_ready(record, message, now)
        return events

    def _unassign_ready(self, record: ClusterRecord, message: str, now: Moment) -> None:
        """Record that another daemon owns the cluster, unless it still drains here."""
        if record.cluster is None and record.state in OBJECT_READY:
            assert record.target is not None, "it is ready"
            self._unassign(record, record.target, message, now)

    def _unassign(self, record: ClusterRecord, target: Target, message: str, now: Moment) -> None:
        if record.state is not ObjectState.UNASSIGNED:
            self._move(target.name, record, ObjectState.UNASSIGNED, now)
        record.present, record.message = target, message

    def draining(self) -> Iterator[ClusterRecord]:
        return (self._records[name] for name in self.releases)

    def restore(self, seen: Ready, engaged_at: float, now: Moment) -> list[Event]:
        """Engage a cluster of an earlier run. Only allowed before anything was published."""
        return self._observed(seen, Moment(engaged_at, now.steady), listed=False)

    def needs_probe(self, name: str, incarnation: int) -> bool:
        """Return whether a probe of that cluster is still needed."""
        record = self._records.get(name)
        return (
            record is not None
            and (record.engaged or record.state is ObjectState.UNREACHABLE)
            and record.latest is not None
            and record.latest.incarnation == incarnation
        )

    def set_connectivity(self, name: str, incarnation: int, connectivity: Connectivity, now: Moment) -> list[Event]:
        """Apply the result of probes. It is ignored for a cluster that was disengaged meanwhile."""
        if not self.needs_probe(name, incarnation):
            return []
        record = self._records[name]
        assert record.latest is not None, "a cluster that needs a probe is or was engaged"
        found = msgspec.structs.replace(record.latest, connectivity=connectivity)
        if found == record.latest:
            return []
        if record.engaged:
            self._unreachable += _is_unreachable(found) - _is_unreachable(record.latest)
            return self._update(record, found, now)
        if connectivity.state is not ConnectivityState.REACHABLE:
            return []
        if (elsewhere := self.assigned_elsewhere(name)) is not None:
            self._unassign(record, found.target, elsewhere, now)
            return []

        def make(revision: int) -> Cluster:
            return msgspec.structs.replace(found, engaged_at=now.wall, incarnation=revision)

        self._move(name, record, ObjectState.READY, now)
        record.message = ""
        return [self._engage(record, make)]

    def disengage_unreachable(self, name: str, incarnation: int, message: str, now: Moment) -> Iterable[Event]:
        """Disengage a cluster until it is reachable again or its endpoint changes."""
        record = self._records.get(name)
        if record is None or record.state is not ObjectState.READY or not self.needs_probe(name, incarnation):
            return ()
        self._move(name, record, ObjectState.UNREACHABLE, now)
        record.message = message
        return self._end(record, DisengageReason.UNREACHABLE, message, now)

    def clear(self) -> None:
        super().clear()
        self._not_ready.clear()
        self._grace_until.clear()
        self._claims.clear()
        self._engaged = 0
        self._unreachable = 0
        self.releases.clear()
        self.log.clear()

    def _observed(self, seen: Observation, now: Moment, *, listed: bool) -> list[Event]:
        events: list[Event] = []
        if isinstance(seen, Ready):
            if self._claim(seen, now, events, listed=listed):
                events += self._ready(seen, now)
            else:
                message = f"project UID {seen.target.uid} is claimed by another object too"
                events += self._refuse(Malformed(seen.name, seen.uid, seen.version, message), now)
        else:
            if isinstance(seen, NotReady):
                self._claim(seen, now, events, listed=listed)
            events += self._not_wanted(seen, now)
        return events

    def _claim(self, seen: Ready | NotReady, now: Moment, events: list[Event], *, listed: bool) -> bool:
        """Return whether the object may stand for the project whose UID it claims."""
        uid = (seen.target.uid if isinstance(seen, Ready) else seen.project_uid) or seen.uid
        if not self._claims:
            if uid == seen.uid:
                return True  # in all modes but one, the UID is the object's own and not a label
            self._claims.begin((name, record.uid) for name, record in self._records.items())
        if self._claims.claimed_by(seen.name) not in (None, uid):
            self._release_claim(seen.name, now, events)
        ready = seen if isinstance(seen, Ready) else None
        ousted = self._claims.claim(seen.name, uid, ready, listed=listed)
        record = self._records.get(ousted or "")
        if ousted and record is not None and record.cluster is not None:
            was = Ready(record.uid, record.version, record.cluster.target)
            self._claims.refuse(uid, was)
            message = f"project UID {uid} is claimed by another object too"
            events += self._refuse(Malformed(ousted, was.uid, was.version, message), now)
            events += self._end(record, DisengageReason.NOT_READY, message, now)
        return ousted is None or ready is None

    def _release_claim(self, name: str, now: Moment, events: list[Event]) -> None:
        other = self._claims.release(name)
        if other is not None:
            events += self._ready(other, now)

    def _refuse(self, seen: Malformed, now: Moment) -> Iterable[Event]:
        record = self._records.get(seen.name)
        if record is None or record.state is not ObjectState.MALFORMED:
            self._refused(seen)
        return self._not_wanted(seen, now)

    def _ready(self, seen: Ready, now: Moment) -> Iterable[Event]:
        known = self._records.get(seen.name)
        if (
            known is not None
            and known.state is ObjectState.READY
            and known.uid == seen.uid
            and known.cluster is not None
        ):
            known.version = seen.version
            return self._still_engaged(known, known.cluster, seen, now)  # nearly every change

        def make(revision: int) -> Cluster:
            return Cluster(
                target=seen.target,
                source_version=seen.version,
                engaged_at=now.wall,
                incarnation=revision,
                object_uid=seen.uid,
            )

        if self._stays_unreachable(seen):
            return ()
        replaced = self._replaced_by(seen)
        readiness = None if self._was_engaged(seen) else seen.readiness
        elsewhere = self.assigned_elsewhere(seen.name)
        if elsewhere is not None and (replaced or not self.is_engaged(seen.name)):
            record = self._record(seen, ObjectState.UNASSIGNED, now)
            record.present, record.message = seen.target, elsewhere
            return self._end(record, DisengageReason.REPLACED, replaced, now)
        record = self._record(seen, ObjectState.READY, now)
        before = record.cluster
        if before is None:
            return (self._engage(record, make, readiness),)
        if replaced:
            self.releases.end(seen.name)
            ended = record.end(before, DisengageReason.REPLACED, replaced, now.wall)
            self._unreachable -= _is_unreachable(before)
            cluster = self.log.replace(record, replaced, make, now.steady)
            return (ended, Event(EventType.ENGAGED, cluster, readiness=readiness))
        return self._still_engaged(record, before, seen, now)

    def _still_engaged(self, record: ClusterRecord, before: Cluster, seen: Ready, now: Moment) -> Iterable[Event]:
        if seen.target == before.target:
            return ()
        cluster = msgspec.structs.replace(before, target=seen.target, source_version=seen.version)
        return self._update(record, cluster, now)

    def _stays_unreachable(self, seen: Ready) -> bool:
        """Update a cluster disengaged as unreachable; return False if it is another object or has another endpoint."""
        record = self._records.get(seen.name)
        if record is None or record.state is not ObjectState.UNREACHABLE or seen.uid not in ("", record.uid):
            return False
        assert record.former is not None, "it was engaged before"
        if seen.target.endpoint != record.former.target.endpoint:
            return False
        record.version = seen.version
        record.former = msgspec.structs.replace(record.former, target=seen.target, source_version=seen.version)
        return True

    def _not_wanted(self, seen: NotReady | Withdrawn | Outside | Malformed, now: Moment) -> Iterable[Event]:
        replaced = self._replaced_by(seen)
        record = self._record(seen, STATES[type(seen)], now)
        if replaced or isinstance(seen, Refused):
            reason = DisengageReason.REPLACED if replaced else DisengageReason.LABELS_CHANGED
            return self._end(record, reason, replaced or seen.message, now)
        if isinstance(seen, Malformed):
            return ()  # the cluster stays as it last was
        if isinstance(seen, Outside):
            return self._plan_end(record, DisengageReason.LABELS_CHANGED, seen.message, now)
        if isinstance(seen, Withdrawn):
            return self._plan_end(record, DisengageReason.REMOVED, seen.message, now, seen.drain_s)
        is_draining = seen.name in self.releases
        if record.engaged and not is_draining and not self._not_ready.began(seen.name, self._engaged, now.steady):
            self._postponed((seen.name,), now)
            return ()
        return self._plan_end(record, DisengageReason.NOT_READY, seen.message, now)

    def _delete(self, deleted: ConfirmedDeletion, now: Moment) -> Iterable[Event]:
        record = self._records.get(deleted.name)
        if record is None or record.uid != deleted.uid or record.state is ObjectState.DELETED:
            return ()
        self._move(deleted.name, record, ObjectState.DELETED, now)
        record.message = "the object was deleted"
        events = [*self._end(record, DisengageReason.DELETED, record.message, now)]
        self._release_claim(deleted.name, now, events)
        return events

    def _engage(
        self, record: ClusterRecord, make: Callable[[int], Cluster], readiness: tuple[str, str] | None = None
    ) -> Event:
        record.former = None
        self._engaged += 1
        return Event(EventType.ENGAGED, self.log.engage(record, make), readiness=readiness)

    def _update(self, record: ClusterRecord, cluster: Cluster, now: Moment) -> list[Event]:
        self.log.update(record, cluster, now.steady)
        updated = Event(EventType.UPDATED, cluster)
        if cluster.draining is not None and self.releases.update(cluster):
            return [updated, *self.end_drain(cluster.target.name, now)]
        return [updated]

    def _plan_end(
        self,
        record: ClusterRecord,
        reason: DisengageReason,
        message: str,
        now: Moment,
        timeout_s: float | None = None,
    ) -> Iterable[Event]:
        if record.cluster is None:
            return ()
        # Scopes and filters match the present fields of the object.
        cluster = _with_fields(record.cluster, record.present)
        if cluster.draining is not None:
            return () if cluster is record.cluster else self._update(record, cluster, now)
        timeout_s = self._drain_timeout_s if timeout_s is None else timeout_s
        awaits_return = reason is not DisengageReason.MOVED  # the shard group has its own time limits for hand-overs
        until = now.steady + timeout_s
        if not timeout_s or not self.releases.begin(cluster, until, now.steady, awaits_return=awaits_return):
            return self._end(record, reason, message, now)
        name = cluster.target.name
        self._not_ready.ended(name)
        self._grace_until.pop(name, None)
        self._keep(name)
        draining = Draining(reason, message, now.wall + timeout_s)
        return self._update(record, with_draining(cluster, draining), now)

    def _end(self, record: ClusterRecord, reason: DisengageReason, message: str, now: Moment) -> Iterable[Event]:
        cluster = record.cluster
        if cluster is None:
            return ()
        name = cluster.target.name
        self._not_ready.ended(name)
        self._grace_until.pop(name, None)
        if cluster.draining is not None:
            self.releases.end(name)
            self._note_absent(name, record.state)
        ended = record.end(cluster, reason, message, now.wall)
        record.former = without_draining(cluster)
        self.log.disengage(record, reason, message, now.steady)
        self._engaged -= 1
        self._unreachable -= _is_unreachable(cluster)
        return (ended,)

    def _move(self, name: str, record: ClusterRecord, state: ObjectState, now: Moment) -> None:
        super()._move(name, record, state, now)
        if state is not ObjectState.NOT_READY:
            self._not_ready.forget(name)
            self._grace_until.pop(name, None)

    def _drop(self, name: str) -> None:
        super()._drop(name)
        self._claims.release(name)


def _is_unreachable(cluster: Cluster) -> bool:
    return cluster.connectivity.state is ConnectivityState.UNREACHABLE


def _with_fields(cluster: Cluster, present: ObjectFields | Target | None) -> Cluster:
    target = cluster.target
    if present is None or (present.labels, present.organization) == (target.labels, target.organization):
        return cluster
    target = msgspec.structs.replace(target, labels=present.labels, organization=present.organization)
    return msgspec.structs.replace(cluster, target=target)
