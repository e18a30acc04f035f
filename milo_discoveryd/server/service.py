"""The calls of DiscoveryService."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import msgspec
from google.protobuf.duration_pb2 import Duration

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.registry import Standing
from milo_discoveryd.server import convert, requests
from milo_discoveryd.server.errors import NotFoundError, PreconditionError, UnavailableError
from milo_discoveryd.server.listings import Listings
from milo_discoveryd.server.revision import Position
from milo_discoveryd.server.stream import RETRY_S, Stream, Tally

NAME = pb.DESCRIPTOR.services_by_name["DiscoveryService"].full_name
NO_CREDENTIALS = "no source of kubeconfigs is configured: this daemon hands out none"


class Context(Protocol):
    """What a call needs of grpc.aio's context."""

    async def write(self, message: bytes) -> None: ...


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon, to itself."""

    version: str
    mode: str
    epoch: str
    started_at: float
    heartbeat_s: float
    stalled_s: float


class Service:
    def __init__(self, fleet: Fleet, about: About, tally: Tally) -> None:
        self._fleet = fleet
        self._about = about
        self._tally = tally
        self._listings = Listings(fleet.log)
        self._draining = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self.streams: set[Stream] = set()

    def drain(self) -> None:
        """Ends the streams, each after what it is still owed."""
        self._draining.set()
        self._fleet.signal.ring_now()

    async def watch_clusters(self, request: pb.WatchClustersRequest, context: Context) -> None:
        asked = requests.watch(request, self._about.heartbeat_s)
        if asked.with_kubeconfigs:
            raise PreconditionError("NO_CREDENTIAL_SOURCE", NO_CREDENTIALS)
        stream = Stream(
            self._fleet,
            self._about.epoch,
            asked,
            send=context.write,
            tally=self._tally,
            stalled_s=self._about.stalled_s,
            draining=self._draining,
        )
        self.streams.add(stream)
        try:
            await stream.run()
        finally:
            self.streams.discard(stream)

    async def list_clusters(self, request: pb.ListClustersRequest, context: Context) -> pb.ListClustersResponse:
        asked = requests.listing(request)
        if not self._fleet.synced:
            raise UnavailableError(
                "NOT_SYNCED",
                f"no complete list of the source was seen yet ({self._fleet.status.message})",
                retry_after_s=RETRY_S,
            )
        now = self._clock()
        page = (
            self._listings.next(asked.page_token, asked.wanted, asked.page_size, now)
            if asked.page_token
            else self._listings.first(asked.wanted, asked.page_size, now)
        )
        return pb.ListClustersResponse(
            clusters=[convert.cluster(cluster, self._about.epoch) for cluster in page.clusters],
            next_page_token=page.next_token,
            revision=str(Position(self._about.epoch, page.revision, asked.wanted.fingerprint)),
            total_size=page.total,
            source=convert.source(self._fleet.status, Moment(time.time(), now)),
        )

    async def get_cluster(self, request: pb.GetClusterRequest, context: Context) -> pb.GetClusterResponse:
        name = requests.name(request.name, "name")
        record = self._fleet.registry[name]
        if record is None:
            raise NotFoundError("NEVER_SEEN", f"{name} was never seen{self._perhaps_not_yet()}")
        suspicion = self._fleet.suspicions.why(name)
        return pb.GetClusterResponse(
            cluster=None if record.cluster is None else convert.cluster(record.cluster, self._about.epoch),
            engagement=convert.engagement(record, None if suspicion is None else suspicion[1]),
            transitions=[convert.transition(each, self._about.epoch) for each in record.transitions],
        )

    async def issue_kubeconfig(
        self, request: pb.IssueKubeconfigRequest, context: Context
    ) -> pb.IssueKubeconfigResponse:
        name = requests.name(request.cluster, "cluster")
        record = self._fleet.registry[name]
        if record is None or not record.engaged:
            raise NotFoundError("NOT_ENGAGED", f"{name} is not engaged{self._perhaps_not_yet()}")
        raise PreconditionError("NO_CREDENTIAL_SOURCE", NO_CREDENTIALS)

    async def get_server_info(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        registry = self._fleet.registry
        return pb.GetServerInfoResponse(
            version=self._about.version,
            mode=self._about.mode,
            incarnation=self._about.epoch,
            started_at=convert.timestamp(self._about.started_at),
            source=convert.source(self._fleet.status, Moment(time.time(), self._clock())),
            synced=self._fleet.synced,
            counts=pb.FleetCounts(
                engaged=registry.engaged,
                not_ready=registry.count(Standing.NOT_READY),
                outside_selector=registry.count(Standing.OUTSIDE),
                malformed=registry.count(Standing.MALFORMED),
                subscribers=len(self.streams),
            ),
            limits=pb.Limits(
                default_heartbeat_interval=_duration(self._about.heartbeat_s),
                stalled_timeout=_duration(self._about.stalled_s),
                max_page_size=requests.MAX_PAGE_SIZE,
                max_filter_bytes=requests.MAX_FILTER_BYTES,
            ),
        )

    def _perhaps_not_yet(self) -> str:
        return "" if self._fleet.synced else "; no complete list of the source was seen yet"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


Unary = Callable[[Any, Any], Awaitable[Any]]


def handlers(service: Service) -> grpc.GenericRpcHandler:
    """Batches of a stream are bytes already; all else is serialised here."""

    def unary(call: Unary, request: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "WatchClusters": grpc.unary_stream_rpc_method_handler(
                service.watch_clusters, request_deserializer=pb.WatchClustersRequest.FromString
            ),
            "ListClusters": unary(service.list_clusters, pb.ListClustersRequest),
            "GetCluster": unary(service.get_cluster, pb.GetClusterRequest),
            "IssueKubeconfig": unary(service.issue_kubeconfig, pb.IssueKubeconfigRequest),
            "GetServerInfo": unary(service.get_server_info, pb.GetServerInfoRequest),
        },
    )
