"""The blocking client, for programs without asyncio: the asyncio client on an event loop in a background thread."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

from milo_discovery._subscription import WatchState
from milo_discovery.client import DEFAULT_TIMEOUT, DiscoveryClient
from milo_discovery.client_credentials import ClientCredentials
from milo_discovery.errors import CallFailed
from milo_discovery.events import Event, StreamNotice
from milo_discovery.model import Cluster
from milo_discovery.options import WatchOptions
from milo_discovery.watch import Watch
from milo_kube.background_loop import BackgroundLoop
from milo_kube.backoff import BackoffPolicy
from milo_kube.termination import interrupt_on_sigterm

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def _blocking(
    method: Callable[Concatenate[DiscoveryClient, P], Coroutine[Any, Any, ResultT]],
) -> Callable[Concatenate[SyncDiscoveryClient, P], ResultT]:
    @functools.wraps(method)
    def call(client: SyncDiscoveryClient, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return client._loop.run(method(client._client, *args, **kwargs))

    return call


class SyncDiscoveryClient:
    """The blocking counterpart of DiscoveryClient. It is thread-safe, but only one thread may iterate over a watch.

    Its background thread starts with the first call, so the process may fork before that.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        backoff: BackoffPolicy | None = None,
        credentials: ClientCredentials | None = None,
        connect: Callable[[str], grpc.aio.Channel] | None = None,
    ) -> None:
        self._client = DiscoveryClient(
            address, timeout=timeout, backoff=backoff, credentials=credentials, connect=connect
        )
        self._loop = BackgroundLoop(lambda: CallFailed("the client was closed", code="CANCELLED"))
        weakref.finalize(self, self._loop.stop)

    def __enter__(self) -> Self:
        interrupt_on_sigterm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all watches and channels. A closed client makes no further calls."""
        self._loop.close(self._client.close())

    def watch(self, **options: Unpack[WatchOptions]) -> SyncWatch:
        """Watch the clusters that the options select; all by default. Each watch has its own connection."""
        return SyncWatch(self._client.watch(**options), self)

    list = _blocking(DiscoveryClient.list)
    get = _blocking(DiscoveryClient.get)
    server_info = _blocking(DiscoveryClient.server_info)
    issue_kubeconfig = _blocking(DiscoveryClient.issue_kubeconfig)
    release = _blocking(DiscoveryClient.release)
    end_subscription = _blocking(DiscoveryClient.end_subscription)

    @contextmanager
    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> Iterator[ApiClient]:
        """Return a context manager that yields a `kubernetes` client for the cluster, with renewed credentials.

        Given a Cluster rather than a name, the client sends no requests to a later cluster of the same name.
        """
        opened = self._client.sync_api_client(cluster, ttl=ttl, proxy=proxy)
        api = self._loop.run(opened.__aenter__())
        try:
            yield api
        finally:
            self._loop.run(opened.__aexit__(None, None, None))


class SyncWatch(WatchState):
    """The blocking counterpart of Watch: `for event in watch`.

    It reads in the background once it is first used. Events are delivered only by the iteration, so run work that takes
    longer than a few seconds in another thread, or check `is_owner` before it writes.
    """

    def __init__(self, watch: Watch, client: SyncDiscoveryClient) -> None:
        super().__init__(watch._subscription)
        self._watch = watch
        self._client = client
        self._taken: deque[Event | StreamNotice] = deque()

    def synced(self) -> None:
        """Wait until `clusters` holds the first complete view, even if its events were not iterated over."""
        self._run(self._watch.synced())

    def reconnect(self) -> None:
        """Close the stream, and return once a new one is connected. It resumes from the last revision if possible."""
        self._run(self._watch.reconnect())

    def release(self, cluster: Cluster) -> None:
        """Confirm, with `confirm_releases`, that the work on a draining cluster has ended. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining or has another incarnation now, or the subscriber is
        unknown. Thread-safe.
        """
        self._run(self._watch.release(cluster))

    def close(self) -> None:
        """Close the stream, drop pending events and end the iteration. May be called from any thread."""
        with suppress(CallFailed):  # if the client is closed, so is the watch
            self._run(self._watch.close())

    def feed(self) -> Iterator[Event | StreamNotice]:
        """Iterate over events and stream notices: Synced, Connected, Disconnected, Refreshed."""
        self._subscription.logs_stream = False
        return self._items()

    def _items(self) -> Iterator[Event | StreamNotice]:
        while not self._watch.closed:
            if self._taken:
                yield self._taking(self._taken.popleft())
                continue
            try:
                self._taken.extend(self._run(self._watch.take()))
            except CallFailed:  # the client was closed
                return

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        for item in self._items():
            if isinstance(item, Event):
                return item
        raise StopIteration

    def __enter__(self) -> Self:
        if self._watch.closed:
            raise RuntimeError("the watch is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self._client._loop.run(coroutine)
