"""A source of clusters: its registry, the feeds of its collections, and how current they are.

It gives the pure parts of this package the wall-clock time. The monotonic time comes from its callers: it is the time
of their event loop.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from milo_discoveryd.connectivity.reachability import ConnectivityChange
from milo_discoveryd.model.claims import UNREAD, Claim, ClaimingObject
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.registry.change_notifier import LOW_PRIORITY_DELAY_S
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.feed import Feed, at, worst
from milo_discoveryd.registry.first_list import FirstList
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.not_ready import HeldNotReady, NotReadyClusters
from milo_discoveryd.registry.object_budget import UNLIMITED, CollectionWeight, ObjectBudget
from milo_discoveryd.registry.object_records import ObjectRecords
from milo_discoveryd.registry.observer import Observer
from milo_discoveryd.registry.pending_deletions import PendingDeletions
from milo_discoveryd.registry.reduction import Reduce, Reduction
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_discoveryd.state_file.encoding import StoredObject
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus

RESTORED = "Restored"
"""Reason of the status until the source answers, of a fleet from the state file."""
NOT_READY_HELD = "NotReadyHeld"
"""The status reason of a source in which a large part of the fleet is not ready."""

CLUSTERS_PER_STEP = 250
"""The number of clusters that are changed in one step of the event loop."""


class _Progress(msgspec.Struct, frozen=True):
    synced: bool
    is_complete: bool
    is_restored: bool
    lists: int


class SourceDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a source is, for readers."""

    name: str = ""
    kind: str = ""
    context: str = ""
    """The context of Milo that it follows."""
    ready_when: str = ""
    """That of `SourceKind`."""
    server: str = ""
    """Sources with equal ones follow one API server."""


def _no_guard() -> None:
    return None


class SourcePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When clusters of a source end, and what its objects may take. The factories are called for each collection."""

    pending_deletions: Callable[[], PendingDeletions]
    guard: Callable[[], RemovalGuard | None] = _no_guard
    not_ready: NotReadyClusters | None = None
    drain_timeout_s: float = 0.0
    objects_limit: int = UNLIMITED


class ClusterSource:
    def __init__(
        self,
        fleet: Fleet,
        observer: Observer,
        policy: SourcePolicy,
        description: SourceDescription | None = None,
        *,
        keys: Sequence[ObjectKeys] = (NAMES,),
        reduce: Reduce | None = None,
    ) -> None:
        """`keys` has an item for each collection. Without `reduce`, each object is the cluster of its name."""
        self.fleet = fleet
        self.description = description or SourceDescription()
        self.name = self.description.name
        self.observer = observer
        budget = ObjectBudget(policy.objects_limit)
        objects = [ObjectRecords(CollectionWeight(budget)) for _ in keys] if reduce is not None else []
        self.registry = Registry(
            fleet.log,
            policy.not_ready,
            observer.object_refused,
            drain_timeout_s=policy.drain_timeout_s,
            releases=fleet.releases,
            claims=fleet.claims,
            server=self.description.server or self.name,
            weight=None if objects else CollectionWeight(budget),
        )
        starting = ViewStatus(ViewState.CATCHING_UP, time.monotonic(), "Starting", "nothing was read yet")
        self.status = starting
        self._shown_held: HeldNotReady | None = None
        self._listed: int | None = None
        """The number of clusters that the first list of this run described, or a later one that had more."""
        self._lost_at: float | None = None
        """The time of the last contact with the source, while the connection is lost."""
        self.restored_positions: Mapping[str, int] = {}
        """For each earlier run of the daemon, a revision of that run. The restored clusters contain everything that a
        subscriber at or below this revision knows."""
        self._is_assigned = True
        """Whether it is known which clusters this daemon must engage."""
        self._reduction = None if reduce is None else Reduction(reduce, self.registry, objects)
        self._order = 0
        self.feeds = tuple(
            Feed(
                self,
                watch,
                objects[watch] if objects else self.registry,
                pending_deletions=policy.pending_deletions(),
                observer=observer,
                status=starting,
                guard=policy.guard(),
                keys=each,
            )
            for watch, each in enumerate(keys)
        )
        fleet.add(self)

    # --- what the feeds report ---

    @property
    def synced(self) -> bool:
        """True after one complete list of each collection, in this run or in the run that wrote the state file."""
        return self._is_assigned and self._is_listed

    @property
    def _is_listed(self) -> bool:
        return all(feed.synced for feed in self.feeds)

    @property
    def is_restored(self) -> bool:
        """True while part of the state is from the state file. It may differ from what was engaged since then."""
        return any(feed.is_restored for feed in self.feeds)

    def began(self) -> _Progress:
        self._order += self._is_listed  # all claims of the first lists have the same order
        return self._progress

    @property
    def _progress(self) -> _Progress:
        is_listed, is_complete, is_restored, lists = True, True, False, 0
        for feed in self.feeds:  # in one pass: this runs twice for each batch of events
            intake = feed.intake
            is_listed = is_listed and intake.synced
            is_complete = is_complete and not intake.awaits_list
            is_restored = is_restored or intake.is_restored
            lists += intake.lists
        return _Progress(is_listed and self._is_assigned, is_listed and is_complete, is_restored, lists)

    @property
    def lists(self) -> int:
        """The number of lists of this run that were applied, at least in part."""
        return sum(feed.intake.lists for feed in self.feeds)

    def apply(self, feed: Feed, changes: list[Any], read_at: float) -> Iterator[None]:
        """Apply changes of objects. Thousands of clusters may need one object, so they are committed in batches."""
        if self._reduction is None:
            self.fleet.publish(self, changes, read_at)
            yield
            return
        names = self._reduction.apply(feed.watch, changes, self._order)
        for begin in range(0, max(len(names), 1), CLUSTERS_PER_STEP):
            self.fleet.publish(
                self, self._reduction.commit(names[begin : begin + CLUSTERS_PER_STEP], at(read_at)), read_at
            )
            yield

    def ended(self, progress: _Progress, read_at: float) -> None:
        now = self._progress
        if (version := self.version) != self.fleet.versions.get(self.name, 0):
            self.fleet.versions = {**self.fleet.versions, self.name: version}
        if self._reduction is not None and now.is_complete:
            if not progress.is_complete:
                self.fleet.publish(self, self._reduction.listed(at(read_at)), read_at)
            self.registry.list_ended()
        if now.lists != progress.lists and now.is_complete:
            self._listed = max(self._listed or 0, self.registry.present_count)
        if now.synced and not progress.synced:
            self.observer.synced(self.registry.engaged)
        if now != progress:
            self.fleet.notifier.notify()

    @property
    def first_list(self) -> FirstList:
        """What the first list of this run described. What the watch added proves nothing about what the list lacks."""
        engaged = self.registry.engaged
        limits = (feed.intake.unverified for feed in self.feeds)
        return FirstList(
            engaged if self._listed is None else min(engaged, self._listed),
            next(filter(None, limits), None),
            self.version,
        )

    @property
    def version(self) -> int:
        """The resource version up to which the source is followed; 0 if versions cannot be compared.

        Several collections can be those of several API servers.
        """
        return self.feeds[0].intake.version if len(self.feeds) == 1 else 0

    def status_changed(self) -> None:
        self._pause_graces(worst([feed.followed for feed in self.feeds]))
        self._set_status()

    def _pause_graces(self, followed: ViewStatus) -> None:
        if followed.state is not ViewState.STREAMING:
            if self._lost_at is None:
                self._lost_at = followed.since if followed.last_contact is None else followed.last_contact
        elif self._lost_at is not None:
            self.registry.extend_graces(self._lost_at, at(followed.since))
            self._lost_at = None

    def _set_status(self) -> None:
        """Set the status to the worst one of the collections, unless clusters are held although they are not ready."""
        status, held = worst([feed.status for feed in self.feeds]), self.registry.not_ready_held
        self._shown_held = held
        if held is not None and status.state is ViewState.STREAMING:
            status = ViewStatus(ViewState.CATCHING_UP, held.since, NOT_READY_HELD, held.message, status.last_contact)
        changed = status.state is not self.status.state or status.reason != self.status.reason
        self.status = status
        if changed:
            self.observer.source(status)
            self.fleet.notifier.notify()

    @property
    def due_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens."""
        return self.registry.due_at if self._lost_at is None else None

    def tick(self, now: float) -> None:
        """Disengage the clusters whose grace period is over. No grace period ends while the source is lost."""
        if self._lost_at is not None:
            return
        self.fleet.publish(self, self.registry.end_overdue(at(now)), now)
        if self.registry.not_ready_held != self._shown_held:
            self._set_status()

    # --- the state file ---

    def stored_objects(self) -> Iterator[StoredObject]:
        """Yield the objects that the state file stores in addition to the clusters."""
        for feed in self.feeds if self._reduction is not None else ():
            for key, record in feed.objects.items():
                if record.engaged:
                    yield StoredObject(feed.watch, key, record.uid, tuple(each.cluster for each in record.claims))

    def restore(
        self, stored: Iterable[tuple[Ready, float]], objects: Iterable[StoredObject], status: ViewStatus
    ) -> None:
        """Serve the clusters of an earlier run at once, with a status that says how old they are."""
        now, present = at(status.since), list(objects)
        if self._reduction is None:
            events = self.feeds[0].intake.restore(stored, now)
        else:
            events = [event for seen, engaged_at in stored for event in self.registry.restore(seen, engaged_at, now)]
            for feed in self.feeds:
                known = (_unread(each) for each in present if each.watch == feed.watch)
                self._reduction.restore(feed.watch, feed.intake.restore(known, now))
        for feed in self.feeds:
            feed.source(status)
        self.fleet.publish(self, events, status.since)
        self.observer.synced(self.registry.engaged)
        self.fleet.notifier.notify()

    # --- changes that no object makes ---

    def set_targets(self, targets: Iterable[Target], now: float) -> None:
        """Engage the clusters of a source that knows all of them from the start."""
        ready: list[SourceEvent[Observation]] = [Listed(Ready(target.uid, "", target)) for target in targets]
        for _ in self.feeds[0].take([ListStarted(), *ready, ListEnded()], now):
            pass
        self.feeds[0].source(ViewStatus(ViewState.STREAMING, now, last_contact=now))

    def connectivity_changed(self, change: ConnectivityChange) -> None:
        now = at(time.monotonic())
        name, incarnation, found = change.name, change.incarnation, change.connectivity
        events = list(self.registry.set_connectivity(name, incarnation, found, now))
        if change.disengages:
            message = f"unreachable for too long; {found.message}"
            events += self.registry.disengage_unreachable(name, incarnation, message, now)
        is_urgent = any(event.type is not EventType.UPDATED for event in events)
        self.fleet.publish(self, events, now.steady if is_urgent else None)
        if events and not is_urgent:
            self.fleet.notifier.notify(LOW_PRIORITY_DELAY_S)

    def await_assignment(self, message: str) -> None:
        """Engage nothing, and stay unsynced, until `assign` says which clusters this daemon owns."""
        self._is_assigned = False
        self.registry.assigned_elsewhere = lambda _: message

    def assign(self, elsewhere: Callable[[str], str | None], timeout_s: float, *, is_decided: bool) -> Iterator[None]:
        """Engage the clusters that this daemon owns, and drain the others, in batches; see `Registry.reassign`.

        `elsewhere` returns why this daemon does not own a cluster. The source is not synced before the first decision.
        """
        self.registry.assigned_elsewhere = elsewhere
        names = iter([name for name, _ in self.registry.items()])
        while batch := [*islice(names, CLUSTERS_PER_STEP)]:
            now = at(_steady())
            found = (self.registry.reassign(name, timeout_s, now) for name in batch if self.registry[name])
            self.fleet.publish(self, [event for events in found for event in events], now.steady)
            yield
        if is_decided and not self._is_assigned:
            self._is_assigned = True
            if self.synced:
                self.observer.synced(self.registry.engaged)
            self.fleet.notifier.notify()

    def lose_ownership(self, message: str) -> None:
        """Disengage everything at once, until `assign` is called again."""
        self.registry.assigned_elsewhere = lambda _: message
        now = at(_steady())
        found = (self.registry.lose(name, message, now) for name, _ in [*self.registry.items()])
        self.fleet.publish(self, [event for events in found for event in events], now.steady)

    # --- what is known about one cluster ---

    @property
    def deletions_unconfirmed(self) -> int:
        return sum(len(feed.pending_deletions) for feed in self.feeds)

    @property
    def deletions_held(self) -> int:
        return sum(feed.pending_deletions.held for feed in self.feeds)

    def pending_deletion(self, cluster: str) -> tuple[float, str] | None:
        """Return when an object of the cluster was reported as deleted, and what keeps that from being confirmed."""
        pending = (feed.pending_deletions.explain(key) for feed, key in self._objects_of(cluster))
        return next(filter(None, pending), None)

    def problem_of(self, cluster: str) -> str:
        """Return why objects that describe a cluster cannot be used, so that the cluster stays as last described.

        Empty if each object is itself a cluster.
        """
        if self._reduction is None:
            return ""
        return "; ".join(filter(None, (feed.problem_of(key) for feed, key in self._objects_of(cluster))))

    def _objects_of(self, cluster: str) -> Iterable[tuple[Feed, str]]:
        if self._reduction is None:
            return ((self.feeds[0], cluster),)
        return ((self.feeds[watch], key) for watch, key in self._reduction.objects(cluster))


def _unread(stored: StoredObject) -> tuple[Ready, float]:
    """Return a stored object as present; its content is not known until it is seen again."""
    claims = tuple(Claim(name, UNREAD) for name in stored.clusters)
    unread = ClaimingObject(name=stored.key, uid=stored.uid, place=(), claims=claims, content=UNREAD)
    return Ready(stored.uid, "", unread), 0.0


def _steady() -> float:
    return asyncio.get_running_loop().time()
