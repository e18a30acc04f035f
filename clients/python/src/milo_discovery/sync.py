"""The blocking client, for programs without asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack

import grpc

from milo_discovery import _calls
from milo_discovery._api_clients import ThreadApiClients
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._calls import ResultT, UnaryCall, UnaryRequest
from milo_discovery._channel import open_channel
from milo_discovery._client_base import DEFAULT_TIMEOUT, ClientBase, time_left
from milo_discovery._client_credentials import ClientCredentials
from milo_discovery._convert import FilterOptions, WatchOptions
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._grpc_status import NOT_RETRYABLE, status_error_of_call
from milo_discovery._ownership import boottime
from milo_discovery._subscription import Subscription, WatchState
from milo_discovery._sync_ownership import OwnershipKeeper
from milo_discovery.errors import DiscoveryError, StatusError, StreamBroken
from milo_discovery.events import Event, StreamNotice
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    Kubeconfig,
    KubeconfigFormat,
    Listing,
    ServerInfo,
)

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


_OWNERSHIP_CHECK_S = 0.2
"""Interval at which a watch checks whether a daemon that lost its ownership owns its clusters again."""


class SyncRelease(Protocol):
    """The call that releases a draining cluster."""

    def __call__(self, cluster: Cluster, *, subscriber: str) -> None: ...


class SyncDiscoveryClient(ClientBase[grpc.Channel, "SyncWatch"]):
    """The blocking twin of DiscoveryClient. It is thread-safe; each watch is iterated over by one thread."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        backoff: BackoffPolicy | None = None,
        credentials: ClientCredentials | None = None,
        connect: Callable[[str], grpc.Channel] | None = None,
    ) -> None:
        super().__init__(
            address,
            timeout=timeout,
            backoff=backoff,
            credentials=credentials,
            connect=connect,
            open_channel=open_channel,
        )
        self._api_clients = ThreadApiClients(self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all watches and connections."""
        for watch in tuple(self._watches):
            watch.close()
        channel = self._shared_channel.close()
        if channel is not None:
            channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> SyncWatch:
        """Watch the clusters that the options select; all by default. Each watch has its own connection."""
        watch = SyncWatch(
            Subscription(options, self._backoff),
            self._connect,
            self._watches.discard,
            self._credentials.metadata,
            self.release,
        )
        self._watches.add(watch)
        return watch

    def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """Return the engaged clusters, ordered by name. Raises Unavailable until the daemon is synced."""
        return self._run(_calls.list_clusters(options))

    def get(self, name: str) -> ClusterReport:
        """Return what the daemon knows of a name, engaged or not. Raises ClusterNotFound if it never saw the name."""
        return self._run(_calls.get_cluster(name))

    def server_info(self) -> ServerInfo:
        """Return the daemon's version, state and limits."""
        return self._run(_calls.get_server_info())

    def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """Issue a short-lived kubeconfig for an engaged cluster; with `incarnation`, only for that incarnation."""
        return self._run(
            _calls.issue_kubeconfig(name, ttl=ttl, kubeconfig_format=kubeconfig_format, incarnation=incarnation)
        )

    def release(self, cluster: Cluster, *, subscriber: str) -> None:
        """Confirm that a subscriber has ended its work on a draining cluster. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining, or has another incarnation now.
        """
        self._run(_calls.release_cluster(cluster.name, cluster.incarnation, subscriber))

    def end_subscription(self, subscriber: str) -> None:
        """Notify the daemon that a subscriber has ended all its work, so that no draining cluster waits for it."""
        self._run(_calls.end_subscription(subscriber))

    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractContextManager[ApiClient]:
        """Return a context manager: a `kubernetes` client for the cluster, with renewed credentials.

        Given a Cluster rather than a name, it never works in a later cluster of the same name.
        """
        return self._api_clients.open(cluster, ttl=ttl, proxy=proxy)

    def _run(self, call: UnaryCall[ResultT]) -> ResultT:
        try:
            request = next(call)
            while True:
                try:
                    response = self._send(request)
                except StatusError as error:
                    request = call.throw(error)
                else:
                    request = call.send(response)
        except StopIteration as returned:
            result: ResultT = returned.value
            return result

    def _send(self, request: UnaryRequest) -> Any:
        metadata = self._credentials.metadata()
        deadline = self._deadline()
        while True:
            connection = self._shared_channel.acquire()
            method = getattr(DiscoveryServiceStub(connection.channel), request.method)
            try:
                response = method(request.message, timeout=time_left(deadline), metadata=metadata)
            except grpc.RpcError as error:
                failure = status_error_of_call(error)
                if not self._shared_channel.should_retry(connection, failure):
                    raise failure from error
            else:
                connection.has_succeeded = True
                return response
            finally:
                unused = self._shared_channel.release(connection)
                if unused is not None:
                    unused.close()


class SyncWatch(WatchState):
    """The blocking twin of Watch: `for event in watch`. It reads only while it is iterated over.

    So `connected`, `source` and `clusters` are as of the last iteration, and only an iteration detects a dead
    connection or the end of a sharded daemon's ownership: work that takes longer than a few seconds belongs in a thread
    of its own, or checks `is_owner` before it writes.
    """

    def __init__(
        self,
        subscription: Subscription,
        connect: Callable[[], grpc.Channel],
        on_close: Callable[[SyncWatch], None],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
        release: SyncRelease,
    ) -> None:
        super().__init__(subscription)
        self._connect = connect
        self._metadata = metadata
        self._release = release
        self._on_close = on_close
        self._lock = threading.Lock()
        """Held while `_stream` changes: after close() in another thread, no stream may be opened."""
        self._stream: _StreamReader | None = None
        self._keeper = OwnershipKeeper(subscription.ownership, connect, metadata)
        self._closed = threading.Event()

    def synced(self) -> None:
        """Read until `clusters` holds the first complete view; its events are kept for the iteration."""
        if not self._read_until(lambda: self.is_synced):
            raise RuntimeError("the watch was closed before it was synced")

    def reconnect(self) -> None:
        """Close the stream, and return once a new one has resumed from the last revision."""
        self._drop_stream()
        self._subscription.stream_closed()
        if not self._read_until(lambda: self.connected):
            raise RuntimeError("the watch is closed")

    def release(self, cluster: Cluster) -> None:
        """Confirm that the work on a draining cluster has ended, with `confirm_releases`. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining, or has another incarnation now. Thread-safe.
        """
        self._release(cluster, subscriber=self.subscriber)

    def close(self) -> None:
        """Close the stream, drop pending events and end the iteration. May be called from any thread."""
        if not self._closed.is_set():
            self._closed.set()
            self._on_close(self)
        self._keeper.close()
        self._drop_stream()
        self._subscription.stream_closed()

    def feed(self) -> Iterator[Event | StreamNotice]:
        """Iterate over events and stream notices: Synced, Connected, Disconnected, Refreshed."""
        pending = self._subscription.pending
        while self._read_until(lambda: bool(pending)) and not self._closed.is_set():
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

    def _read_until(self, predicate: Callable[[], bool]) -> bool:
        """Read until the predicate is true; return False if the watch is closed first."""
        while not self._closed.is_set():
            if not self.is_owner:
                self._drop_stream()
                self._subscription.stream_closed()
                self._subscription.ownership_ended()
            if predicate():
                break
            if self.is_owner:
                self._read()
            else:
                self._closed.wait(_OWNERSHIP_CHECK_S)
        return predicate()

    def _read(self) -> None:
        """Apply the next batch, or record that the stream broke and wait before the next one."""
        try:
            stream = self._open_stream()
            batch = None if stream is None else self._next_batch(stream)
            if batch is None:
                return
            if batch.sharded:
                self._keeper.begin()
            if batch.events and not self.is_owner:
                raise StreamBroken("the daemon does not own its clusters at present")
            self._subscription.received(batch, time.monotonic())
        except NOT_RETRYABLE:
            self._drop_stream()
            self._subscription.stream_closed()
            raise
        except DiscoveryError as error:
            self._drop_stream()
            if not self._closed.is_set():
                delay = self._subscription.stream_lost(error, time.monotonic())
                self._closed.wait(min(delay.total_seconds(), self._owned_s()))

    def _next_batch(self, stream: _StreamReader) -> pb.WatchClustersResponse | None:
        """Return the next batch; None if the ownership ends first. Raises StreamBroken if nothing arrives in time."""
        limit = self._subscription.silence_limit.total_seconds()
        silent_at = time.monotonic() + limit
        while (left := silent_at - time.monotonic()) > 0:
            batch = stream.next_batch(min(left, self._owned_s()))
            if batch is not None or not self.is_owner:
                return batch
        raise StreamBroken(f"no heartbeat for {limit:g} s")

    def _owned_s(self) -> float:
        return max(0.0, self._subscription.ownership.until - boottime())

    def _open_stream(self) -> _StreamReader | None:
        """Return the stream, opened if there is none; None once the watch is closed."""
        with self._lock:
            if self._closed.is_set():
                return None
            if self._stream is None:
                metadata = self._metadata()
                self._stream = _StreamReader(self._connect(), self._subscription.next_request(), metadata)
            return self._stream

    def _drop_stream(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class _StreamReader:
    """A streaming call read by its own thread, because blocking gRPC reads have no timeout per message."""

    def __init__(
        self, channel: grpc.Channel, request: pb.WatchClustersRequest, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self._channel = channel
        self._call = DiscoveryServiceStub(channel).WatchClusters(request, metadata=metadata)
        self._arrived: SimpleQueue[pb.WatchClustersResponse | DiscoveryError] = SimpleQueue()
        self._read_ahead = threading.Semaphore(1)
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="milo-discovery watch", daemon=True)
        self._thread.start()

    def next_batch(self, timeout_s: float) -> pb.WatchClustersResponse | None:
        """Return the next batch, or None if nothing arrives in time. Raises the error with which the call ended."""
        try:
            arrived = self._arrived.get(timeout=timeout_s)
        except Empty:
            return None
        self._read_ahead.release()
        if isinstance(arrived, DiscoveryError):
            raise arrived
        return arrived

    def close(self) -> None:
        self._closing = True
        self._call.cancel()
        self._read_ahead.release()
        self._thread.join()
        self._channel.close()

    def _read(self) -> None:
        ended: DiscoveryError = StreamBroken("the stream has ended")
        try:
            for batch in self._call:
                # One batch is read ahead. Beyond that the daemon coalesces what it would have sent.
                self._read_ahead.acquire()
                if self._closing:
                    break
                self._arrived.put(batch)
        except grpc.RpcError as error:
            ended = status_error_of_call(error)
        # Always, also after close(): another thread may be waiting in next_batch().
        self._arrived.put(ended)
