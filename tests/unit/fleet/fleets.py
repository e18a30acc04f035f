"""Builders of observations, timestamps and clusters, and a log with readable frames."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.fleet.source import ObjectsAreClusters
from milo_discoveryd.log.change_log import STALE_SLOTS, ChangeLog, LogEntry, Retention
from milo_discoveryd.log.events import Event, EventType, Frame
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Target
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.observation import Malformed, NotReady, Outside, Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import ConfirmationRequest, ConfirmationResult, PendingDeletions
from milo_discoveryd.objects.store import CollectionWeight, ObjectChanges, ObjectStore, Positions, SourcePositions
from milo_kube.moment import Moment
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent

T = TypeVar("T")

WALL_AT_ZERO = 1_000_000.0


_EVENTS = msgspec.json.Decoder(Event)


def at(seconds: float) -> Moment:
    """Return a moment whose wall clock differs from its monotonic clock, so that a test that confuses them fails."""
    return Moment(WALL_AT_ZERO + seconds, seconds)


def wall(seconds: float) -> float:
    return at(seconds).wall


def target(name: str = "a", uid: str = "u1", **fields: Any) -> Target:
    """Return a cluster's target; `suspended` adds a suspension without details."""
    labels = tuple(sorted(fields.pop("labels", {}).items()))
    if fields.pop("suspended", False):
        fields["suspensions"] = ()
    return Target(name=name, uid=uid, place=(f"https://{name}.example.com",), labels=labels, **fields)


def ready(name: str = "a", version: str = "1", uid: str = "u1", **fields: Any) -> Ready:
    return Ready(uid, version, target(name, uid, **fields))


def end_overdue(fleet: Engagements, now: Moment) -> Iterator[list[Event]]:
    """Disengage the clusters whose grace period is over, one by one, as a source does."""
    for name in filter(None, fleet.not_ready.take_overdue(fleet.engaged, now.steady)):
        yield fleet.end_not_ready(name, now)


def not_ready(name: str = "a", version: str = "2", uid: str = "u1", message: str = "not yet") -> NotReady:
    return NotReady(name, uid, version, message)


def outside(name: str = "a", version: str = "2", uid: str = "u1") -> Outside:
    return Outside(name, uid, version, "not selected")


def malformed(name: str = "a", version: str = "2", uid: str = "u1") -> Malformed:
    return Malformed(name, uid, version, "nonsense")


def cluster(
    name: str = "a", incarnation: int = 1, uid: str = "u1", engaged_at: float = 0.0, version: str = "1", **fields: Any
) -> Cluster:
    return Cluster(
        target=target(name, uid, **fields),
        source_version=version,
        engaged_at=wall(engaged_at),
        incarnation=incarnation,
        object_uid=uid,
    )


class NamedLog(ChangeLog):
    """A log that also keeps entries by name, as the engagements do."""

    @cached_property
    def _by_name(self) -> defaultdict[str, LogEntry]:
        return defaultdict(LogEntry)

    def entry(self, name: str) -> LogEntry:
        return self._by_name[name]

    def engage(self, entry: LogEntry, make: Callable[[int], Cluster]) -> Cluster:
        made = make(self.next_revision)
        self.append(entry, engaged(made), 0.0)
        return made

    def update(self, entry: LogEntry, cluster: Cluster, now: float) -> None:
        self.append(entry, updated(cluster), now)

    def disengage(self, entry: LogEntry, reason: DisengageReason, message: str, now: float) -> None:
        assert entry.cluster is not None
        self.append(entry, disengaged(entry.cluster, reason, message), now)

    def replace(self, entry: LogEntry, message: str, make: Callable[[int], Cluster], now: float) -> Cluster:
        assert entry.cluster is not None
        made = make(self.next_revision)
        ended = disengaged(entry.cluster, DisengageReason.REPLACED, message)
        self.append(entry, ended, now, then=engaged(made))
        return made


def readable_log(
    retention: Retention | None = None, batch_bytes: int = 1 << 20, stale_slots: int = STALE_SLOTS
) -> NamedLog:
    return NamedLog(msgspec.json.encode, retention or Retention(), batch_bytes, stale_slots)


def engagements(grace_s: float = 0.0, *, drain_s: float = 0.0) -> Engagements:
    return Engagements(readable_log(), NotReadyClusters(grace_s), drain_timeout_s=drain_s)


class NeverMass(RemovalLimits, frozen=True):
    """Limits that hold no removal, however many clusters are missing."""

    def is_burst(self, ended: int, engaged: int) -> bool:
        return False

    def is_mass(self, missing: int, engaged: int) -> bool:
        return False


NEVER_MASS = NeverMass()


class ListedClusters:
    """A collection whose objects are clusters, with a manual clock."""

    def __init__(
        self,
        limits: RemovalLimits = NEVER_MASS,
        *,
        weight: CollectionWeight | None = None,
        clusters: Engagements | None = None,
        pending_deletions: PendingDeletions | None = None,
    ) -> None:
        self.engagements = engagements() if clusters is None else clusters
        self.pending_deletions = PendingDeletions(lambda: 0.0) if pending_deletions is None else pending_deletions
        positions = SourcePositions(Positions(), [0])
        self.collection = ObjectCollection(0, ObjectStore(weight), self.pending_deletions, positions, limits)
        self.now = 0.0

    @property
    def store(self) -> ObjectStore:
        return self.collection.store

    def take_batches(self, events: Iterable[SourceEvent[ObservedObject]]) -> Iterator[list[Event]]:
        for objects in self.collection.apply_events(events, at(self.now)):
            yield self._commit(objects)

    def take(self, *events: SourceEvent[ObservedObject]) -> list[Event]:
        return [event for batch in self.take_batches(events) for event in batch]

    def lists(self, *objects: ObservedObject, version: str = "") -> list[Event]:
        return self.take(ListStarted(), *map(Listed, objects), ListEnded(version))

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult) -> list[Event]:
        return self._commit(self.collection.resolve(request, result, at(self.now)))

    def restore(self, stored: Iterable[tuple[Ready, float]], now: Moment, version: str = "") -> None:
        stored = [*stored]
        self.collection.restore((seen for seen, _ in stored))
        self.collection.end_restore(version)
        for seen, engaged_at in stored:
            self.engagements.commit([seen], Moment(engaged_at, now.steady))

    def due_requests(self) -> list[ConfirmationRequest]:
        return self.pending_deletions.take_due(self.now)

    def requested_names(self) -> list[str]:
        return [request.name for request in self.due_requests()]

    def _commit(self, objects: ObjectChanges) -> list[Event]:
        return [
            event
            for batch in ObjectsAreClusters().states(0, objects)
            for event in self.engagements.commit(batch.states, at(self.now))
        ]


def finish(steps: Generator[None, None, T]) -> T:
    """Make all steps. Return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: T = ended.value
            return result


def read(frames: Iterable[Frame]) -> list[Event]:
    return [_EVENTS.decode(frame.data) for frame in frames]


def engaged(of: Cluster) -> Event:
    return Event(EventType.ENGAGED, of)


def updated(of: Cluster) -> Event:
    return Event(EventType.UPDATED, of)


def disengaged(of: Cluster, reason: DisengageReason, message: str = "") -> Event:
    return Event(EventType.DISENGAGED, of, reason, message)


def done(event: Event) -> Event:
    return Event(event.type, event.cluster, event.reason, event.message)
