"""The gRPC handlers of DiscoveryService: each authenticates its caller, and passes the call to the service."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import grpc

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.calls import requests
from milo_discoveryd.server.calls.in_flight import InFlightCalls
from milo_discoveryd.server.calls.rpc_context import Authenticator, RpcContext
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.server.calls.verification import HANDOUT_MAX_AGE_S, verified

NAME = pb.DESCRIPTOR.services_by_name["DiscoveryService"].full_name

METADATA_S = 5.0
"""How long a canceled stream waits until its metadata are sent: longer only if nothing reads from the connection."""

MOST_WAKEUPS = 32
"""The most bytes that are read in one iteration of the event loop. While more wait, as many events of gRPC are handled:
iterations stay short."""

Unary: TypeAlias = Callable[[Any, Caller], Awaitable[Any]]


def handlers(service: Service, authenticator: Authenticator, in_flight: InFlightCalls) -> grpc.GenericRpcHandler:
    """Return the handlers for one listener. WatchClusters has no serializer: its batches are serialized already."""

    def unary(call: Unary, request_type: Any, *, max_age_s: float | None = None) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(request: Any, context: RpcContext) -> Any:
            with in_flight.slot(authenticator.origin(context).owners, requests.size(request)):
                caller = await authenticator.identify(context, max_age_s=max_age_s)
                return await call(requests.whole(request), caller)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=requests.limited(request_type.FromString),
            response_serializer=lambda response: response.SerializeToString(),
        )

    async def watch(received: pb.WatchClustersRequest | None, context: RpcContext) -> None:
        with in_flight.slot(authenticator.origin(context).owners, requests.size(received)) as slot:
            request = requests.whole(received)
            # `verified` counts the age of this review from now on, so the review must be recent.
            max_age_s = HANDOUT_MAX_AGE_S if request.include_kubeconfigs else None
            caller = await authenticator.identify(context, max_age_s=max_age_s)
            async with verified(authenticator, caller, context) as freshness:
                write = ResponseWriter(context).write
                await service.watch_clusters(request, caller, write, freshness=freshness, slot=slot)

    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "WatchClusters": grpc.unary_stream_rpc_method_handler(
                watch, request_deserializer=requests.limited(pb.WatchClustersRequest.FromString)
            ),
            "ListClusters": unary(service.list_clusters, pb.ListClustersRequest),
            "GetCluster": unary(service.get_cluster, pb.GetClusterRequest),
            "IssueKubeconfig": unary(service.issue_kubeconfig, pb.IssueKubeconfigRequest, max_age_s=HANDOUT_MAX_AGE_S),
            "ReleaseCluster": unary(service.release_cluster, pb.ReleaseClusterRequest),
            "EndSubscription": unary(service.end_subscription, pb.EndSubscriptionRequest),
            "RenewOwnership": unary(service.renew_ownership, pb.RenewOwnershipRequest),
            "GetServerInfo": unary(service.get_server_info, pb.GetServerInfoRequest),
        },
    )


class ResponseWriter:
    """Writes the responses of a stream, which can be aborted after any write was canceled.

    gRPC sends the metadata with the first response and, if that write was canceled, again with the status. It refuses
    the second, so the call would never end for the client. The metadata are therefore sent before, and not canceled.
    """

    def __init__(self, context: RpcContext) -> None:
        self._context = context
        self._has_begun = False

    async def write(self, response: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._begin()
        await self._context.write(response)

    async def _begin(self) -> None:
        sending = asyncio.ensure_future(self._context.send_initial_metadata(()))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            # Retrieves the error, which nothing awaits: it fails if the client canceled the call.
            sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            await asyncio.wait((sending,), timeout=METADATA_S)
            raise


@contextmanager
def frequent_wakeups() -> Iterator[None]:
    """Make gRPC read several bytes in each iteration of the running event loop, if the loop's first user of gRPC is
    created in this context.

    For each event, such as a call or the end of a write, a thread of gRPC writes one byte to a socket, which wakes the
    event loop, and waits while the socket is full. On each iteration gRPC handles all events, but reads only one byte.
    Once some 280 are left over, as while hundreds of streams are written to, only one event would get through in each
    iteration, and calls of all clients would wait for half a minute.
    """
    loop = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def add(waking: socket.socket, handle: Callable[..., None], *args: Any) -> None:
        add_reader(waking, partial(_wake, waking, partial(handle, *args)))

    loop.add_reader = add  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del loop.add_reader


def _wake(waking: socket.socket, handle: Callable[[], None]) -> None:
    """Read all bytes but the one that gRPC reads before it handles the events. They were written after their events."""
    if more := len(waking.recv(MOST_WAKEUPS, socket.MSG_PEEK)) - 1:
        waking.recv(more)
    handle()
