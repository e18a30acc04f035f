"""The history of a subscriber's batches as plain values, for the validators."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.revision import Position, parse

Labels: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RecordedEvent:
    """A received event."""

    kind: str
    name: str
    uid: str
    incarnation: str
    version: int
    """The object's resource version, which increases; 0 for an object that was restored, not read."""
    labels: Labels = ()
    reason: str = ""
    content: bytes = b""
    """A digest of the whole cluster."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, self.reason, f"incarnation {self.incarnation}")))


@dataclass(frozen=True)
class Batch:
    events: tuple[RecordedEvent, ...] = ()
    revision: str = ""
    previous: str = ""
    synced: bool = True
    reset: bool = False

    def __str__(self) -> str:
        marks = [mark for mark, holds in (("reset", self.reset), ("not synced", not self.synced)) if holds]
        return f"[{', '.join(map(str, self.events))}] at {' '.join((self.revision or 'none', *marks))}"

    @cached_property
    def position(self) -> Position | None:
        """The decoded revision, which is opaque to subscribers; None if the daemon has no state yet."""
        return parse(self.revision)


@dataclass
class Stream:
    resumed_from: str = ""
    batches: list[Batch] = field(default_factory=list)
    is_of_new_process: bool = False
    """Whether the subscriber starts without state, as a new process that has lost what it had received before."""


@dataclass
class History:
    """The streams of one subscriber, in order."""

    who: str
    label_selector: str = ""
    streams: list[Stream] = field(default_factory=list)

    def batches(self) -> Iterator[Batch]:
        for stream in self.streams:
            yield from stream.batches

    def events(self) -> Iterator[RecordedEvent]:
        for batch in self.batches():
            yield from batch.events


def noted(batch: pb.WatchClustersResponse) -> Batch:
    """Convert a batch, without kubeconfigs, which are not part of the fleet's state."""
    return Batch(
        tuple(_event(event) for event in batch.events if event.type != pb.ClusterEvent.TYPE_KUBECONFIG),
        batch.revision,
        batch.previous_revision,
        batch.synced,
        batch.reset,
    )


def _event(event: pb.ClusterEvent) -> RecordedEvent:
    cluster = event.cluster
    return RecordedEvent(
        pb.ClusterEvent.Type.Name(event.type).removeprefix("TYPE_"),
        cluster.name,
        cluster.uid,
        cluster.incarnation,
        int(cluster.source_resource_version or 0),
        tuple(sorted(cluster.labels.items())),
        pb.DisengageReason.Name(event.reason).removeprefix("DISENGAGE_REASON_") if event.reason else "",
        hashlib.sha256(cluster.SerializeToString(deterministic=True)).digest(),
    )
