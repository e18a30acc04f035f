"""Converts the batches of a stream to events, without I/O.

A session outlives connections and daemons. It holds the view (the clusters that its user was notified of) and the
resume revision. ENGAGED and DISENGAGED alternate for each cluster, whatever happens to the connection:

- A snapshot takes effect when it is complete: it yields no events before `synced`, and an incomplete one is dropped.
- A snapshot yields its differences from the view. A cluster with the same name and UID is the same cluster: a new
  incarnation alone means that another or a restarted daemon engaged it, and work on it continues. But if a cluster
  was draining and no longer is, it was disengaged and engaged again.
- A batch is applied completely or not at all. The revision of an applied batch becomes the resume revision; in a
  snapshot, only the revision of its last batch does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from milo_discovery import _convert
from milo_discovery.errors import StreamBroken
from milo_discovery.events import Event, Refreshed, StreamNotice, Synced
from milo_discovery.model import Cluster, DisengageReason, EventType, Kubeconfig, SourceStatus
from milo_discovery.v1 import discovery_pb2 as pb

OWNERSHIP_NOT_RENEWED = "the daemon did not confirm in time that it still owns the cluster"
LONGEST_REVISION = 16 * 1024
"""A longer revision is not resumed from: a daemon that refuses long requests would refuse it again and again."""
MISSING_AFTER_RECONNECT = "it is missing from the daemon's latest snapshot"

# Excludes fields about the daemon rather than the cluster: when and under which incarnation it engaged the cluster,
# since when its connectivity state holds, and which upstream version the daemon read.
_CLUSTER_FIELDS = (
    "name",
    "uid",
    "source",
    "endpoint",
    "organization",
    "labels",
    "annotations",
    "deletion_requested_at",
    "deletion_message",
    "suspended",
    "suspensions",
    "connectivity.state",
    "connectivity.message",
    "draining",
)
cluster_content = attrgetter(*_CLUSTER_FIELDS)


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """A cluster of the view, with its kubeconfig if it has one."""

    cluster: Cluster
    kubeconfig: Kubeconfig | None


@dataclass(frozen=True, slots=True)
class _Closed:
    """No stream is open."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream was opened, and no batch has arrived."""

    resuming: str


@dataclass(frozen=True, slots=True)
class _AwaitingSnapshot:
    """The daemon itself is not synced yet, and sends only heartbeats."""

    last: str


@dataclass(frozen=True, slots=True)
class _ReceivingSnapshot:
    """A snapshot is arriving in parts."""

    last: str
    snapshot: dict[str, KnownCluster]


@dataclass(frozen=True, slots=True)
class _Live:
    """The view is complete, and batches are changes to it."""

    last: str


_Phase = _Closed | _Opened | _AwaitingSnapshot | _ReceivingSnapshot | _Live
_Step = tuple[_Phase, tuple[Event | StreamNotice, ...]]


