"""F48: several streams on one connection."""

from milo_discovery.v1 import discovery_pb2 as pb
from tests.integration.grpc_server.conftest import Harness, Subscriber, ready

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
