"""The client for programs without asyncio: the same calls, blocking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from milo_discovery import _api_clients, _wire
from milo_discovery._address import CHANNEL_OPTIONS, target
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._credentials import ClientCredentials
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._lane import Lanes
from milo_discovery._status import FATAL_TO_A_STREAM, failure, lost_connection
from milo_discovery._subscription import Subscription, WatchState
from milo_discovery._wire import FilterOptions, WatchOptions
from milo_discovery.errors import DiscoveryError, StreamBroken
from milo_discovery.events import Event, Mark
from milo_discovery.model import Cluster, ClusterReport, Kubeconfig, KubeconfigFormat, Listing, ServerInfo

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def open_channel(place: str, credentials: ClientCredentials) -> grpc.Channel:
    """A channel to a gRPC target, with what a neighbour on the same machine needs."""
    shown = credentials.channel_credentials()
    if shown is None:
        return grpc.insecure_channel(place, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(place, shown, options=CHANNEL_OPTIONS)


class SyncDiscoveryClient:
    """As DiscoveryClient, for threads: any of them may use it, and each watch belongs to one."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = timedelta(seconds=10),
        backoff: BackoffPolicy | None = None,
        credentials: ClientCredentials | None = None,
        connect: Callable[[str], grpc.Channel] | None = None,
    ) -> None:
        self._target = target(address)
        self._credentials = ClientCredentials.from_environment() if credentials is None else credentials
        self._credentials.check(self._target)
        self._timeout = timeout
        self._backoff = backoff or BackoffPolicy()
        self._connect = connect or (lambda place: open_channel(place, self._credentials))
        self._lock = threading.Lock()
        self._lanes = Lanes(lambda: self._connect(self._target))
        self._watches: set[SyncWatch] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all watches, and the connection."""
        for watch in tuple(self._watches):
            watch.close()
        with self._lock:
            channel = self._lanes.close()
        if channel is not None:
            channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> SyncWatch:
        """Follow the fleet, or the part of it that the options name. Each watch has a connection of its own."""
        subscription = Subscription(options, self._backoff)
        watch = SyncWatch(
            subscription, lambda: self._connect(self._target), self._watches.discard, self._credentials.metadata
        )
        self._watches.add(watch)
        return watch

    def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """The engaged clusters, ordered by name. Unavailable until the daemon has a complete view."""
        request = pb.ListClustersRequest(filter=_wire.filter_message(options))
        pages = [self._call(lambda stub: stub.ListClusters, request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(self._call(lambda stub: stub.ListClusters, request))
        return _wire.listing(pages)

    def get(self, name: str) -> ClusterReport:
        """What the daemon knows of a name, engaged or not. ClusterNotFound only for one that it has never seen."""
        return _wire.cluster_report(self._call(lambda stub: stub.GetCluster, pb.GetClusterRequest(name=name)))

    def server_info(self) -> ServerInfo:
        """The daemon itself."""
        return _wire.server_info(self._call(lambda stub: stub.GetServerInfo, pb.GetServerInfoRequest()))

    def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """A short-lived kubeconfig for an engaged cluster; with `incarnation`, only for just that one."""
        request = _wire.issue_request(name, ttl, kubeconfig_format, incarnation)
        return _wire.kubeconfig(self._call(lambda stub: stub.IssueKubeconfig, request).kubeconfig)

    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractContextManager[ApiClient]:
        """For `with`: a client of `kubernetes` for the cluster's control plane, with ever fresh credentials.

        Given a Cluster, it is for just that one, and never for a later one of the same name.
        """
        return _api_clients.blocking_client(self, cluster, ttl=ttl, proxy=proxy)

    def _call(
        self,
        method: Callable[[DiscoveryServiceStub], grpc.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
    ) -> _Response:
        metadata = self._credentials.metadata()
        until = None if self._timeout is None else time.monotonic() + self._timeout.total_seconds()
        while True:
            limit = None if until is None else until - time.monotonic()
            with self._lock:
                lane = self._lanes.enter()
            try:
                response = method(DiscoveryServiceStub(lane.channel))(request, timeout=limit, metadata=metadata)
            except grpc.RpcError as error:
                refusal = failure(error)
                with self._lock:
                    if not lost_connection(refusal) or not self._lanes.failed(lane):
                        raise refusal from error
            else:
                with self._lock:
                    self._lanes.answered(lane)
                return response
            finally:
                with self._lock:
                    spent = self._lanes.leave(lane)
                if spent is not None:
                    spent.close()


class SyncWatch(WatchState):
    """Iterate over it: `for event in watch`. As Watch, with one difference: it reads as it is iterated over.

    So `connected`, `source` and `clusters` are those of the last look, and a dead connection is noticed by looking.
    """

    def __init__(
        self,
        subscription: Subscription,
        connect: Callable[[], grpc.Channel],
        on_close: Callable[[SyncWatch], None],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
    ) -> None:
        super().__init__(subscription)
        self._connect = connect
        self._metadata = metadata
        self._on_close = on_close
        self._lock = threading.Lock()
        """Held while `_stream` changes: a watch that is closed in another thread must not open one more."""
        self._stream: _Stream | None = None
        self._closed = threading.Event()

    def synced(self) -> None:
        """Read until the first complete view is in `clusters`; its events wait to be taken."""
        if not self._until(lambda: self.is_synced):
            raise RuntimeError("the watch was closed before it was synced")

    def reconnect(self) -> None:
        """Cut the stream, if there is one, and return once another one resumes from the last revision."""
        self._drop()
        self._subscription.cut()
        if not self._until(lambda: self.connected):
            raise RuntimeError("the watch is closed")

    def close(self) -> None:
        """End the stream. What wasn't taken is dropped, and iterations end. Any thread may do it."""
        if not self._closed.is_set():
            self._closed.set()
            self._on_close(self)
        self._drop()
        self._subscription.cut()

    def feed(self) -> Iterator[Event | Mark]:
        """All events, and between them the marks: Synced, Connected, Disconnected, Refreshed."""
        pending = self._subscription.pending
        while self._until(lambda: bool(pending)) and not self._closed.is_set():
            yield pending.popleft()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        for item in self.feed():
            if isinstance(item, Event):
                return item
        raise StopIteration

    def __enter__(self) -> Self:
        if self._closed.is_set():
            raise RuntimeError("the watch is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _until(self, holds: Callable[[], bool]) -> bool:
        """Read until it holds; False if the watch is closed instead."""
        while not holds():
            try:
                stream = self._open()
                if stream is None:
                    break
                self._take_from(stream)
            except FATAL_TO_A_STREAM:
                self._drop()
                self._subscription.cut()
                raise
            except DiscoveryError as error:
                self._drop()
                if not self._closed.is_set():
                    self._closed.wait(self._subscription.lost(error, time.monotonic()).total_seconds())
        return holds()

    def _open(self) -> _Stream | None:
        """The stream, another one if there is none; None once the watch is closed."""
        with self._lock:
            if self._closed.is_set():
                return None
            if self._stream is None:
                metadata = self._metadata()
                self._stream = _Stream(self._connect(), self._subscription.open(), metadata)
            return self._stream

    def _take_from(self, stream: _Stream) -> None:
        batch = stream.next(self._subscription.silence)
        if batch is None:
            raise self._subscription.fell_silent()
        self._subscription.take(batch, time.monotonic())

    def _drop(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class _Stream:
    """A call, and a thread that reads it: blocking gRPC can wait for the next message, but not for so and so long."""

    def __init__(
        self, channel: grpc.Channel, request: pb.WatchClustersRequest, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self._channel = channel
        self._call = DiscoveryServiceStub(channel).WatchClusters(request, metadata=metadata)
        self._arrived: SimpleQueue[pb.WatchClustersResponse | DiscoveryError] = SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="milo-discovery watch", daemon=True)
        self._reader.start()

    def next(self, limit: timedelta) -> pb.WatchClustersResponse | None:
        """The next batch; None if none comes in time. Raises how the call ended."""
        try:
            arrived = self._arrived.get(timeout=limit.total_seconds())
        except Empty:
            return None
        self._wanted.release()
        if isinstance(arrived, DiscoveryError):
            raise arrived
        return arrived

    def close(self) -> None:
        self._closing = True
        self._call.cancel()
        self._wanted.release()
        self._reader.join()
        self._channel.close()

    def _read(self) -> None:
        try:
            for batch in self._call:
                # One lies ready, and no more is read before it is taken: the daemon merges the rest.
                self._wanted.acquire()
                if self._closing:
                    return
                self._arrived.put(batch)
        except grpc.RpcError as error:
            self._arrived.put(failure(error))
            return
        self._arrived.put(StreamBroken("the daemon ended the stream"))