class Session:
    """The view, the resume revision, and the phase of the current stream."""

    def __init__(self) -> None:
        self._phase: _Phase = _Closed()
        self._view: dict[str, KnownCluster] = {}
        self.view: MappingProxyType[str, KnownCluster] = MappingProxyType(self._view)
        self.revision = ""
        """The revision from which the next stream resumes; empty to start over."""
        self.synced = False
        """Whether the view was complete, and has not been emptied since. It stays true when a stream ends, because the
        view is kept."""
        self.source: SourceStatus | None = None
        """The freshness of the daemon's view of Milo, as last received."""
        self.sources: Mapping[str, SourceStatus] = {}
        """The freshness of each source of clusters, by name; empty if the daemon's only source has no name."""
        self.pending_sources: tuple[str, ...] = ()
        """Sources of which the daemon has no complete list yet. Their clusters are kept as last received."""

    def open(self) -> str:
        """Start a new stream: discard any incomplete snapshot, and return the revision to resume from."""
        if len(self.revision) > LONGEST_REVISION:
            self.revision = ""
        self._phase = _Opened(self.revision)
        return self.revision

    def receive(self, batch: pb.WatchClustersResponse) -> tuple[Event | StreamNotice, ...]:
        """Apply a batch and return what changed. Keeps the view and raises StreamBroken if the batch is invalid."""
        phase = self._phase
        self._phase = _Closed()  # the phase that remains if the batch is invalid
        if batch.reset:
            # The stream starts over, so no batch before this one can be missing.
            snapshot: dict[str, KnownCluster] = {}
            self._phase, changes = self._receive_snapshot(snapshot, batch)
        else:
            self._phase, changes = self._continue(phase, batch)
        if batch.HasField("source"):
            self.source = _convert.source_status(batch.source)
            self.sources = {source.name: _convert.source_status(source) for source in batch.sources}
        if batch.synced:
            self.pending_sources = tuple(batch.pending_sources)
        return changes

    def lose_ownership(self) -> tuple[Event, ...]:
        """Empty the view: another daemon may have engaged the clusters. The next stream begins with a snapshot, unless
        there were none, and no snapshot has begun."""
        if not self._view and isinstance(self._phase, _Opened | _AwaitingSnapshot):
            return ()
        lost = tuple(
            Event(
                type=EventType.DISENGAGED,
                cluster=known.cluster,
                reason=DisengageReason.OWNERSHIP_LOST,
                message=OWNERSHIP_NOT_RENEWED,
            )
            for known in self._view.values()
        )
        self._view.clear()
        self._phase = _Closed()
        self.revision = ""
        self.synced = False
        return lost

    def _continue(self, phase: _Phase, batch: pb.WatchClustersResponse) -> _Step:
        match phase:
            case _Closed():
                raise StreamBroken("a batch arrived on a stream that isn't open")
            case _Opened(resuming) if batch.synced:
                if not resuming:
                    raise StreamBroken("a new stream began without a snapshot")
                return self._apply(resuming, batch)
            case _Opened():
                return self._await_snapshot("", batch)
            case _AwaitingSnapshot(last):
                return self._await_snapshot(last, batch)
            case _ReceivingSnapshot(last, snapshot):
                _require_next(last, batch)
                return self._receive_snapshot(snapshot, batch)
            case _:
                return self._apply(phase.last, batch)

    def _await_snapshot(self, last: str, batch: pb.WatchClustersResponse) -> _Step:
        _require_next(last, batch)
        if batch.events or batch.synced:
            raise self._contradiction("events or `synced` arrived before the snapshot")
        return _AwaitingSnapshot(batch.revision), ()

    def _receive_snapshot(self, snapshot: dict[str, KnownCluster], batch: pb.WatchClustersResponse) -> _Step:
        for event in batch.events:
            name = event.cluster.name
            match EventType(event.type):
                case EventType.ENGAGED | EventType.UPDATED | EventType.KUBECONFIG:
                    snapshot[name] = self._shared(_known(event, snapshot.get(name)))
                case EventType.DISENGAGED:
                    snapshot.pop(name, None)
                case _:
                    pass  # ignore an event type of a newer daemon
        if not batch.synced:
            return _ReceivingSnapshot(batch.revision, snapshot), ()
        pending = frozenset(batch.pending_sources)
        for name, known in self._view.items():
            if known.cluster.source in pending:
                snapshot.setdefault(name, known)
        changes: tuple[Event | StreamNotice, ...] = (*self._differences(snapshot), Synced(clusters=len(snapshot)))
        self._view.clear()
        self._view.update(snapshot)
        self.revision = batch.revision
        self.synced = True
        return _Live(batch.revision), changes

    def _shared(self, known: KnownCluster) -> KnownCluster:
        """Return the cluster with what equals it in the view, so that a snapshot does not take its memory again."""
        before = self._view.get(known.cluster.name)
        if before is None or before.cluster != known.cluster:
            return known
        return before if before.kubeconfig == known.kubeconfig else KnownCluster(before.cluster, known.kubeconfig)

    def _differences(self, snapshot: Mapping[str, KnownCluster]) -> Iterator[Event | Refreshed]:
        for name, old in self._view.items():
            if name not in snapshot:
                yield Event(type=EventType.DISENGAGED, cluster=old.cluster, message=MISSING_AFTER_RECONNECT)
        for name, new in snapshot.items():
            before = self._view.get(name)
            if before is None:
                yield _engaged(new)
            elif before.cluster.uid != new.cluster.uid:
                yield Event(type=EventType.DISENGAGED, cluster=before.cluster, reason=DisengageReason.REPLACED)
                yield _engaged(new)
            elif before.cluster.draining is not None and new.cluster.draining is None:
                reason = before.cluster.draining.reason
                yield Event(type=EventType.DISENGAGED, cluster=before.cluster, reason=reason)
                yield _engaged(new)
            else:
                if cluster_content(before.cluster) != cluster_content(new.cluster):
                    yield Event(type=EventType.UPDATED, cluster=new.cluster)
                elif before.cluster != new.cluster:
                    yield Refreshed(cluster=new.cluster)
                if new.kubeconfig is not None and before.kubeconfig != new.kubeconfig:
                    yield Event(type=EventType.KUBECONFIG, cluster=new.cluster, kubeconfig=new.kubeconfig)

    def _apply(self, last: str, batch: pb.WatchClustersResponse) -> _Step:
        _require_next(last, batch)
        if not batch.synced:
            raise self._contradiction("`synced` became false without a reset")
        changed: dict[str, KnownCluster | None] = {}
        events: list[Event] = []
        for message in batch.events:
            name = message.cluster.name
            before = changed[name] if name in changed else self._view.get(name)
            event_type = EventType(message.type)
            if event_type is EventType.UNSPECIFIED:
                continue  # ignore an event type of a newer daemon
            if (before is None) != (event_type is EventType.ENGAGED):
                raise self._contradiction(
                    f"{event_type.name} for cluster {name!r}, which is {'not ' if before is None else ''}engaged"
                )
            after = _known(message, before)
            changed[name] = None if event_type is EventType.DISENGAGED else after
            events.append(
                Event(
                    type=event_type,
                    cluster=after.cluster,
                    reason=DisengageReason(message.reason),
                    message=message.message,
                    kubeconfig=_convert.kubeconfig(message.kubeconfig) if message.HasField("kubeconfig") else None,
                )
            )
        for name, known in changed.items():
            if known is None:
                self._view.pop(name, None)
            else:
                self._view[name] = known
        self.revision = batch.revision
        return _Live(batch.revision), tuple(events)

    def _contradiction(self, detail: str) -> StreamBroken:
        """Drop the resume revision, and return an error: the batch contradicts the view, so a snapshot is needed."""
        self.revision = ""
        return StreamBroken(detail)


def _require_next(last: str, batch: pb.WatchClustersResponse) -> None:
    if batch.previous_revision != last:
        raise StreamBroken(
            f"a batch is missing: expected one after {last!r}, got one after {batch.previous_revision!r}"
        )


def _known(event: pb.ClusterEvent, before: KnownCluster | None) -> KnownCluster:
    if event.HasField("kubeconfig"):
        return KnownCluster(_convert.cluster(event.cluster), _convert.kubeconfig(event.kubeconfig))
    return KnownCluster(_convert.cluster(event.cluster), before.kubeconfig if before else None)


def _engaged(known: KnownCluster) -> Event:
    return Event(type=EventType.ENGAGED, cluster=known.cluster, kubeconfig=known.kubeconfig)
