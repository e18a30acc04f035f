"""Encoding of events and batches."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.cluster import (
    UNPROBED,
    Cluster,
    ConnectivityStatus,
    DisengageReason,
    Drain,
    Reachability,
    SuspensionReason,
    Target,
    source_of,
)
from milo_discoveryd.registry.events import Event, EventType, Frames
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.frames import batch, decode_frame, encode_frame, encoder, growth
from tests.unit.server.calls.test_convert import EPOCH, FULL, SMALL

encode = encoder(EPOCH)

# --- compared with protobuf's generated code ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
times = st.floats(-1e9, 1e11)
pairs = st.dictionaries(texts, texts, max_size=4).map(lambda each: tuple(sorted(each.items())))
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


@given(events)
def test_frame_equals_generated_encoding(event: Event) -> None:
    message = pb.ClusterEvent(
        type=pb.ClusterEvent.Type.Value(f"TYPE_{event.type.value}"),
        cluster=convert.cluster(event.cluster, EPOCH),
        reason=pb.DisengageReason.Value(f"DISENGAGE_REASON_{event.reason.value}") if event.reason else 0,
        message=event.message,
    )
    frame = encode(event)
    assert decode_frame(frame) == message
    assert len(frame) == len(encode_frame(message)), "the expectation has no unused fields"


def test_frame_has_every_field_of_cluster_and_event() -> None:
    target = msgspec.structs.replace(FULL.target, name="milo#apollo", source="milo")
    of_source = msgspec.structs.replace(FULL, target=target)
    event = decode_frame(encode(Event(EventType.DISENGAGED, of_source, DisengageReason.NOT_READY, "degraded")))
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


def test_decoded_frame_can_be_extended_without_loss() -> None:
    event = decode_frame(encode(Event(EventType.ENGAGED, SMALL)))
    assert encode_frame(event) == encode(Event(EventType.ENGAGED, SMALL))
    event.kubeconfig.cluster = "a"
    assert decode_frame(encode_frame(event)) == event


# --- batches ---


def test_batch_is_frames_followed_by_its_own_fields() -> None:
    events = [Event(EventType.ENGAGED, SMALL), Event(EventType.UPDATED, FULL)]
    source = pb.SourceStatus(state=pb.SourceStatus.STATE_STREAMING)
    data = batch(
        Frames(encode(event) for event in events),
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
    decoded = pb.WatchClustersResponse.FromString(batch(Frames(), revision="r", previous_revision="r", synced=False))
    assert not decoded.events
    assert not decoded.HasField("source")
    assert not decoded.reset


@given(revision=texts, previous=texts, synced=st.booleans(), reset=st.booleans(), source=st.none() | texts)
def test_batch_equals_generated_encoding(
    revision: str, previous: str, synced: bool, reset: bool, source: str | None
) -> None:
    status = None if source is None else pb.SourceStatus(message=source)
    data = batch(
        Frames([encode(Event(EventType.ENGAGED, SMALL))]),
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
    data = batch(Frames(), revision="2", previous_revision="1", synced=True, sources=statuses, pending_sources=["us"])
    decoded = pb.WatchClustersResponse.FromString(data)
    assert list(decoded.sources) == statuses
    assert list(decoded.pending_sources) == ["us"]


@pytest.mark.parametrize("cluster", [SMALL, FULL], ids=["short", "long"])
@pytest.mark.parametrize(
    ("type_", "expected"), [(EventType.ENGAGED, 1), (EventType.UPDATED, 0), (EventType.DISENGAGED, -1)]
)
def test_view_grows_with_engagements_and_shrinks_with_disengagements(
    type_: EventType, expected: int, cluster: Cluster
) -> None:
    assert growth([encode(Event(type_, cluster))] * 2) == (
        {source_of(cluster.target.name): 2 * expected} if expected else {}
    )


@pytest.mark.parametrize("local_name", ["a", "a" * 100, "a" * 200])
def test_growth_of_a_view_is_counted_for_each_source(local_name: str) -> None:
    def engaged(source: str) -> bytes:
        target = msgspec.structs.replace(SMALL.target, name=f"{source}#{local_name}", source=source)
        return encode(Event(EventType.ENGAGED, msgspec.structs.replace(SMALL, target=target)))

    assert growth([engaged("eu"), engaged("us"), engaged("eu")]) == {"eu": 2, "us": 1}
