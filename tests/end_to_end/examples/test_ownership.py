"""Subscribers of a daemon that becomes sharded while they are connected, and owns nothing at first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceServicer, add_DiscoveryServiceServicer_to_server
from tests.end_to_end.examples.program import Program

pytestmark = pytest.mark.timeout(600)  # the first build compiles gRPC


class BecomingSharded(DiscoveryServiceServicer):
    """A daemon that owns its clusters from the second renewal on."""

    def __init__(self) -> None:
        self.renewals = 0

    async def WatchClusters(
        self, request: pb.WatchClustersRequest, context: Any
    ) -> AsyncIterator[pb.WatchClustersResponse]:
        is_sharded = self.renewals > 0
        if not request.resume_revision:
            first = pb.Cluster(name="first", uid="1", endpoint="https://127.0.0.1:1")
            event = pb.ClusterEvent(type=pb.ClusterEvent.TYPE_ENGAGED, cluster=first)
            yield pb.WatchClustersResponse(events=[event], revision="1", synced=True, reset=True, sharded=is_sharded)
        yield pb.WatchClustersResponse(previous_revision="1", revision="1", synced=True, sharded=True)
        await asyncio.get_running_loop().create_future()

    async def RenewOwnership(self, request: pb.RenewOwnershipRequest, context: Any) -> pb.RenewOwnershipResponse:
        self.renewals += 1
        response = pb.RenewOwnershipResponse(sharded=True)
        if self.renewals > 1:
            response.valid_for.FromSeconds(60)
        return response


async def test_subscriber_disengages_and_engages_clusters_of_daemon_that_becomes_sharded(
    subscriber: Callable[..., Program], directory: Path
) -> None:
    address = f"unix://{directory}/other.sock"
    server = grpc.aio.server()
    add_DiscoveryServiceServicer_to_server(BecomingSharded(), server)
    server.add_insecure_port(address)
    await server.start()
    try:
        async with subscriber(address) as printed:
            await printed.until("ENGAGED first")
            await printed.until("DISENGAGED first OWNERSHIP_LOST")
            await printed.until("ENGAGED first")
    finally:
        await server.stop(None)
