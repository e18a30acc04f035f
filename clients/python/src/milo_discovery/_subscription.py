"""A watch without I/O: the next request, the pending events, the reconnect delay."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from milo_discovery import _convert
from milo_discovery._ownership import OwnershipDeadline, boottime
from milo_discovery._session import KnownCluster, Session
from milo_discovery.errors import DiscoveryError, StatusError, StreamBroken, UnusableKubeconfig
from milo_discovery.events import Connected, Disconnected, Event, StreamNotice
from milo_discovery.kubeconfig_access import read_access
from milo_discovery.model import Cluster, DisengageReason, EventType, SourceFreshness, SourceState, SourceStatus
from milo_discovery.options import WatchOptions
from milo_discovery.v1 import discovery_pb2 as pb
from milo_kube.backoff import BackoffPolicy, StreamBackoff

log = logging.getLogger("milo_discovery.watch")


class StreamSubscription:
    """The session, the pending events, and the connection state. Times are seconds of one monotonic clock."""

    def __init__(self, options: WatchOptions, backoff: BackoffPolicy) -> None:
        self._request = _convert.watch_request(options)
        self._backoff = StreamBackoff(backoff)
        self._connected_at: float | None = None
        self._heard_at: datetime | None = None
        self._disconnect_reported = False
        self.logs_stream = True
        """Whether the loss of the stream is logged: False if a user of `feed` is told of it instead."""
        self.session = Session()
        self.subscriber = self._request.subscriber
        """The name under which clusters are released; empty if releases are not confirmed."""
        self.ownership = OwnershipDeadline()
        self.silence_limit = _convert.silence_limit(options)
        """Heartbeat timeout: a stream without a message for this long is dead."""
        self.pending: deque[Event | StreamNotice] = deque()
        """Events and notices that the user has not taken yet, oldest first."""
        self.loss: Event | None = None
        """The latest event that reports a loss of the ownership."""

    @property
    def connected(self) -> bool:
        return self._connected_at is not None

    @property
    def holder(self) -> str:
        """The name under which clusters are held, and are released if they move; empty if there are none.

        Read by another thread: it is not empty from before a cluster is engaged until after all are disengaged.
        """
        return self.subscriber if self.session.view else ""

    def next_request(self) -> pb.WatchClustersRequest:
        """Start a new stream, and return its request."""
        self._connected_at = None
        request = pb.WatchClustersRequest()
        request.CopyFrom(self._request)
        request.resume_revision = self.session.open()
        return request

    def received(self, batch: pb.WatchClustersResponse, now: float) -> None:
        """Apply a batch. Raises StreamBroken if it is invalid, as when a batch before it is missing."""
        try:
            changes = self.session.receive(batch)
        except StreamBroken:
            raise
        except Exception as error:  # what one cluster contains must not end the watch of all others
            log.exception("a batch was not understood")
            raise StreamBroken(f"a batch was not understood: {error!r}") from error
        self._heard_at = datetime.now(UTC)
        if self._connected_at is None:
            self._connected_at = now
            if self._disconnect_reported and self.logs_stream:
                log.info("connected to the daemon")
            self._disconnect_reported = False
            self.pending.append(Connected(resumed=batch.synced and not batch.reset))
        self._report(item for change in changes if (item := _usable(change)) is not None)

    def ownership_ended(self) -> None:
        """Disengage all clusters, because the daemon did not confirm in time that it still owns them."""
        self._report(self.session.lose_ownership())

    def _report(self, items: Iterable[Event | StreamNotice]) -> None:
        for item in items:
            self.pending.append(item)
            if isinstance(item, Event) and item.reason is DisengageReason.OWNERSHIP_LOST:
                self.loss = item

    def stream_lost(self, error: DiscoveryError, now: float) -> timedelta:
        """Record that the stream broke; return how long to wait before the next one."""
        ran = timedelta(seconds=0 if self._connected_at is None else now - self._connected_at)
        self._connected_at = None
        # Reported once per loss, however many attempts the reconnect takes.
        if not self._disconnect_reported:
            self._disconnect_reported = True
            self.pending.append(Disconnected(error=error, heard_at=self._heard_at))
            if self.logs_stream:
                log.warning("no stream from the daemon; retrying: %s", error)
        return self._backoff.failed(ran=ran, retry_after=error.retry_after if isinstance(error, StatusError) else None)

    def stream_closed(self) -> None:
        """Record that the client closed the stream."""
        self._connected_at = None


def _usable(item: Event | StreamNotice) -> Event | StreamNotice | None:
    """Remove a kubeconfig that `read_access` refuses; return None if the event contains nothing else."""
    if isinstance(item, Event) and item.kubeconfig is not None:
        try:
            read_access(item.kubeconfig.kubeconfig)
        except Exception as error:
            name, is_expected = item.cluster.name, isinstance(error, UnusableKubeconfig)
            log.error("kubeconfig of cluster %r refused: %s", name, error, exc_info=not is_expected)  # noqa: TRY400
            return None if item.type is EventType.KUBECONFIG else replace(item, kubeconfig=None)
    return item


class WatchState:
    """The state of a watch, readable at any time."""

    def __init__(self, subscription: StreamSubscription) -> None:
        self._subscription = subscription
        self._taken_loss: Event | None = None
        """The latest loss of the ownership that the user has taken."""
        self.clusters: Mapping[str, Cluster] = _ClusterView(subscription.session.view)
        """The current view by name. It may already include events that have not been iterated over."""

    @property
    def subscriber(self) -> str:
        """The name under which the watch releases clusters. Empty without `confirm_releases`."""
        return self._subscription.subscriber

    @property
    def connected(self) -> bool:
        """Whether the daemon has sent a message on the current stream."""
        return self._subscription.connected

    @property
    def is_owner(self) -> bool:
        """Whether the daemon owns its clusters. Only a sharded daemon can lose its ownership. After a loss, it is false
        until all clusters were reported as disengaged, even if the daemon owns clusters again."""
        return self._is_held and self._subscription.loss is self._taken_loss

    @property
    def _is_held(self) -> bool:
        return self._subscription.ownership.is_held(boottime())

    def _taking(self, item: Event | StreamNotice) -> Event | StreamNotice:
        """Record that the user takes an item, and return it."""
        if item is self._subscription.loss:
            self._taken_loss = self._subscription.loss
        return item

    @property
    def source(self) -> SourceStatus | None:
        """The freshness of the daemon's view of Milo, as last received; None before the first batch."""
        return self._subscription.session.source

    @property
    def sources(self) -> Mapping[str, SourceStatus]:
        """The freshness of each source by name, as last received; empty if the daemon's only source has no name."""
        return self._subscription.session.sources

    @property
    def freshness(self) -> SourceFreshness:
        """The freshness of the daemon's view of all of its sources, as last received."""
        session = self._subscription.session
        sources = [*session.sources.values()] or ([session.source] if session.source else [])
        return SourceFreshness(
            sources=tuple(
                one if one.state is SourceState.STALE else replace(one, last_contact=None) for one in sources
            ),
            pending_sources=session.pending_sources,
        )

    @property
    def revision(self) -> str:
        """The revision that the next stream would resume from."""
        return self._subscription.session.revision

    @property
    def is_synced(self) -> bool:
        """Whether `clusters` holds a complete view: not before the first has arrived, and not after OWNERSHIP_LOST."""
        return self._subscription.session.synced


class _ClusterView(Mapping[str, Cluster]):
    """The clusters of a session. Iteration is over a copy, so threads may iterate while the event loop changes them."""

    def __init__(self, view: MappingProxyType[str, KnownCluster]) -> None:
        self._view = view

    def __getitem__(self, name: str) -> Cluster:
        return self._view[name].cluster

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._view))

    def __len__(self) -> int:
        return len(self._view)

    def items(self) -> ItemsView[str, Cluster]:
        return {name: known.cluster for name, known in self._view.copy().items()}.items()

    def values(self) -> ValuesView[Cluster]:
        return dict(self.items()).values()
