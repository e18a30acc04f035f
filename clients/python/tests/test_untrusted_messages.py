"""Property tests that messages with any field values are converted, or raise StreamBroken."""

from __future__ import annotations

import hypothesis.strategies as st
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given

from milo_discovery import BackoffPolicy, StreamBroken, _convert
from milo_discovery._subscription import StreamSubscription
from milo_discovery.events import Event, StreamNotice
from milo_discovery.v1 import discovery_pb2 as pb

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
STAMPS = st.builds(Timestamp, seconds=INT64, nanos=INT32) | st.none()
DURATIONS = st.builds(Duration, seconds=INT64, nanos=INT32)
TEXT = st.text(max_size=10)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)
CLUSTERS = st.builds(
    pb.Cluster,
    name=TEXT,
    uid=TEXT,
    endpoint=TEXT,
    organization=TEXT,
    labels=LABELS,
    annotations=LABELS,
    engaged_at=STAMPS,
    deletion_requested_at=STAMPS,
    deletion_message=TEXT,
    suspended=st.booleans(),
    connectivity=st.builds(pb.Connectivity, state=INT32, since=STAMPS, message=TEXT),
    incarnation=TEXT,
)
KUBECONFIGS = st.builds(
    pb.Kubeconfig, cluster=TEXT, kubeconfig=st.binary(max_size=30), expires_at=STAMPS, refresh_after=STAMPS
)
EVENTS = st.builds(
    pb.ClusterEvent,
    type=INT32 | st.integers(0, 5),
    cluster=CLUSTERS,
    reason=INT32,
    message=TEXT,
    kubeconfig=KUBECONFIGS,
)
SOURCES = st.builds(pb.SourceStatus, state=INT32, since=STAMPS, reason=TEXT, message=TEXT, last_contact=STAMPS)
BATCHES = st.builds(
    pb.WatchClustersResponse,
    events=st.lists(EVENTS, max_size=4),
    revision=TEXT,
    synced=st.booleans(),
    reset=st.just(True),
    source=SOURCES,
)
SERVER_INFOS = st.builds(
    pb.GetServerInfoResponse,
    started_at=STAMPS,
    counts=st.builds(pb.FleetCounts, engaged=INT32),
    credential_issuers=st.lists(st.builds(pb.CredentialIssuer, expires_at=STAMPS), max_size=1),
    limits=st.builds(pb.Limits, stalled_timeout=DURATIONS, max_kubeconfig_ttl=DURATIONS),
)


def received(batch: pb.WatchClustersResponse) -> list[Event | StreamNotice]:
    """Return the events and notices of a batch; none if it is refused."""
    subscription = StreamSubscription({}, BackoffPolicy())
    subscription.next_request()
    try:
        subscription.received(batch, 0)
    except StreamBroken:
        return []
    return list(subscription.pending)


@given(BATCHES)
@example(pb.WatchClustersResponse(reset=True, synced=True, source=pb.SourceStatus(since=Timestamp(seconds=2**62))))
def test_watch_batch_with_any_fields_raises_only_stream_broken(batch: pb.WatchClustersResponse):
    received(batch)


@given(st.binary(max_size=200))
def test_watch_response_of_any_bytes_raises_only_stream_broken(content: bytes):
    batch = pb.WatchClustersResponse()
    try:
        batch.ParseFromString(content)
    except Exception:  # noqa: BLE001  (the exception type depends on the protobuf implementation)
        return
    received(batch)


@given(SERVER_INFOS)
@example(pb.GetServerInfoResponse(limits=pb.Limits(stalled_timeout=Duration(seconds=315_576_000_001))))
def test_any_server_info_message_is_converted(message: pb.GetServerInfoResponse):
    _convert.server_info(message)
