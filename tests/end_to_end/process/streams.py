"""A WatchClusters stream on the generated gRPC stubs, without the client library."""

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub

PATIENCE_S = 60.0

# With a fixed window, a reader that pauses falls behind. By its estimate of the bandwidth, gRPC may enlarge the window
# until it receives everything while it pauses.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_535),
)


def channel(address: str) -> grpc.aio.Channel:
    """Return a channel with its own connection, as another process has."""
    return grpc.aio.insecure_channel(address.replace("unix://", "unix:"), options=_OPTIONS)


class Stream:
    """A call of WatchClusters."""

    def __init__(self, address: str, request: pb.WatchClustersRequest | None = None) -> None:
        self._channel = channel(address)
        self._call: Any = DiscoveryServiceStub(self._channel).WatchClusters(request or pb.WatchClustersRequest())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()

    async def batch(self) -> pb.WatchClustersResponse:
        """Return the next batch.

        Raises AioRpcError if the stream has ended.
        """
        async with asyncio.timeout(PATIENCE_S):
            batch = await self._call.read()
        assert isinstance(batch, pb.WatchClustersResponse), "the stream ended without an error status"
        return batch

    async def until_synced(self) -> list[pb.WatchClustersResponse]:
        batches = [await self.batch()]
        while not batches[-1].synced:
            batches.append(await self.batch())
        return batches

    async def rest(self) -> list[pb.WatchClustersResponse]:
        """Return all batches up to the end of the stream."""
        batches = []
        while True:
            try:
                batches.append(await self.batch())
            except grpc.aio.AioRpcError:
                return batches

    async def code(self) -> grpc.StatusCode:
        """Return the status code of the ended stream."""
        code: grpc.StatusCode = await self._call.code()
        return code

    async def retry_after_ms(self) -> int | None:
        status = await rpc_status.aio.from_call(self._call)
        for detail in status.details if status else ():
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return int(info.retry_delay.ToMilliseconds())
        return None
