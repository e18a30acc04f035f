"""A fleet whose clusters do not each stand for one object: each resource has a feed, and a reduction combines them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from milo_discoveryd.model.claims import UNREAD, Claim, ClaimingObject
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import ObjectKeys
from milo_discoveryd.registry.change_notifier import ChangeNotifier
from milo_discoveryd.registry.cluster_records import ObjectState
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.fleet import PORTION, PendingReports, SourceFleet, worst
from milo_discoveryd.registry.intake_sink import IntakeSink, Observer, at
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import ConfirmationRequest, ConfirmationResult, PendingDeletions
from milo_discoveryd.registry.reduction import Reduce, Reduction
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_discoveryd.state_file.encoding import StoredObject
from milo_kube.reflect.messages import SourceEvent
from milo_kube.reflect.source_status import SourceStatus

_NO_RETENTION = Retention(0, 0.0)


class ObjectFeed(IntakeSink):
    """The objects of one resource. It receives the events of one driver."""

    def __init__(
        self,
        fleet: "ReducedFleet",
        watch: int,
        pending_deletions: PendingDeletions,
        observer: Observer,
        *,
        guard: RemovalGuard | None,
        keys: ObjectKeys,
    ) -> None:
        # Subscribers read the log of clusters, not this log of objects, so it keeps no history.
        objects = Registry(ChangeLog(lambda _: b"", _NO_RETENTION), refused=observer.object_refused)
        super().__init__(objects, pending_deletions, observer, guard=guard, keys=keys, shares_log=True)
        self.status = fleet.status
        self._fleet = fleet
        self._watch = watch

    def take(self, source_events: Iterable[SourceEvent[Observation]], read_at: float) -> Iterator[None]:
        """Apply source events in portions; the caller may let other tasks run between them."""
        order = self._fleet.next_order()
        was_complete = self._fleet.is_complete
        for events in self._intake.take(self._observed(source_events), at(read_at)):
            yield from self._fleet.apply(self._watch, events, order, read_at)
        if self._fleet.is_complete != was_complete:
            self._fleet.completed(read_at)

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> None:
        """Apply the result of a confirmation read."""
        events = self._resolved(request, result, read_at)
        for _ in self._fleet.apply(self._watch, events, self._fleet.next_order(), read_at):
            pass

    def source(self, status: SourceStatus) -> None:
        self.status = self._believed(status)
        self._fleet.status_changed()

    @property
    def due_at(self) -> float | None:
        return self._fleet.due_at

    def tick(self, now: float) -> None:
        self._fleet.tick(now)

    def restore(self, objects: Iterable[StoredObject], status: SourceStatus) -> None:
        """Start with the objects of an earlier run."""
        self._intake.restore(map(_unread, objects), at(status.since))
        self.source(status)

    def usable(self) -> Iterator[tuple[str, str]]:
        """Yield the keys and UIDs of the objects that have content, or had it before they became unusable."""
        return ((each.target.name, each.target.uid) for each in self._objects.clusters())

    def problem_of(self, key: str) -> str:
        """Return why an object cannot be used, or an empty string if it can."""
        record = self._objects[key]
        return record.message if record is not None and record.state is ObjectState.MALFORMED else ""


class ReducedFleet(SourceFleet):
    def __init__(
        self,
        log: ChangeLog,
        reduce: Reduce,
        observer: Observer,
        *,
        keys: Sequence[ObjectKeys],
        pending_deletions: Callable[[], PendingDeletions],
        guard: Callable[[], RemovalGuard | None] = lambda: None,
        not_ready: NotReadyClusters | None = None,
        drain_timeout_s: float = 0.0,
        name: str = "",
        kind: str = "",
        context: str = "",
        notifier: ChangeNotifier | None = None,
    ) -> None:
        """`keys` has an item for each watched resource; the factories are called for each."""
        super().__init__(
            log,
            observer,
            not_ready=not_ready,
            drain_timeout_s=drain_timeout_s,
            name=name,
            kind=kind,
            context=context,
            notifier=notifier,
        )
        self._reduction = Reduction(reduce, self.registry)
        self._order = 0
        self._feeds = tuple(
            ObjectFeed(self, watch, pending_deletions(), observer, guard=guard(), keys=each)
            for watch, each in enumerate(keys)
        )

    @property
    def feeds(self) -> tuple[ObjectFeed, ...]:
        return self._feeds

    @property
    def pending_reports(self) -> PendingReports:
        return PendingDeletionsOfObjects(self.feeds, self._reduction)

    @property
    def synced(self) -> bool:
        """True after one complete list of each resource, in this run or in the run that wrote the state file."""
        return self._is_assigned and self._is_listed

    @property
    def _is_listed(self) -> bool:
        return all(feed.synced for feed in self.feeds)

    @property
    def is_restored(self) -> bool:
        """True while part of the fleet is from the state file. It may lack clusters that were engaged since then."""
        return any(feed.is_restored for feed in self.feeds)

    @property
    def is_complete(self) -> bool:
        """True after one complete list of each resource in this run."""
        return self._is_listed and not self.is_restored

    def problem_of(self, cluster: str) -> str:
        """Return why objects that describe a cluster cannot be used, so that the cluster stays as last described."""
        problems = (self._feeds[watch].problem_of(key) for watch, key in self._reduction.objects(cluster))
        return "; ".join(filter(None, problems))

    def next_order(self) -> int:
        """Return the order of new claims. All claims of the first lists have the same order."""
        self._order += self._is_listed
        return self._order

    def apply(self, watch: int, events: list[Event], order: int, read_at: float) -> Iterator[None]:
        """Apply changes of objects. Thousands of clusters may need one object, so they are committed in portions."""
        names = self._reduction.apply(watch, events, order)
        for begin in range(0, max(len(names), 1), PORTION):
            self._publish(self._reduction.commit(names[begin : begin + PORTION], at(read_at)), read_at)
            yield

    def completed(self, read_at: float) -> None:
        """Record that every resource was listed."""
        self._publish(self._reduction.listed(at(read_at)), read_at)
        self._observer.synced(self.registry.engaged)
        self.notifier.notify()

    def status_changed(self) -> None:
        """Set the status of the fleet to the worst one of its resources."""
        status = worst([feed.status for feed in self.feeds])
        self._pause_graces(status)
        self._set_status(status)

    def stored_objects(self) -> Iterator[StoredObject]:
        """Yield the objects that the state file stores in addition to the clusters."""
        for watch, feed in enumerate(self.feeds):
            for key, uid in feed.usable():
                yield StoredObject(watch, key, uid, self._reduction.names((watch, key)))

    def restore(
        self, stored: Iterable[tuple[Ready, float]], objects: Iterable[StoredObject], status: SourceStatus
    ) -> None:
        """Serve the clusters of an earlier run at once, with a status that says how old they are."""
        now, present = at(status.since), list(objects)
        events = [event for seen, engaged_at in stored for event in self.registry.restore(seen, engaged_at, now)]
        for watch, feed in enumerate(self.feeds):
            known = [each for each in present if each.watch == watch]
            self._reduction.restore(watch, ((each.key, each.uid, each.clusters) for each in known))
            feed.restore(known, status)
        self._publish(events, status.since)
        self._observer.synced(self.registry.engaged)
        self.notifier.notify()


def _unread(stored: StoredObject) -> tuple[Ready, float]:
    """Return a stored object as present; its content is not known until it is seen again."""
    claims = tuple(Claim(name, UNREAD) for name in stored.clusters)
    unread = ClaimingObject(name=stored.key, uid=stored.uid, place=(), claims=claims, content=UNREAD)
    return Ready(stored.uid, "", unread), 0.0


class PendingDeletionsOfObjects:
    """The deletions of all feeds that await confirmation, by cluster."""

    def __init__(self, feeds: Sequence[ObjectFeed], reduction: Reduction) -> None:
        self._feeds = feeds
        self._reduction = reduction

    def __len__(self) -> int:
        return sum(len(feed.pending_deletions) for feed in self._feeds)

    @property
    def held(self) -> int:
        return sum(feed.pending_deletions.held for feed in self._feeds)

    def explain(self, cluster: str) -> tuple[float, str] | None:
        """Return when one of the cluster's objects was reported as deleted, and why that is not confirmed yet."""
        for watch, key in self._reduction.objects(cluster):
            pending = self._feeds[watch].pending_deletions.explain(key)
            if pending is not None:
                return pending
        return None
