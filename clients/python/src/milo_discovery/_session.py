"""What a stream of batches means, without the stream.

A session outlives connections and daemons. It holds the view (what its user was told) and the resume point, takes
batches, and gives the events that its user is to see: ENGAGED and DISENGAGED once each, whatever became of the
connection. Three rules carry that:

- A snapshot counts when it is complete. Until `synced` nothing of it is told, and one that is cut leaves no trace.
- A snapshot is told as its differences from the view. A cluster is the same if its name and uid are: another
  incarnation alone says that another daemon engaged it, which is no news to somebody who works on it already.
- A batch is applied whole or not at all, and only then does its revision become the resume point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from milo_discovery import _wire
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery.errors import StreamBroken
from milo_discovery.events import Event, Mark, Refreshed, Synced
from milo_discovery.model import Cluster, DisengageReason, EventType, Kubeconfig, SourceStatus

GONE_MEANWHILE = "it was gone when the connection to the daemon came back"

# Left out is what tells of the daemon rather than of the cluster: when and as what this daemon engaged it, since when
# it probes it, and which upstream version it happened to read.
_VISIBLE = (
    "name",
    "uid",
    "endpoint",
    "organization",
    "labels",
    "annotations",
    "deletion_requested_at",
    "deletion_message",
    "suspended",
    "connectivity.state",
    "connectivity.message",
)
visible = attrgetter(*_VISIBLE)


@dataclass(frozen=True, slots=True)
class Known:
    """A cluster of the view, with its kubeconfig where there is one."""

    cluster: Cluster
    kubeconfig: Kubeconfig | None


@dataclass(frozen=True, slots=True)
class _Closed:
    """No stream is open."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream was asked for, and has said nothing yet."""

    resuming: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The daemon hasn't a complete view itself, and only sends heartbeats."""

    last: str


@dataclass(frozen=True, slots=True)
class _Replacing:
    """A snapshot is coming in."""

    last: str
    gathered: dict[str, Known]


@dataclass(frozen=True, slots=True)
class _Following:
    """The view is complete, and what comes are changes to it."""

    last: str


_Phase = _Closed | _Opened | _Waiting | _Replacing | _Following
_Step = tuple[_Phase, tuple[Event | Mark, ...]]


