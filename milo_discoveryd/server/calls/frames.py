"""Encoding of events as frames, and of frames as batches. Pure.

A repeated field in protobuf's wire format is a concatenation, so an event has the same bytes in every batch: it is
encoded once and shared by all subscribers.
"""

from collections.abc import Iterable

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.log.events import Encode, Event
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls.convert import EVENT_TYPES, REASONS, fill_cluster


def encoder(epoch: str) -> Encode:
    """Return the encoder for one run of the daemon."""

    def encode(event: Event) -> bytes:
        # Filled in place: constructors with keyword arguments take three times as long.
        batch = pb.WatchClustersResponse()
        encoded = batch.events.add()
        encoded.type = EVENT_TYPES[event.type]
        fill_cluster(encoded.cluster, event.cluster, epoch)
        if event.reason is not None:
            encoded.reason = REASONS[event.reason]
        if event.message:
            encoded.message = event.message
        return batch.SerializeToString(deterministic=True)

    return encode


def encode_with_kubeconfig(
    kind: pb.ClusterEvent.Type.ValueType, cluster: Cluster, epoch: str, kubeconfig: pb.Kubeconfig
) -> bytes:
    """Encode an event that only one subscriber receives, because it contains that subscriber's kubeconfig."""
    batch = pb.WatchClustersResponse()
    encoded = batch.events.add(type=kind, kubeconfig=kubeconfig)
    fill_cluster(encoded.cluster, cluster, epoch)
    return batch.SerializeToString(deterministic=True)


def batch(
    events: bytes,
    *,
    revision: str,
    previous_revision: str,
    synced: bool,
    reset: bool = False,
    source: pb.SourceStatus | None = None,
    sources: Iterable[pb.SourceStatus] = (),
    pending_sources: Iterable[str] = (),
    sharded: bool = False,
) -> bytes:
    """Serialize the message of a batch. `events` are its serialized events."""
    rest = pb.WatchClustersResponse(
        revision=revision,
        previous_revision=previous_revision,
        synced=synced,
        reset=reset,
        source=source,
        sources=sources,
        pending_sources=pending_sources,
        sharded=sharded,
    )
    return events + rest.SerializeToString()
