"""A watch without its I/O: what to ask for, what to tell, how long to wait. The clients around it do as it says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta

from milo_discovery import _wire
from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._session import Known, Session
from milo_discovery._wire import WatchOptions
from milo_discovery.errors import DiscoveryError, StatusError, StreamBroken
from milo_discovery.events import Connected, Disconnected, Event, Mark
from milo_discovery.model import Cluster, SourceStatus


class Subscription:
    """The session, what it told and nobody took yet, and how the connection stands. Times are seconds of one clock."""

    def __init__(self, options: WatchOptions, backoff: BackoffPolicy) -> None:
        self._request = _wire.watch_request(options)
        self._backoff = Backoff(backoff)
        self._connected_at: float | None = None
        self._told_disconnected = False
        self.session = Session()
        self.silence = _wire.silence(options)
        """A stream that says nothing for so long is dead."""
        self.pending: deque[Event | Mark] = deque()
        """What happened, to be taken from the left."""

    @property
    def connected(self) -> bool:
        return self._connected_at is not None

    def open(self) -> pb.WatchClustersRequest:
        """Another stream begins, with this request."""
        self._connected_at = None
        request = pb.WatchClustersRequest()
        request.CopyFrom(self._request)
        request.resume_revision = self.session.open()
        return request

    def take(self, batch: pb.WatchClustersResponse, now: float) -> None:
        """A batch arrived."""
        told = self.session.receive(batch)
        if self._connected_at is None:
            self._connected_at = now
            self._told_disconnected = False
            self.pending.append(Connected(resumed=batch.synced and not batch.reset))
        self.pending.extend(told)

    def fell_silent(self) -> StreamBroken:
        return StreamBroken(f"no heartbeat for {self.silence.total_seconds():g} s")

    def lost(self, error: DiscoveryError, now: float) -> timedelta:
        """The stream broke. Gives how long to wait before the next."""
        ran = timedelta(seconds=0 if self._connected_at is None else now - self._connected_at)
        self._connected_at = None
        # Once for each loss, however many attempts it takes to come back.
        if not self._told_disconnected:
            self._told_disconnected = True
            self.pending.append(Disconnected(error=error))
        return self._backoff.failed(ran=ran, retry_after=error.retry_after if isinstance(error, StatusError) else None)

    def cut(self) -> None:
        """The stream was ended from this side."""
        self._connected_at = None


class WatchState:
    """What can be asked of a watch at any time."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self.clusters: Mapping[str, Cluster] = _Clusters(subscription.session.view)
        """The view by name, as of now: it may be ahead of the events not yet taken."""

    @property
    def connected(self) -> bool:
        """The daemon answers on the current stream."""
        return self._subscription.connected

    @property
    def source(self) -> SourceStatus | None:
        """The state of the daemon's own view of Milo, as last told; None before the first word."""
        return self._subscription.session.source

    @property
    def revision(self) -> str:
        """Where the stream stands, and where another one would resume."""
        return self._subscription.session.revision

    @property
    def is_synced(self) -> bool:
        """The first complete view has arrived."""
        return self._subscription.session.synced


class _Clusters(Mapping[str, Cluster]):
    def __init__(self, view: Mapping[str, Known]) -> None:
        self._view = view

    def __getitem__(self, name: str) -> Cluster:
        return self._view[name].cluster

    def __iter__(self) -> Iterator[str]:
        return iter(self._view)

    def __len__(self) -> int:
        return len(self._view)
