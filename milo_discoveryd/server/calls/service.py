"""The calls of DiscoveryService."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeAlias

import grpc
import msgspec
from google.protobuf.duration_pb2 import Duration

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.issued_kubeconfig import IssuedKubeconfig
from milo_discoveryd.kubeconfigs.issuer import CredentialUnavailableError, Issuer
from milo_discoveryd.kubeconfigs.lease import Draw
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.registry import ClusterRecord
from milo_discoveryd.rights.rights import Rights
from milo_discoveryd.rights.scope import ClusterScope, scoped
from milo_discoveryd.server.calls import convert, requests, visibility
from milo_discoveryd.server.calls.access import AccessControl, CallContext
from milo_discoveryd.server.calls.grpc_errors import CallError, NotFoundError, PreconditionError, UnavailableError
from milo_discoveryd.server.calls.kubeconfig_rotation import KubeconfigRotation
from milo_discoveryd.server.calls.listings import ListingOwner, Listings
from milo_discoveryd.server.calls.revision import Position, TokenSigner
from milo_discoveryd.server.calls.stream import RETRY_S, Send, Stream, StreamMetrics

NAME = pb.DESCRIPTOR.services_by_name["DiscoveryService"].full_name
CLUSTERS_PER_STEP = 250
"""Clusters of a page that are written while nobody else is served: two milliseconds."""


class RpcContext(Protocol):
    """What is needed of grpc.aio's context."""

    async def write(self, message: bytes) -> None: ...

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...


