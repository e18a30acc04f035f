"""Subscribers that only count what they receive."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc

from bench.wire import METHOD, Batch
from milo_discovery.address import CHANNEL_OPTIONS
from milo_discovery.v1 import discovery_pb2 as pb


class Subscriber:
    """A subscriber on its own connection, like one in another process."""

    def __init__(
        self, address: str, *, names: tuple[str, ...] = (), resume: str = "", with_kubeconfigs: bool = False
    ) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        request = pb.WatchClustersRequest(
            filter=pb.ClusterFilter(names=names), resume_revision=resume, include_kubeconfigs=with_kubeconfigs
        )
        self._call: Any = self._channel.unary_stream(METHOD, request_serializer=_serialised)(request)
        self.on_batch: Callable[[bytes], object] | None = None
        self.batch: Any = Batch()
        """The last batch."""
        self.revision = ""
        self.synced = False
        self.events = 0
        """Events since the last `reset`; the function `synced` sets it to 0."""

    async def until_synced(self) -> Self:
        while not self.synced:
            await self.read()
        return self

    async def until(self, events: int) -> None:
        """Read until a number of events was received."""
        while self.events < events:
            await self.read()

    async def read(self) -> bytes:
        data: bytes = await self._call.read()
        if data is grpc.aio.EOF:
            raise ConnectionError(f"the stream ended: {await self._call.code()}: {await self._call.details()}")
        self.batch = batch = Batch.FromString(data)
        count = len(batch.events)
        self.events = count if batch.reset else self.events + count
        self.revision, self.synced = batch.revision, batch.synced
        if self.on_batch is not None:
            self.on_batch(data)
        return data

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


@asynccontextmanager
async def meanwhile(endless: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run endless coroutines until the block ends, and raise their failures then."""
    running = [asyncio.create_task(coroutine) for coroutine in endless]
    try:
        yield
        for task in running:
            if task.done():
                task.result()
    finally:
        for task in running:
            task.cancel()
        # A canceled read of a call raises a gRPC error.
        await asyncio.gather(*running, return_exceptions=True)


async def together(working: list[Awaitable[Any]]) -> None:
    await asyncio.gather(*working)


@asynccontextmanager
async def synced(address: str, count: int, **options: Any) -> AsyncIterator[list[Subscriber]]:
    """Open subscribers, each of which has received its whole snapshot."""
    async with opened(address, count, **options) as subscribers:
        await together([subscriber.until_synced() for subscriber in subscribers])
        for subscriber in subscribers:
            subscriber.events = 0
        yield subscribers


@asynccontextmanager
async def opened(address: str, count: int, **options: Any) -> AsyncIterator[list[Subscriber]]:
    subscribers = [Subscriber(address, **options) for _ in range(count)]
    try:
        yield subscribers
    finally:
        await together([subscriber.close() for subscriber in subscribers])


def _serialised(request: pb.WatchClustersRequest) -> bytes:
    return request.SerializeToString()
