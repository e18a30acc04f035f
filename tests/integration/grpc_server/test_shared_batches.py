"""F48: several streams on one connection."""

import asyncio
from pathlib import Path

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.server.calls import interceptor
from tests.integration.grpc_server.conftest import LIMIT_S, Harness, Subscriber, a_harness, ready

BIG = "x" * 60
FLEET = [ready(f"c-{number}", **{f"label-{index}": BIG for index in range(20)}) for number in range(1500)]


async def test_f48_stalled_stream_does_not_block_its_connection(harness: Harness) -> None:
    harness.listed(*FLEET)
    async with harness.client() as stub:
        unread = stub.WatchClusters(pb.WatchClustersRequest())
        reading = Subscriber(stub.WatchClusters(pb.WatchClustersRequest()))
        batches = await reading.until_synced()
        assert sum(len(batch.events) for batch in batches) == len(FLEET)
        harness.seen(ready("one-more"))
        assert await reading.events() == ["ENGAGED one-more"]
        unread.cancel()
        reading.call.cancel()


async def test_connection_is_closed_if_the_end_of_a_stream_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC keeps what the stream has sent until its end is read."""
    monkeypatch.setattr(interceptor, "ABORT_S", 0.1)
    async with a_harness(tmp_path, stalled_s=0.1) as harness:
        harness.listed(*FLEET)
        # With its estimate of the bandwidth, gRPC would receive the whole snapshot.
        options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))
        async with grpc.aio.insecure_channel(harness.address, options=options) as channel, asyncio.timeout(LIMIT_S):
            unread = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest())
            assert await unread.code() is grpc.StatusCode.UNAVAILABLE