Identify: TypeAlias = Callable[[RpcContext], Awaitable[Caller]]
"""Who makes a call, as the listener that it came in at has it proved. Raises CallError where the proof fails."""


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon, to itself."""

    version: str
    mode: str
    epoch: str
    started_at: float
    heartbeat_s: float
    stalled_s: float


class Service:
    def __init__(
        self,
        fleet: Fleet,
        about: DaemonInfo,
        tally: StreamMetrics,
        issuer: Issuer,
        *,
        access: AccessControl,
        seal: TokenSigner,
        draw: Draw = random.random,
    ) -> None:
        self._fleet = fleet
        self._issuer = issuer
        self._about = about
        self._tally = tally
        self._access = access
        self._seal = seal
        self._draw = draw
        self._listings = Listings(fleet.log, seal)
        self._draining = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self.streams: set[Stream] = set()

    def drain(self) -> None:
        """Ends the streams, each after what it is still owed."""
        self._draining.set()
        self._fleet.notifier.notify_now()

    def change_rights(self, rights: Rights) -> None:
        """From here on; streams tell at once what that takes away and adds."""
        self._access.rights = rights
        self._fleet.notifier.notify_now()

    async def watch_clusters(self, request: pb.WatchClustersRequest, caller: Caller, send: Send) -> None:
        async with self._access.authorize(caller, "WatchClusters") as call:
            with call.streaming():
                await self._stream(requests.watch(request, self._about.heartbeat_s), call, send)

    async def list_clusters(self, request: pb.ListClustersRequest, caller: Caller) -> pb.ListClustersResponse:
        async with self._access.authorize(caller, "ListClusters") as call:
            asked = requests.listing(request)
            self._require_synced(call)
            source = visibility.source(self._fleet.status, call.scope)
            now = self._clock()
            shown = scoped(asked.wanted, call.scope)
            holder = ListingOwner(call.identity, call.holder(shown))

            def still(cluster: Cluster) -> bool:
                return call.scope.is_everything or self._seen(cluster.target.name, call) is not None

            page = (
                self._listings.next(asked.page_token, asked.page_size, now, holder, still)
                if asked.page_token
                else self._listings.first(shown, asked.page_size, now, holder)
            )
        return pb.ListClustersResponse(
            clusters=await self._written(page.clusters),
            next_page_token=page.next_token,
            revision=self._seal.put(str(Position(self._about.epoch, page.revision)), holder.text),
            total_size=page.total,
            source=convert.source(source, Moment(time.time(), now)),
        )

    async def _counts(self, scope: ClusterScope) -> visibility.Counts:
        """By and by, too, where each cluster is looked at."""
        registry = self._fleet.registry
        if scope.is_everything:
            return visibility.counts(registry)
        found, records = visibility.Counts(), iter([*registry.items()])
        while portion := [*islice(records, CLUSTERS_PER_STEP)]:
            found += visibility.visible_counts(portion, scope)
            await asyncio.sleep(0)
        return found

    async def _written(self, clusters: Sequence[Cluster]) -> list[pb.Cluster]:
        """By and by: at one go, thousands of them would hold up everybody's events for as long as that takes."""
        found: list[pb.Cluster] = []
        for first in range(0, len(clusters), CLUSTERS_PER_STEP):
            found += [convert.cluster(each, self._about.epoch) for each in clusters[first : first + CLUSTERS_PER_STEP]]
            await asyncio.sleep(0)
        return found

    async def get_cluster(self, request: pb.GetClusterRequest, caller: Caller) -> pb.GetClusterResponse:
        async with self._access.authorize(caller, "GetCluster", cluster=requests.cut(request.name)) as call:
            name = requests.name(request.name, "name")
            record = self._seen(name, call)
            if record is None:
                perhaps = "" if self._fleet.synced else "; no complete list of the source was seen yet"
                raise NotFoundError("NEVER_SEEN", f"{name} was never seen{perhaps}")
        suspicion = self._fleet.pending_deletions.explain(name)
        engagement = convert.engagement(record, None if suspicion is None else suspicion[1])
        if (trouble := self._trouble(record, call)) is not None:
            engagement.message += f"; no new credential for it can be had: {trouble}"
        return pb.GetClusterResponse(
            cluster=None if record.latest is None else convert.cluster(record.latest, self._about.epoch),
            engagement=engagement,
            transitions=[
                convert.transition(each, self._about.epoch) for each in visibility.transitions(record, call.scope)
            ],
        )

    async def issue_kubeconfig(self, request: pb.IssueKubeconfigRequest, caller: Caller) -> pb.IssueKubeconfigResponse:
        try:
            async with self._access.authorize(caller, "IssueKubeconfig", cluster=requests.cut(request.cluster)) as call:
                asked = requests.issue(request)
                with _credential_errors():
                    made = await self._issued(asked, call)
        except CallError as error:
            self._issuer.refused(error.reason.lower())
            raise
        return pb.IssueKubeconfigResponse(kubeconfig=convert.kubeconfig(made))

    async def get_server_info(self, request: pb.GetServerInfoRequest, caller: Caller) -> pb.GetServerInfoResponse:
        async with self._access.authorize(caller, "GetServerInfo") as call:
            scope, to = call.scope, call.recipient
        counts = await self._counts(scope)
        sources = [each for each in self._issuer.health() if to is not None and to.terms.allow(each.name)]
        max_ttl_s = self._issuer.max_ttl_s
        return pb.GetServerInfoResponse(
            version=self._about.version,
            mode=self._about.mode,
            incarnation=self._about.epoch,
            started_at=convert.timestamp(self._about.started_at),
            source=convert.source(visibility.source(self._fleet.status, scope), Moment(time.time(), self._clock())),
            synced=self._fleet.synced,
            counts=pb.FleetCounts(
                engaged=counts.engaged,
                not_ready=counts.not_ready,
                outside_selector=counts.outside,
                malformed=counts.malformed,
                subscribers=len(self.streams) if scope.is_everything else call.streams,
            ),
            credential_sources=[convert.credential_source(each) for each in sources],
            limits=pb.Limits(
                max_kubeconfig_ttl=_duration(max_ttl_s if to is None else to.terms.ttl_s(max_ttl_s)),
                default_heartbeat_interval=_duration(self._about.heartbeat_s),
                stalled_timeout=_duration(self._about.stalled_s),
                max_page_size=requests.MAX_PAGE_SIZE,
                max_filter_bytes=requests.MAX_FILTER_BYTES,
            ),
        )

    async def _stream(self, asked: requests.WatchRequest, call: CallContext, send: Send) -> None:
        stream = Stream(
            self._fleet,
            self._about.epoch,
            asked,
            call=call,
            seal=self._seal,
            send=send,
            tally=self._tally,
            stalled_s=self._about.stalled_s,
            draining=self._draining,
            rotation=await self._rotation(asked, call) if asked.with_kubeconfigs else None,
        )
        self.streams.add(stream)
        try:
            await stream.run()
        finally:
            self.streams.discard(stream)

    async def _issued(self, asked: requests.IssueRequest, call: CallContext) -> IssuedKubeconfig:
        terms = call.require_kubeconfigs().terms
        self._require_synced(call)  # a list that breaks off is begun anew, and all in it are other incarnations
        cluster = self._asked_for(asked, call)
        call.charge_kubeconfig()
        lease = self._issuer.lease(cluster, asked.ttl_s, terms)
        await (lease.wait_for_source() if asked.as_command else lease.wait())
        # Checked again, because the cluster and the rules may have changed during the wait. No `await` from here on.
        to, now = call.require_kubeconfigs(), self._asked_for(asked, call)
        if (now, to.terms) != (cluster, terms):
            lease = self._issuer.lease(now, asked.ttl_s, to.terms)
        incarnation = convert.incarnation(self._about.epoch, now.incarnation)
        return lease.issue_exec(incarnation, to) if asked.as_command else lease.issue(incarnation, to)

    def _seen(self, name: str, call: CallContext) -> ClusterRecord | None:
        return visibility.seen(name, self._fleet.registry[name], call.scope)

    def _asked_for(self, asked: requests.IssueRequest, call: CallContext) -> Cluster:
        record = self._seen(asked.cluster, call)
        cluster = None if record is None else record.cluster
        if cluster is None:
            raise NotFoundError("NOT_ENGAGED", f"{asked.cluster} is not engaged")
        incarnation = convert.incarnation(self._about.epoch, cluster.incarnation)
        if asked.incarnation not in ("", incarnation):
            raise PreconditionError(
                "OTHER_INCARNATION",
                f"{asked.cluster} is engaged as incarnation {incarnation}, not as the one that was asked for",
            )
        return cluster

    def _trouble(self, record: ClusterRecord, call: CallContext) -> str | None:
        to = call.recipient
        return None if record.cluster is None or to is None else self._issuer.problem(record.cluster, to.terms)

    async def _rotation(self, asked: requests.WatchRequest, call: CallContext) -> KubeconfigRotation:
        with _credential_errors():
            refusal = await self._issuer.refusal(call.require_kubeconfigs().terms)
            if refusal is not None:
                raise refusal
        return KubeconfigRotation(
            self._fleet,
            self._issuer,
            self._about.epoch,
            shown=scoped(asked.wanted, call.scope),
            ttl_s=asked.kubeconfig_ttl_s,
            call=call,
            clock=self._clock,
            wall=time.time,
            draw=self._draw,
        )

    def _require_synced(self, call: CallContext) -> None:
        if not self._fleet.synced:
            source = visibility.source(self._fleet.status, call.scope)
            raise UnavailableError(
                "NOT_SYNCED",
                f"no complete list of the source was seen yet ({source.message or source.reason})",
                retry_after_s=RETRY_S,
            )