class Session:
    """The view, the resume point, and the phase of the current stream."""

    def __init__(self) -> None:
        self._phase: _Phase = _Closed()
        self._view: dict[str, Known] = {}
        self.view: Mapping[str, Known] = MappingProxyType(self._view)
        self.revision = ""
        """Where the next stream resumes from; empty to start over."""
        self.synced = False
        """The view is, or once was, complete. It stays when a stream ends: unknown is not gone."""
        self.source: SourceStatus | None = None
        """The daemon's own view, as last told."""

    def open(self) -> str:
        """Another stream begins, and whatever the one before left half-done is dropped. Gives its resume revision."""
        self._phase = _Opened(self.revision)
        return self.revision

    def receive(self, batch: pb.WatchClustersResponse) -> tuple[Event | Mark, ...]:
        """Apply a batch. StreamBroken, and nothing applied, if it can't follow what came before."""
        phase = self._phase
        self._phase = _Closed()  # for good, unless the batch turns out well
        if batch.reset:
            # It starts over, so that nothing before it can be missing.
            gathered: dict[str, Known] = {}
            self._phase, told = self._gather(gathered, batch)
        else:
            self._phase, told = self._advance(phase, batch)
        if batch.HasField("source"):
            self.source = _wire.source_status(batch.source)
        return told

    def _advance(self, phase: _Phase, batch: pb.WatchClustersResponse) -> _Step:
        match phase:
            case _Closed():
                raise StreamBroken("a batch arrived on a stream that isn't open")
            case _Opened(resuming) if batch.synced:
                if not resuming:
                    raise StreamBroken("a new stream began without a snapshot")
                return self._follow(resuming, batch)
            case _Opened():
                return self._wait("", batch)
            case _Waiting(last):
                return self._wait(last, batch)
            case _Replacing(last, gathered):
                _continues(last, batch)
                return self._gather(gathered, batch)
            case _:
                return self._follow(phase.last, batch)

    def _wait(self, last: str, batch: pb.WatchClustersResponse) -> _Step:
        _continues(last, batch)
        if batch.events or batch.synced:
            raise self._contradiction("events came before the snapshot that they belong to")
        return _Waiting(batch.revision), ()

    def _gather(self, gathered: dict[str, Known], batch: pb.WatchClustersResponse) -> _Step:
        for event in batch.events:
            name = event.cluster.name
            match EventType(event.type):
                case EventType.ENGAGED | EventType.UPDATED | EventType.KUBECONFIG:
                    gathered[name] = _known(event, gathered.get(name))
                case EventType.DISENGAGED:
                    gathered.pop(name, None)
                case _:
                    pass  # a newer daemon's: what this client can't name, its user can't miss
        if not batch.synced:
            return _Replacing(batch.revision, gathered), ()
        told: tuple[Event | Mark, ...] = (*self._differences(gathered), Synced(clusters=len(gathered)))
        self._view.clear()
        self._view.update(gathered)
        self.revision = batch.revision
        self.synced = True
        return _Following(batch.revision), told

    def _differences(self, snapshot: Mapping[str, Known]) -> Iterator[Event | Refreshed]:
        for name, old in self._view.items():
            if name not in snapshot:
                yield Event(type=EventType.DISENGAGED, cluster=old.cluster, message=GONE_MEANWHILE)
        for name, new in snapshot.items():
            before = self._view.get(name)
            if before is None:
                yield _engaged(new)
            elif before.cluster.uid != new.cluster.uid:
                yield Event(type=EventType.DISENGAGED, cluster=before.cluster, reason=DisengageReason.REPLACED)
                yield _engaged(new)
            else:
                if visible(before.cluster) != visible(new.cluster):
                    yield Event(type=EventType.UPDATED, cluster=new.cluster)
                elif before.cluster != new.cluster:
                    yield Refreshed(cluster=new.cluster)
                if new.kubeconfig is not None and before.kubeconfig != new.kubeconfig:
                    yield Event(type=EventType.KUBECONFIG, cluster=new.cluster, kubeconfig=new.kubeconfig)

    def _follow(self, last: str, batch: pb.WatchClustersResponse) -> _Step:
        _continues(last, batch)
        if not batch.synced:
            raise self._contradiction("a complete view was taken back without a reset")
        changed: dict[str, Known | None] = {}
        told: list[Event] = []
        for message in batch.events:
            name = message.cluster.name
            before = changed[name] if name in changed else self._view.get(name)
            event_type = EventType(message.type)
            if event_type is EventType.UNSPECIFIED:
                continue  # a newer daemon's: what this client can't name, its user can't miss
            if (before is None) != (event_type is EventType.ENGAGED):
                raise self._contradiction(
                    f"{event_type.name} for cluster {name!r}, which is {'not ' if before is None else ''}engaged"
                )
            after = _known(message, before)
            changed[name] = None if event_type is EventType.DISENGAGED else after
            told.append(
                Event(
                    type=event_type,
                    cluster=after.cluster,
                    reason=DisengageReason(message.reason),
                    message=message.message,
                    kubeconfig=_wire.kubeconfig(message.kubeconfig) if message.HasField("kubeconfig") else None,
                )
            )
        for name, known in changed.items():
            if known is None:
                self._view.pop(name, None)
            else:
                self._view[name] = known
        self.revision = batch.revision
        return _Following(batch.revision), tuple(told)

    def _contradiction(self, what: str) -> StreamBroken:
        """What arrived contradicts the view: one of the two is wrong, and only a snapshot tells which."""
        self.revision = ""
        return StreamBroken(what)


def _continues(last: str, batch: pb.WatchClustersResponse) -> None:
    if batch.previous_revision != last:
        raise StreamBroken(f"a batch is missing: one that follows {batch.previous_revision!r} came after {last!r}")


def _known(event: pb.ClusterEvent, before: Known | None) -> Known:
    if event.HasField("kubeconfig"):
        return Known(_wire.cluster(event.cluster), _wire.kubeconfig(event.kubeconfig))
    return Known(_wire.cluster(event.cluster), before.kubeconfig if before else None)


def _engaged(known: Known) -> Event:
    return Event(type=EventType.ENGAGED, cluster=known.cluster, kubeconfig=known.kubeconfig)
