"""A source of clusters: its collections, its clusters, and the status of its view.

`ClusterSource` passes the wall-clock time to the modules that read no clock. Its callers pass the monotonic time, which
is that of their event loop.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from milo_discoveryd.engagement.contribution_index import ContributionIndex
from milo_discoveryd.engagement.engagement import ClusterStates, Engagements
from milo_discoveryd.engagement.not_ready import HeldNotReady, NotReadyClusters
from milo_discoveryd.fleet.changes import RETRY_S, STEP_S, FleetChanges, Observer, SourceClusters, moment, steady_now
from milo_discoveryd.log.events import Event
from milo_discoveryd.logger import log
from milo_discoveryd.model.contributions import ObjectContent, ObjectReference, ObservedObject, Reduce
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import NotWanted, Ready
from milo_discoveryd.model.removal_limits import FirstList, ListedClusters, RemovalLimits
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.objects.budget import UNLIMITED, ObjectBudget
from milo_discoveryd.objects.collection import EVENTS_PER_STEP, ObjectCollection
from milo_discoveryd.objects.pending_deletions import (
    Absent,
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    PendingDeletions,
)
from milo_discoveryd.objects.store import (
    CollectionWeight,
    ObjectChange,
    ObjectChanges,
    ObjectPosition,
    ObjectStore,
    SourcePositions,
)
from milo_discoveryd.sources.kind import ProjectUids
from milo_discoveryd.state_file.encoding import StoredObject
from milo_kube.moment import Moment
from milo_kube.reflect.messages import (
    EventIgnored,
    Relisting,
    SourceEvent,
)
from milo_kube.reflect.versions import comparable
from milo_kube.reflect.view_status import ViewState, ViewStatus

_RESULTS = {Absent: "not_found", Found: "found", Inconclusive: "inconclusive"}
RESTORED = "Restored"
"""The status reason of a source that has not answered yet, so that its clusters are those of the state file."""
NOT_READY_HELD = "NotReadyHeld"
"""The status reason of a source that keeps clusters engaged because a large part of the fleet is not ready."""


class SourceProgress(msgspec.Struct, frozen=True):
    """The progress of a source: which of its lists were applied."""

    synced: bool = False
    """A complete list of each collection was applied, in this run or in the run that wrote the state file, and it is
    known which clusters this daemon must engage."""
    is_complete: bool = False
    """A list of each collection was accepted in this run."""
    is_restored: bool = False
    """Part of the state is from the state file, which lacks changes that were made after it was written."""
    lists: int = 0
    """The number of lists of this run that were applied, at least in part."""


class SourceDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a source for status reports."""

    name: str = ""
    kind: str = ""
    context: str = ""
    """The context of Milo that the source follows."""
    ready_when: str = ""
    """`SourceKind.ready_when` of the source's kind."""
    project_uids: ProjectUids = ProjectUids.NONE
    states_addresses: bool = False
    """`SourceKind.states_addresses` of the source's kind."""
    server: str = ""
    """Identifies the API server: sources with the same value follow the same API server."""


class SourcePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The limits on disengagements, and on the memory of objects."""

    pending_deletions: Callable[[], PendingDeletions]
    """Called once for each collection."""
    removals: RemovalLimits = RemovalLimits()
    not_ready: NotReadyClusters | None = None
    drain_timeout_s: float = 0.0
    objects_limit: int = UNLIMITED


class ObjectsAreClusters:
    """Replaces `ContributionIndex` for kinds without `reduce`: each object describes the cluster of the same name."""

    def restore(
        self,
        collections: Sequence[ObjectCollection],
        clusters: Iterable[Ready],
        objects: Iterable[StoredObject],
    ) -> None:
        del objects
        (collection,) = collections
        collection.restore(clusters)

    def states(self, collection: int, objects: ObjectChanges) -> Iterator[ClusterStates]:
        del collection
        states = [change.state for change in objects.changes if change.state is not None]
        return iter((ClusterStates(states, objects.position),))

    def states_once_listed(self, position: ObjectPosition) -> Iterator[ClusterStates]:
        del position
        return iter(())

    def objects_of(self, cluster: str) -> tuple[ObjectReference, ...]:
        return ((0, cluster),)

    def stored_objects(self) -> Iterator[StoredObject]:
        return iter(())


class ClusterSource:
    def __init__(
        self,
        changes: FleetChanges,
        observer: Observer,
        policy: SourcePolicy,
        description: SourceDescription | None = None,
        *,
        keys: Sequence[ObjectKeys] = (NAMES,),
        reduce: Reduce | None = None,
    ) -> None:
        """`keys` has an item for each collection. Without `reduce`, each object is the cluster of the same name."""
        self.changes = changes
        self.description = description or SourceDescription()
        budget = ObjectBudget(policy.objects_limit, changes.objects)
        stores = [ObjectStore(CollectionWeight(budget)) for _ in keys]
        self._positions = SourcePositions(changes.positions, range(len(keys)))
        self.engagements = Engagements(
            changes.log,
            policy.not_ready,
            observer.object_reported,
            drain_timeout_s=policy.drain_timeout_s,
            releases=changes.releases,
        )
        self._shown_held: HeldNotReady | None = None
        self._listed = ListedClusters()
        self.restored_positions: Mapping[str, int] = {}
        """For each earlier run of the daemon, a revision of that run. The restored clusters contain everything that a
        subscriber at or below this revision knows."""
        self._uncommitted: dict[ObjectReference, tuple[ObjectChange, ObjectPosition]] | None = None
        """Changes of objects that caused an unexpected exception, and are tried again every `RETRY_S`; None while no
        retry is planned."""
        self._is_assigned = True
        """Whether the clusters that this daemon must engage are known."""
        self._meaning = ObjectsAreClusters() if reduce is None else ContributionIndex(reduce, self.engagements, stores)
        self.status = ViewStatus(ViewState.CATCHING_UP, time.monotonic(), "Starting", "nothing has been read yet")
        self.collections = tuple(
            ObjectCollection(
                number,
                store,
                policy.pending_deletions(),
                self._positions,
                policy.removals,
                keys=keys[number],
                status=self.status,
                step_limit=changes.releases,
            )
            for number, store in enumerate(stores)
        )
        self.progress = SourceProgress()
        claimant = changes.engagements.add_source(
            self.name,
            self.engagements,
            self.description.server or self.name,
            states_uids=self.project_uids is ProjectUids.STATED,
            states_addresses=self.description.states_addresses,
        )
        self.clusters = SourceClusters(claimant, observer, changes)

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def project_uids(self) -> ProjectUids:
        return self.description.project_uids

    @property
    def observer(self) -> Observer:
        return self.clusters.observer

    # --- data from the server ---

    @property
    def synced(self) -> bool:
        return self.progress.synced and not self.clusters.is_lost

    @property
    def is_restored(self) -> bool:
        return self.progress.is_restored

    @property
    def lists(self) -> int:
        return self.progress.lists

    def apply(
        self, collection: ObjectCollection, source_events: Iterable[SourceEvent[ObservedObject]], read_at: float
    ) -> Iterator[None]:
        """Apply source events in batches; the caller may let other tasks run between them.

        Many streams that confirm releases make the batches small, in case clusters drain. Those after which nothing was
        compared with the streams go on together.
        """
        source_events, now = [*source_events], Moment(time.time(), read_at)
        releases, together = self.changes.releases, 0
        for event in source_events:
            if isinstance(event, Relisting):
                self.observer.relisting(event.reason)
            elif isinstance(event, EventIgnored):
                self.observer.event_ignored(event.problem)
        for objects in collection.apply_events(source_events, now):
            if not objects.changes:  # a step in which a list was compared with the known objects
                yield
                together = 0
                continue
            compared = releases.compared
            for count in self._commit(collection, objects, now):
                together += count
                if not count or together >= EVENTS_PER_STEP or releases.compared != compared:
                    yield
                    compared, together = releases.compared, 0
        self._update_progress(now)

    def resolve(
        self, collection: ObjectCollection, request: ConfirmationRequest, result: ConfirmationResult, read_at: float
    ) -> None:
        """Apply the result of a confirmation read."""
        was_refused, now = collection.pending_deletions.refused, moment(read_at)
        objects = collection.resolve(request, result, now)
        self._report_confirmation(result, was_refused, collection.pending_deletions.refused)
        for _ in self._commit(collection, objects, now):
            pass
        self._update_progress(now)

    def set_followed(self, collection: ObjectCollection, followed: ViewStatus) -> None:
        """Set the watch status of a collection."""
        collection.followed = followed
        worst_followed = worst([each.followed for each in self.collections])
        not_ready = self.engagements.not_ready
        if worst_followed.state is not ViewState.STREAMING:
            contact = worst_followed.last_contact
            not_ready.pause(worst_followed.since if contact is None else contact)
        elif not_ready.paused_at is not None:
            not_ready.resume(worst_followed.since)
        self._set_status()

    def _commit(self, collection: ObjectCollection, objects: ObjectChanges, now: Moment) -> Iterator[int]:
        """Apply the cluster states that follow from changes of a collection's objects. Yield how many, step by step."""
        for change in objects.changes:
            if change.is_newly_reported and isinstance(change.state, NotWanted):
                with log.contained("object not reported", source=self.name, object=change.key):
                    self.observer.object_reported(change.state)
        if self._uncommitted:
            objects = self._with_uncommitted(collection.number, objects)
        try:
            for states in self._meaning.states(collection.number, objects):
                self.changes.commit(self.clusters.claimant, states, now)
                yield len(states.states)
        except Exception:
            log.exception("changes of objects not applied together", source=self.name)
            self._commit_each(collection.number, objects, now)
            yield len(objects.changes)

    def _commit_each(self, collection: int, objects: ObjectChanges, now: Moment) -> None:
        """Apply changes one by one. Those that cause an unexpected exception are tried again later."""
        for index, change in enumerate(objects.changes):
            position = ObjectPosition(objects.position.number_at(index), is_first=objects.position.is_first)
            single = self._with_uncommitted(collection, ObjectChanges([change], position))
            try:
                for states in self._meaning.states(collection, single):
                    self.changes.commit(self.clusters.claimant, states, now)
            except Exception:
                log.exception("change of an object not applied", source=self.name, object=change.key)
                if self._uncommitted is None:
                    self._uncommitted = {}
                    asyncio.get_running_loop().call_later(RETRY_S, self._commit_again)
                self._uncommitted[collection, change.key] = single.changes[0], position

    def _commit_again(self) -> None:
        uncommitted, self._uncommitted = self._uncommitted or {}, None
        for (collection, _), (change, position) in uncommitted.items():
            self._commit_each(collection, ObjectChanges([change], position), moment(steady_now()))

    def _with_uncommitted(self, collection: int, objects: ObjectChanges) -> ObjectChanges:
        """Return changes, of which those that follow on an uncommitted one concern its clusters too."""
        uncommitted = self._uncommitted or {}

        def since_commit(change: ObjectChange) -> ObjectChange:
            former, _ = uncommitted.pop((collection, change.key), (None, None))
            if former is None:
                return change
            contents = [content for content in (former.before, change.before) if isinstance(content, ObjectContent)]
            before = ObjectContent(tuple(each for content in contents for each in content.contributions))
            return msgspec.structs.replace(change, before=before, is_replaced=True)

        return ObjectChanges([*map(since_commit, objects.changes)], objects.position)

    def _update_progress(self, read_at: Moment) -> None:
        if (version := self.version) != self.changes.versions.get(self.name, 0):
            self.changes.versions = {**self.changes.versions, self.name: version}
        before, now = self.progress, self._present_progress()
        if now == before:
            return
        self.progress, self.clusters.is_synced = now, now.synced
        if now.is_complete and not before.is_complete:
            try:
                for states in self._meaning.states_once_listed(self._positions.of_first_lists):
                    self.changes.commit(self.clusters.claimant, states, read_at)
            except Exception:
                self.progress, self.clusters.is_synced = before, before.synced  # so that the next list tries again
                raise
        if now.lists != before.lists and now.is_complete:
            lacking = sum(len(collection.pending_deletions) for collection in self.collections)
            self._listed.note(self.engagements.present_count - lacking)
        if now.synced and not before.synced:
            self.observer.synced(self.engagements.engaged)
            self.changes.report_duplicates()
        # A source is shown to a subscriber once it has a list. If an older snapshot lacks clusters of that list, the
        # subscriber would take them for disengaged.
        self.changes.log.stop_sharing()
        self.changes.notifier.notify()

    def _present_progress(self) -> SourceProgress:
        is_synced, is_complete, is_restored, lists = self._is_assigned, True, False, 0
        for collection in self.collections:  # in one pass: this runs for each batch of events
            is_synced = is_synced and collection.is_synced
            is_complete = is_complete and collection.is_listed
            is_restored = is_restored or collection.is_restored
            lists += collection.lists
        return SourceProgress(is_synced, is_complete, is_restored, lists)

    def _report_confirmation(self, result: ConfirmationResult, was_refused: str | None, refused: str | None) -> None:
        is_refusal = isinstance(result, Inconclusive) and result.is_refusal
        self.observer.confirmed("refused" if is_refusal else _RESULTS[type(result)])
        if refused and not was_refused:
            self.observer.confirmations_refused(refused)
        elif was_refused and not refused:
            self.observer.confirmations_accepted()

    # --- the first list of this run ---

    @property
    def first_list(self) -> FirstList:
        """The first list of this run, for subscribers that know clusters of an earlier one."""
        limits = (collection.unverified for collection in self.collections)
        # While a list is held, its version is not compared: clusters that are missing from it stay engaged, and the
        # versions of a restored server may never catch up.
        is_held = any(collection.held for collection in self.collections)
        version = 0 if is_held else self.version
        return self._listed.first_list(self.engagements.engaged, next(filter(None, limits), None), version)

    @property
    def version(self) -> int:
        """The resource version up to which the source is followed; 0 if versions cannot be compared.

        Several collections may be on different API servers, whose versions cannot be compared.
        """
        return comparable(self.collections[0].trust.version) if len(self.collections) == 1 else 0

    # --- status ---

    def _set_status(self) -> None:
        """Set the status to the worst status of the collections. If this is STREAMING, but clusters that are not ready
        are held, the status says so."""
        status, held = worst([collection.status for collection in self.collections]), self.engagements.not_ready.held
        self._shown_held = held
        if held is not None and status.state is ViewState.STREAMING:
            status = ViewStatus(ViewState.CATCHING_UP, held.since, NOT_READY_HELD, held.message, status.last_contact)
        changed = status.state is not self.status.state or status.reason != self.status.reason
        self.status = status
        if changed:
            self.observer.source_status_changed(status)
            self.changes.notifier.notify()

    @property
    def due_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens."""
        not_ready = self.engagements.not_ready
        return None if not_ready.is_idle else not_ready.due_at

    def tick(self, now: float) -> None:
        """Disengage, or begin to drain, clusters whose grace period is over. Those left after `STEP_S` are due at
        once."""
        until, events, not_ready = steady_now() + STEP_S, list[Event](), self.engagements.not_ready
        for name in not_ready.take_overdue(self.engagements.engaged, now, self._is_unknown):
            if name is not None:
                try:
                    events += self.engagements.end_not_ready(name, moment(now))
                except Exception:
                    log.exception("cluster that is not ready not disengaged", cluster=name)
                    not_ready.postpone(name, now + RETRY_S)
            if steady_now() >= until:
                break
        self.changes.publish(events, now)
        if self.engagements.not_ready.held != self._shown_held:
            self._set_status()

    def _is_unknown(self, cluster: str) -> bool:
        """Return whether what is known of a cluster may be outdated, because its removal is held, or lists that could
        show it are ignored."""
        return any(
            collection.trust.is_ignoring or collection.pending_deletions.is_held(key)
            for collection, key in self._objects_of(cluster)
        )

    # --- the state file ---

    def stored_objects(self) -> Iterator[StoredObject]:
        """Yield the objects that the state file stores in addition to the clusters."""
        return self._meaning.stored_objects()

    def restore(
        self,
        stored: Iterable[tuple[Ready, float]],
        objects: Iterable[StoredObject],
        status: ViewStatus,
        highest_version: str = "",
    ) -> Iterator[None]:
        """Serve the clusters of an earlier run, with a status that shows how old they are.

        They are restored in batches, so that thousands of them do not block the event loop. The source is not synced
        before the last one. `highest_version` is the resource version up to which that run followed every collection.
        """
        clusters, others = iter(stored), iter(objects)
        while batch := list(islice(clusters, EVENTS_PER_STEP)):
            events = self.changes.engagements.restore(self.clusters.claimant, batch, status.since)
            self._meaning.restore(self.collections, [seen for seen, _ in batch], ())
            self.changes.publish(events, status.since)
            yield
        while portion := list(islice(others, EVENTS_PER_STEP)):
            self._meaning.restore(self.collections, (), portion)
            yield
        for collection in self.collections:
            collection.end_restore(highest_version)
            self.set_followed(collection, status)
        self._update_progress(moment(status.since))

    # --- assignment by a shard group ---

    def await_assignment(self, message: str) -> None:
        """Engage nothing, and stay unsynced, until `assign` decides which clusters this daemon owns."""
        self._is_assigned = False
        self.progress, self.clusters.is_synced = self._present_progress(), False
        self.engagements.assigned_elsewhere = lambda _: message

    def assign(
        self, elsewhere: Callable[[str], str | None], timeout_s: float, *, is_decided: bool, keeps_held: bool
    ) -> Iterator[None]:
        """Assign the clusters in batches: see `SourceClusters.assign`.

        The source is not synced before the first decision. `keeps_held`: whether the clusters of other members stay
        engaged here as long as these could not engage them.
        """
        yield from self.clusters.assign(elsewhere, timeout_s, lambda name: keeps_held and self._is_held(name))
        if is_decided and not self._is_assigned:
            self._is_assigned = True
            self._update_progress(moment(steady_now()))

    def _is_held(self, name: str) -> bool:
        """Return whether a cluster is engaged by what is known of earlier states of its object, or because its claims
        came first: a daemon that has not seen these, or has started since, would not engage it."""
        record = self.engagements[name]
        if record is None or record.cluster is None or record.cluster.draining is not None:
            return False
        is_known = record.state is ObjectState.READY and not self.problem_of(name) and not self.is_uncertain(name)
        return not is_known or self.changes.engagements.depends_on_order(name)

    def is_uncertain(self, name: str) -> bool:
        """Return whether a cluster may be deleted, or what is known of it outdated: if it moves, the former owner keeps
        it."""
        return self.pending_deletion(name) is not None or self._is_unknown(name)

    # --- totals of the source, and queries about one cluster ---

    @property
    def deletions_unconfirmed(self) -> int:
        return sum(len(collection.pending_deletions) for collection in self.collections)

    @property
    def outdated(self) -> int:
        """The number of observations that were dropped because a later one of the same object came first."""
        return sum(collection.store.outdated for collection in self.collections)

    @property
    def deletions_held(self) -> int:
        return sum(collection.held_count for collection in self.collections)

    def pending_deletion(self, cluster: str) -> tuple[float, str] | None:
        """Return when an object of the cluster was reported as deleted, and why this is not confirmed yet.

        None if no deletion is pending.
        """
        pending = (collection.pending_deletions.explain(key) for collection, key in self._objects_of(cluster))
        return next(filter(None, pending), None)

    def problem_of(self, cluster: str) -> str:
        """Return why objects that describe a cluster cannot be used. The cluster then stays as they last described it.

        Empty if the cluster's record has the same message.
        """
        record = self.engagements[cluster]
        problems = (collection.problem_of(key) for collection, key in self._objects_of(cluster))
        return "; ".join(
            problem for problem in problems if problem and record is not None and problem != record.message
        )

    def _objects_of(self, cluster: str) -> Iterable[tuple[ObjectCollection, str]]:
        return ((self.collections[number], key) for number, key in self._meaning.objects_of(cluster))


_SEVERITY = {ViewState.STREAMING: 0, ViewState.CATCHING_UP: 1, ViewState.STALE: 2}


def worst(statuses: Sequence[ViewStatus]) -> ViewStatus:
    """Return a status that summarizes several: the worst of them, with the earliest last contact."""
    if len(statuses) == 1:
        return statuses[0]
    worst_status = max(statuses, key=lambda status: _SEVERITY[status.state])
    contacts = [status.last_contact for status in statuses if status.last_contact is not None]
    last_contact = min(contacts) if len(contacts) == len(statuses) else None
    return msgspec.structs.replace(worst_status, last_contact=last_contact)