@contextmanager
def _credential_errors() -> Iterator[None]:
    """Why no kubeconfig can be had, as callers are told it."""
    try:
        yield
    except UnfitError as error:
        advice = "configure one of kubeconfigs.sources, or ask without kubeconfigs"
        raise PreconditionError("NO_CREDENTIAL_SOURCE", f"{error}: {advice}") from error
    except CredentialUnavailableError as error:
        raise UnavailableError("CREDENTIALS_UNAVAILABLE", str(error), retry_after_s=error.retry_after_s) from error


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


Unary: TypeAlias = Callable[[Any, Caller], Awaitable[Any]]


def handlers(service: Service, identify: Identify) -> grpc.GenericRpcHandler:
    """Of the calls at a listener that knows who calls. Batches of a stream are bytes already; all else is serialised
    here."""

    def unary(call: Unary, request_type: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(request: Any, context: RpcContext) -> Any:
            return await call(request, await identify(context))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_type.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    async def watch(request: pb.WatchClustersRequest, context: RpcContext) -> None:
        caller = await identify(context)
        try:
            async with asyncio.timeout(None if caller.until is None else caller.until - time.time()) as proved:
                await service.watch_clusters(request, caller, context.write)
        except TimeoutError:
            if not proved.expired():
                raise
            message = "what proved who you are is at its end: call again, and prove it anew"
            raise UnavailableError("IDENTITY_ENDED", message, retry_after_s=0) from None

    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "WatchClusters": grpc.unary_stream_rpc_method_handler(
                watch, request_deserializer=pb.WatchClustersRequest.FromString
            ),
            "ListClusters": unary(service.list_clusters, pb.ListClustersRequest),
            "GetCluster": unary(service.get_cluster, pb.GetClusterRequest),
            "IssueKubeconfig": unary(service.issue_kubeconfig, pb.IssueKubeconfigRequest),
            "GetServerInfo": unary(service.get_server_info, pb.GetServerInfoRequest),
        },
    )
