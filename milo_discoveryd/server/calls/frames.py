"""Encoding of events as frames, and of frames as batches. Pure.

A repeated field in protobuf's wire format is a concatenation, so an event has the same bytes in every batch: it is
encoded once and shared by all subscribers. Encoding is written by hand because the generated code takes twice as long.
Map entries are sorted by key.
"""

from collections.abc import Iterable
from functools import lru_cache

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
    SuspensionReason,
    source_of,
)
from milo_discoveryd.registry.events import Encode, Event, EventType, Frames
from milo_discoveryd.server.calls.convert import suspension
from milo_discoveryd.server.calls.revision import wire_incarnation

_VARINT, _LENGTH_DELIMITED = 0, 2
_SHORT = tuple(bytes([size]) for size in range(0x80))
_SECONDS, _NANOS = (bytes([number << 3 | _VARINT]) for number in (1, 2))


Tag = tuple[bytes, ...]
"""The tag of a length-delimited field, followed by each length that fits a byte; the last item is the tag alone."""


def _length_delimited(number: int) -> Tag:
    tag = _varint(number << 3 | _LENGTH_DELIMITED)
    return (*(tag + size for size in _SHORT), tag)


def _number(number: int, value: int) -> bytes:
    """Encode a varint field; empty if the value is zero."""
    return bytes([number << 3 | _VARINT]) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return _SHORT[value]
    if 1 << 28 <= value < 1 << 35:  # seconds since the epoch, and most nanoseconds
        return bytes(
            (
                value & 0x7F | 0x80,
                value >> 7 & 0x7F | 0x80,
                value >> 14 & 0x7F | 0x80,
                value >> 21 & 0x7F | 0x80,
                value >> 28,
            )
        )
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_KEY, _VALUE = _length_delimited(1), _length_delimited(2)
_EVENTS = _length_delimited(pb.WatchClustersResponse.EVENTS_FIELD_NUMBER)
_REVISION = _length_delimited(pb.WatchClustersResponse.REVISION_FIELD_NUMBER)
_PREVIOUS_REVISION = _length_delimited(pb.WatchClustersResponse.PREVIOUS_REVISION_FIELD_NUMBER)
_SYNCED = _number(pb.WatchClustersResponse.SYNCED_FIELD_NUMBER, 1)
_RESET = _number(pb.WatchClustersResponse.RESET_FIELD_NUMBER, 1)
_SHARDED = _number(pb.WatchClustersResponse.SHARDED_FIELD_NUMBER, 1)
_SOURCE = _length_delimited(pb.WatchClustersResponse.SOURCE_FIELD_NUMBER)
_SOURCES = _length_delimited(pb.WatchClustersResponse.SOURCES_FIELD_NUMBER)
_PENDING_SOURCES = _length_delimited(pb.WatchClustersResponse.PENDING_SOURCES_FIELD_NUMBER)
_TYPES = {
    kind: _number(pb.ClusterEvent.TYPE_FIELD_NUMBER, pb.ClusterEvent.Type.Value(f"TYPE_{kind.value}"))
    for kind in EventType
}
_REASONS: dict[DisengageReason | None, bytes] = {
    None: b"",
    **{
        reason: _number(
            pb.ClusterEvent.REASON_FIELD_NUMBER, pb.DisengageReason.Value(f"DISENGAGE_REASON_{reason.value}")
        )
        for reason in DisengageReason
    },
}
_STATES = {
    state: _number(pb.Connectivity.STATE_FIELD_NUMBER, pb.Connectivity.State.Value(f"STATE_{state.value}"))
    for state in Reachability
}
_CLUSTER = _length_delimited(pb.ClusterEvent.CLUSTER_FIELD_NUMBER)
_MESSAGE = _length_delimited(pb.ClusterEvent.MESSAGE_FIELD_NUMBER)
_NAME = _length_delimited(pb.Cluster.NAME_FIELD_NUMBER)
_UID = _length_delimited(pb.Cluster.UID_FIELD_NUMBER)
_ENDPOINT = _length_delimited(pb.Cluster.ENDPOINT_FIELD_NUMBER)
_ORGANIZATION = _length_delimited(pb.Cluster.ORGANIZATION_FIELD_NUMBER)
_LABELS = _length_delimited(pb.Cluster.LABELS_FIELD_NUMBER)
_ANNOTATIONS = _length_delimited(pb.Cluster.ANNOTATIONS_FIELD_NUMBER)
_ENGAGED_AT = _length_delimited(pb.Cluster.ENGAGED_AT_FIELD_NUMBER)
_DELETION_REQUESTED_AT = _length_delimited(pb.Cluster.DELETION_REQUESTED_AT_FIELD_NUMBER)
_DELETION_MESSAGE = _length_delimited(pb.Cluster.DELETION_MESSAGE_FIELD_NUMBER)
_SUSPENDED = _number(pb.Cluster.SUSPENDED_FIELD_NUMBER, 1)
_CONNECTIVITY = _length_delimited(pb.Cluster.CONNECTIVITY_FIELD_NUMBER)
_SOURCE_RESOURCE_VERSION = _length_delimited(pb.Cluster.SOURCE_RESOURCE_VERSION_FIELD_NUMBER)
_INCARNATION = _length_delimited(pb.Cluster.INCARNATION_FIELD_NUMBER)
_DRAINING = _length_delimited(pb.Cluster.DRAINING_FIELD_NUMBER)
_DRAINING_DEADLINE = _length_delimited(pb.Draining.DEADLINE_FIELD_NUMBER)
_DRAINING_MESSAGE = _length_delimited(pb.Draining.MESSAGE_FIELD_NUMBER)
_DRAINING_REASONS = {
    reason: _number(pb.Draining.REASON_FIELD_NUMBER, pb.DisengageReason.Value(f"DISENGAGE_REASON_{reason.value}"))
    for reason in DisengageReason
}
_CLUSTER_SOURCE = _length_delimited(pb.Cluster.SOURCE_FIELD_NUMBER)
_SUSPENSIONS = _length_delimited(pb.Cluster.SUSPENSIONS_FIELD_NUMBER)
_SINCE = _length_delimited(pb.Connectivity.SINCE_FIELD_NUMBER)
_CONNECTIVITY_MESSAGE = _length_delimited(pb.Connectivity.MESSAGE_FIELD_NUMBER)


