"""A fake daemon: a gRPC server on a Unix socket with scripted responses."""

# ruff: noqa: N802  (method names of gRPC)

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceServicer, add_DiscoveryServiceServicer_to_server


@dataclass(frozen=True)
class Refusal:
    """A gRPC error with google.rpc details."""

    code: grpc.StatusCode
    message: str = ""
    details: tuple[Message, ...] = ()

    async def abort(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        packed = []
        for detail in self.details:
            packed.append(Packed())
            packed[-1].Pack(detail)
        status = Status(code=self.code.value[0], message=self.message, details=packed)
        await context.abort(
            self.code, self.message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),)
        )


SILENCE = object()
"""In place of a response: the call never ends."""


@dataclass
class Stream:
    """The server side of one WatchClusters call."""

    request: pb.WatchClustersRequest
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _script: asyncio.Queue[pb.WatchClustersResponse | Refusal | None] = field(default_factory=asyncio.Queue)

    def send(self, *batches: pb.WatchClustersResponse) -> None:
        for batch in batches:
            self._script.put_nowait(batch)

    def end(self, refusal: Refusal | None = None) -> None:
        self._script.put_nowait(refusal)

    async def play(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while True:
                step = await self._script.get()
                match step:
                    case None:
                        return
                    case Refusal():
                        await step.abort(context)
                    case _:
                        await context.write(step)
        finally:
            self.ended.set()


class ScriptedDaemon(DiscoveryServiceServicer):
    """A fake daemon. `answers` has the responses by method name; the test controls the streams."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.address = f"unix://{socket}"
        self.answers: dict[str, list[Any]] = {}
        self.group = ""
        self.requests: list[Message] = []
        self.deadlines_s: list[float | None] = []
        """The seconds that each GetServerInfo call had left."""
        self.releases: asyncio.Queue[pb.ReleaseClusterRequest] = asyncio.Queue()
        self.ended_subscriptions: list[str] = []
        self.ownership: pb.RenewOwnershipResponse | None = None
        """The response to each RenewOwnership call; with None, the call never ends."""
        self.renewals = 0
        self.renewed_for = ""
        """The subscriber of the last RenewOwnership call."""
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        add_DiscoveryServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def stream(self) -> Stream:
        """Wait for the next stream that a client opens."""
        return await self._streams.get()

    async def WatchClusters(self, request, context):
        stream = Stream(request)
        self._streams.put_nowait(stream)
        await stream.play(context)

    async def ListClusters(self, request, context):
        return await self._answer("ListClusters", request, context)

    async def GetCluster(self, request, context):
        return await self._answer("GetCluster", request, context)

    async def IssueKubeconfig(self, request, context):
        return await self._answer("IssueKubeconfig", request, context)

    async def GetServerInfo(self, request, context):
        self.deadlines_s.append(context.time_remaining())
        if "GetServerInfo" not in self.answers:
            return pb.GetServerInfoResponse(sharding=pb.Sharding(group=self.group) if self.group else None)
        return await self._answer("GetServerInfo", request, context)

    async def ReleaseCluster(self, request, context):
        self.releases.put_nowait(request)
        for answer in self.answers.get("ReleaseCluster", [])[:1]:
            self.answers["ReleaseCluster"].pop(0)
            await answer.abort(context)
        return pb.ReleaseClusterResponse()

    async def EndSubscription(self, request, context):
        self.ended_subscriptions.append(request.subscriber)
        return pb.EndSubscriptionResponse()

    async def RenewOwnership(self, request, context):
        self.renewals += 1
        self.renewed_for = request.subscriber
        if self.ownership is None:
            await asyncio.Event().wait()
        return self.ownership

    async def _answer(self, method, request, context):
        self.requests.append(request)
        answer = self.answers[method].pop(0)
        if answer is SILENCE:
            await asyncio.Event().wait()
        if isinstance(answer, Refusal):
            await answer.abort(context)
        return answer
