"""Encoding of events and batches."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
    SuspensionReason,
    Target,
)
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.frames import batch, encode_with_kubeconfig, encoder
from tests.unit.server.calls.test_convert import EPOCH, FULL, SMALL


def encode(event: Event) -> bytes:
    return encoder(EPOCH)(event)


# --- any event ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
times = st.floats(-1e9, 1e11)
pairs = st.dictionaries(texts, texts, max_size=4).map(lambda labels: tuple(sorted(labels.items())))
targets = st.builds(
    Target,
    name=texts,
    uid=texts,
    place=st.lists(texts, max_size=3).map(tuple),
    organization=texts,
    labels=pairs,
    annotations=pairs,
    deletion_requested_at=st.none() | times,
    deletion_message=texts,
    suspensions=st.none()
    | st.lists(st.builds(SuspensionReason, texts, st.none() | times, texts), max_size=2).map(tuple),
)
clusters = st.builds(
    Cluster,
    target=targets,
    source_version=texts,
    engaged_at=times | st.just(0.0),
    incarnation=st.integers(0, 2**40),
    connectivity=st.just(UNPROBED)
    | st.builds(ConnectivityStatus, st.sampled_from(Reachability), st.none() | times, texts),
    draining=st.none() | st.builds(Drain, st.sampled_from(DisengageReason), texts, times),
)
events = st.builds(
    Event,
    type=st.sampled_from(EventType),
    cluster=clusters,
    reason=st.none() | st.sampled_from(DisengageReason),
    message=texts,
)


def decode(frame: bytes) -> pb.ClusterEvent:
    (event,) = pb.WatchClustersResponse.FromString(frame).events
    return event


@given(events)
def test_frame_decodes_to_the_fields_of_its_event(event: Event) -> None:
    target, decoded = event.cluster.target, decode(encode(event))
    cluster = decoded.cluster
    assert pb.ClusterEvent.Type.Name(decoded.type) == f"TYPE_{event.type.value}"
    assert decoded.message == event.message
    assert (cluster.name, cluster.uid, cluster.endpoint) == (target.name, target.uid, target.endpoint)
    assert (dict(cluster.labels), dict(cluster.annotations)) == (dict(target.labels), dict(target.annotations))
    assert cluster.HasField("deletion_requested_at") == (target.deletion_requested_at is not None)
    assert cluster.engaged_at == convert.timestamp(event.cluster.engaged_at)
    assert cluster.HasField("draining") == (event.cluster.draining is not None)
    assert cluster.suspended == target.suspended
    assert [suspension.reason for suspension in cluster.suspensions] == [
        suspension.reason for suspension in target.suspensions or ()
    ]
    assert cluster.connectivity.message == event.cluster.connectivity.message


def test_frame_has_every_field_of_cluster_and_event() -> None:
    target = msgspec.structs.replace(FULL.target, name="milo#apollo", source="milo")
    of_source = msgspec.structs.replace(FULL, target=target)
    event = decode(encode(Event(EventType.DISENGAGED, of_source, DisengageReason.NOT_READY, "degraded")))
    assert {field.name for field, _ in event.cluster.ListFields()} == set(pb.Cluster.DESCRIPTOR.fields_by_name)
    own = {field.name for field, _ in event.ListFields()}
    assert set(pb.ClusterEvent.DESCRIPTOR.fields_by_name) - own == {
        "kubeconfig"
    }  # added for each subscriber by the kubeconfig rotation


# --- golden bytes ---


def test_frame_decodes_as_event_of_batch() -> None:
    frame = encode(Event(EventType.DISENGAGED, FULL, DisengageReason.NOT_READY, "degraded"))
    assert pb.WatchClustersResponse.FromString(frame) == pb.WatchClustersResponse(
        events=[
            pb.ClusterEvent(
                type=pb.ClusterEvent.TYPE_DISENGAGED,
                cluster=convert.cluster(FULL, EPOCH),
                reason=pb.DISENGAGE_REASON_NOT_READY,
                message="degraded",
            )
        ]
    )


def test_frame_encoding_equals_golden_bytes() -> None:
    assert encode(Event(EventType.ENGAGED, SMALL)) == bytes.fromhex(
        "0a3a"  # events, 58 bytes
        "0801"  # type: ENGAGED
        "1236"  # cluster, 54 bytes
        "0a0161"  # name: a
        "120175"  # uid: u
        "1a0968747470733a2f2f61"  # endpoint: https://a
        "3a0808011080cab5ee01"  # engaged_at: 1.5
        "5a020801"  # connectivity: UNKNOWN
        "620137"  # source_resource_version: 7
        "6a12303132333435363738396162636465662e33"  # incarnation: EPOCH.3
    )


@pytest.mark.parametrize("kind", EventType)
def test_every_event_type_has_an_enum_value(kind: EventType) -> None:
    (decoded,) = pb.WatchClustersResponse.FromString(encode(Event(kind, SMALL))).events
    assert pb.ClusterEvent.Type.Name(decoded.type) == f"TYPE_{kind.value}"
    assert decoded.reason == pb.DISENGAGE_REASON_UNSPECIFIED


@pytest.mark.parametrize("reason", DisengageReason)
def test_every_disengage_reason_has_an_enum_value(reason: DisengageReason) -> None:
    (decoded,) = pb.WatchClustersResponse.FromString(encode(Event(EventType.DISENGAGED, SMALL, reason))).events
    assert pb.DisengageReason.Name(decoded.reason) == f"DISENGAGE_REASON_{reason.value}"


def test_frame_encoding_is_deterministic() -> None:
    shuffled = Cluster(
        target=Target(name="a", uid="u", place=("e",), labels=tuple((f"k{index}", "v") for index in range(50))),
        source_version="7",
        engaged_at=1.5,
        incarnation=3,
    )
    assert len({encode(Event(EventType.ENGAGED, shuffled)) for _ in range(20)}) == 1


@pytest.mark.parametrize("length", [0, 10, 127, 128, 20_000, 3_000_000])
def test_frame_length_is_encoded_for_any_message_size(length: int) -> None:
    event = Event(EventType.ENGAGED, SMALL, message="x" * length)
    assert len(pb.WatchClustersResponse.FromString(encode(event)).events[0].message) == length


def test_event_encoded_with_kubeconfig_decodes_to_the_same_event_with_the_kubeconfig() -> None:
    kubeconfig = pb.Kubeconfig(cluster="apollo", kubeconfig=b"apiVersion: v1")
    expected = decode(encode(Event(EventType.ENGAGED, FULL)))
    expected.kubeconfig.CopyFrom(kubeconfig)
    assert decode(encode_with_kubeconfig(pb.ClusterEvent.TYPE_ENGAGED, FULL, EPOCH, kubeconfig)) == expected


# --- batches ---


def test_batch_decodes_to_the_events_of_its_frames_and_the_fields_of_the_batch() -> None:
    events = [Event(EventType.ENGAGED, SMALL), Event(EventType.UPDATED, FULL)]
    source = pb.SourceStatus(state=pb.SourceStatus.STATE_STREAMING)
    data = batch(
        b"".join(map(encode, events)),
        revision="r2",
        previous_revision="r1",
        synced=True,
        reset=True,
        source=source,
    )
    decoded = pb.WatchClustersResponse.FromString(data)
    assert [event.cluster.name for event in decoded.events] == ["a", "apollo"]
    assert (decoded.revision, decoded.previous_revision, decoded.synced, decoded.reset) == ("r2", "r1", True, True)
    assert decoded.source == source


def test_batch_without_events_is_encoded() -> None:
    decoded = pb.WatchClustersResponse.FromString(batch(b"", revision="r", previous_revision="r", synced=False))
    assert not decoded.events
    assert not decoded.HasField("source")
    assert not decoded.reset


@given(revision=texts, previous=texts, synced=st.booleans(), reset=st.booleans(), source=st.none() | texts)
def test_batch_decodes_to_the_fields_that_were_encoded(
    revision: str, previous: str, synced: bool, reset: bool, source: str | None
) -> None:
    status = None if source is None else pb.SourceStatus(message=source)
    data = batch(
        encode(Event(EventType.ENGAGED, SMALL)),
        revision=revision,
        previous_revision=previous,
        synced=synced,
        reset=reset,
        source=status,
    )
    decoded = pb.WatchClustersResponse.FromString(data)
    assert len(decoded.events) == 1
    del decoded.events[:]
    assert decoded == pb.WatchClustersResponse(
        revision=revision, previous_revision=previous, synced=synced, reset=reset, source=status
    )


def test_batch_contains_status_of_each_source() -> None:
    statuses = [pb.SourceStatus(name="eu"), pb.SourceStatus(name="us")]
    data = batch(b"", revision="2", previous_revision="1", synced=True, sources=statuses, pending_sources=["us"])
    decoded = pb.WatchClustersResponse.FromString(data)
    assert list(decoded.sources) == statuses
    assert list(decoded.pending_sources) == ["us"]
    assert not decoded.sharded


def test_batch_of_a_shard_group_member_is_marked_as_sharded() -> None:
    data = batch(b"", revision="2", previous_revision="1", synced=True, sharded=True)
    assert pb.WatchClustersResponse.FromString(data).sharded
