"""A fleet in which each object stands for the cluster of its name."""

from collections.abc import Iterable, Iterator

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.resource import NAMES, ObjectKeys
from milo_discoveryd.registry.change_notifier import ChangeNotifier
from milo_discoveryd.registry.fleet import SourceFleet
from milo_discoveryd.registry.intake_sink import IntakeSink, Observer, at
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import ConfirmationRequest, ConfirmationResult, PendingDeletions
from milo_discoveryd.registry.removal_guard import RemovalGuard
from milo_discoveryd.state_file.encoding import StoredObject
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent
from milo_kube.reflect.source_status import SourceState, SourceStatus


class DirectFleet(IntakeSink, SourceFleet):
    """A fleet in which each object stands for the cluster of its name. It receives the events of one driver."""

    def __init__(
        self,
        log: ChangeLog,
        pending_deletions: PendingDeletions,
        observer: Observer,
        *,
        not_ready: NotReadyClusters | None = None,
        drain_timeout_s: float = 0.0,
        guard: RemovalGuard | None = None,
        name: str = "",
        kind: str = "",
        context: str = "",
        notifier: ChangeNotifier | None = None,
        keys: ObjectKeys = NAMES,
    ) -> None:
        SourceFleet.__init__(
            self,
            log,
            observer,
            not_ready=not_ready,
            drain_timeout_s=drain_timeout_s,
            name=name,
            kind=kind,
            context=context,
            notifier=notifier,
        )
        shares_log = notifier is not None
        IntakeSink.__init__(
            self, self.registry, pending_deletions, observer, guard=guard, keys=keys, shares_log=shares_log
        )

    @property
    def synced(self) -> bool:
        """True after one complete list, in this run or in the run that wrote the state file."""
        return self._is_assigned and self._intake.synced

    @property
    def pending_reports(self) -> PendingDeletions:
        return self.pending_deletions

    def stored_objects(self) -> Iterable[StoredObject]:
        """Return the objects that the state file stores in addition to the clusters.

        There are none, because here each object is a cluster.
        """
        return ()

    @property
    def feeds(self) -> "tuple[DirectFleet]":
        """Return the sink of each watched resource's driver."""
        return (self,)

    def restore(
        self, stored: Iterable[tuple[Ready, float]], objects: Iterable[StoredObject], status: SourceStatus
    ) -> None:
        """Serve the clusters of an earlier run at once, with a status that says how old they are."""
        self._publish(self._intake.restore(stored, at(status.since)), status.since)
        self.source(status)
        self._observer.synced(self.registry.engaged)
        self.notifier.notify()

    def take(self, source_events: Iterable[SourceEvent[Observation]], read_at: float) -> Iterator[None]:
        """Apply source events in portions; the caller may let other tasks run between them."""
        synced, restored = self.synced, self.is_restored
        for events in self._intake.take(self._observed(source_events), at(read_at)):
            self._publish(events, read_at)
            yield
        if not synced and self.synced:
            self._observer.synced(self.registry.engaged)
            self.notifier.notify()
        elif restored and not self.is_restored:
            self.notifier.notify()

    def resolve(self, request: ConfirmationRequest, result: ConfirmationResult, read_at: float) -> None:
        """Apply the result of a confirmation read."""
        self._publish(self._resolved(request, result, read_at), read_at)

    def source(self, status: SourceStatus) -> None:
        self._pause_graces(status)
        self._set_status(self._believed(status))

    def set_targets(self, targets: Iterable[Target], now: float) -> None:
        """Engage the clusters of a mode that knows all of them from the start."""
        ready: list[SourceEvent[Observation]] = [Listed(Ready(target.uid, "", target)) for target in targets]
        for _ in self.take([ListStarted(), *ready, ListEnded()], now):
            pass
        self.source(SourceStatus(SourceState.STREAMING, now, last_contact=now))