def encoder(epoch: str) -> Encode:
    """Return the encoder for one run of the daemon."""

    def encode(event: Event) -> bytes:
        return _field(
            _EVENTS,
            _TYPES[event.type]
            + _field(_CLUSTER, _cluster(event.cluster, epoch))
            + _REASONS[event.reason]
            + _text(_MESSAGE, event.message),
        )

    return encode


def batch(
    frames: Frames,
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
    return frames.followed_by(
        _text(_REVISION, revision)
        + _text(_PREVIOUS_REVISION, previous_revision)
        + (_SYNCED if synced else b"")
        + (_RESET if reset else b"")
        + (b"" if source is None else _field(_SOURCE, source.SerializeToString()))
        + b"".join(_field(_SOURCES, each.SerializeToString()) for each in sources)
        + b"".join(_text(_PENDING_SOURCES, each) for each in pending_sources)
        + (_SHARDED if sharded else b"")
    )


def growth(frames: Iterable[bytes]) -> dict[str, int]:
    """Return by how many clusters of each source a view grows with the frames."""
    grown: dict[str, int] = {}
    for frame in frames:
        _, event = _length_at(frame, 1)
        kind = frame[event : event + 2]
        count = (kind == _TYPES[EventType.ENGAGED]) - (kind == _TYPES[EventType.DISENGAGED])
        if count:
            # The cluster is the field after the type, and its first field is the name.
            _, cluster = _length_at(frame, event + 3)
            length, name = _length_at(frame, cluster + 1)
            source = source_of(frame[name : name + length].decode())
            grown[source] = grown.get(source, 0) + count
    return grown


def _length_at(data: bytes, at: int) -> tuple[int, int]:
    """Return the length that is encoded there, and where the content begins."""
    length = shift = 0
    while (byte := data[at]) & 0x80:
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return length | byte << shift, at + 1


def encode_frame(event: pb.ClusterEvent) -> bytes:
    return _field(_EVENTS, event.SerializeToString(deterministic=True))


def decode_frame(frame: bytes) -> pb.ClusterEvent:
    """Return the event in a frame."""
    (event,) = pb.WatchClustersResponse.FromString(frame).events
    return event


def _cluster(of: Cluster, epoch: str) -> bytes:
    target = of.target
    suspensions = target.suspensions
    return b"".join(
        (
            _text(_NAME, target.name),
            _text(_UID, target.uid),
            _text(_ENDPOINT, target.endpoint),
            _text(_ORGANIZATION, target.organization),
            *map(_label, target.labels),
            *map(_annotation, target.annotations),
            _engaged_at(of.engaged_at),
            _time(_DELETION_REQUESTED_AT, target.deletion_requested_at),
            _text(_DELETION_MESSAGE, target.deletion_message),
            b"" if suspensions is None else _SUSPENDED,
            _UNPROBED if of.connectivity is UNPROBED else _connectivity(of.connectivity),
            _text(_SOURCE_RESOURCE_VERSION, of.source_version),
            _text(_INCARNATION, wire_incarnation(epoch, of.incarnation)),
            b"" if of.draining is None else _draining(of.draining),
            _text(_CLUSTER_SOURCE, target.source) if target.source else b"",
            *map(_suspension, suspensions or ()),
        )
    )


def _field(tag: Tag, content: bytes) -> bytes:
    size = len(content)
    return tag[size] + content if size < 0x80 else tag[0x80] + _varint(size) + content


def _text(tag: Tag, text: str) -> bytes:
    if not text:
        return b""
    content = text.encode()
    size = len(content)
    return tag[size] + content if size < 0x80 else tag[0x80] + _varint(size) + content


@lru_cache(maxsize=4096)
def _label(pair: tuple[str, str]) -> bytes:
    """Cached, because many clusters share most of their labels."""
    return _field(_LABELS, _pair(pair))


def _annotation(pair: tuple[str, str]) -> bytes:
    return _field(_ANNOTATIONS, _pair(pair))


def _pair(pair: tuple[str, str]) -> bytes:
    key, value = pair
    return _field(_KEY, key.encode()) + _field(_VALUE, value.encode())


def _suspension(of: SuspensionReason) -> bytes:
    return _field(_SUSPENSIONS, suspension(of).SerializeToString(deterministic=True))


@lru_cache(maxsize=256)
def _engaged_at(seconds: float) -> bytes:
    """Cached, because all clusters of a list were engaged at the same time."""
    return _time(_ENGAGED_AT, seconds)


def _time(tag: Tag, seconds: float | None) -> bytes:
    if seconds is None:
        return b""
    whole, rest = divmod(round(seconds * 1e6), 1_000_000)
    return _field(tag, (_SECONDS + _varint(whole) if whole else b"") + (_NANOS + _varint(rest * 1000) if rest else b""))


def _connectivity(of: ConnectivityStatus) -> bytes:
    return _field(_CONNECTIVITY, _STATES[of.state] + _time(_SINCE, of.since) + _text(_CONNECTIVITY_MESSAGE, of.message))


def _draining(of: Drain) -> bytes:
    return _field(
        _DRAINING,
        _DRAINING_REASONS[of.reason] + _time(_DRAINING_DEADLINE, of.deadline) + _text(_DRAINING_MESSAGE, of.message),
    )


_UNPROBED = _connectivity(UNPROBED)
