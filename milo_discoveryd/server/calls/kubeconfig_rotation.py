"""Rotation of one stream's kubeconfigs: one with each ENGAGED event, and a KUBECONFIG event before it expires.

Frames of the log are shared by all subscribers; kubeconfigs are added to copies of them here. No event waits for a
credential: without one the event is sent as it is, and a KUBECONFIG event follows.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs, LeaseHandle
from milo_discoveryd.kubeconfigs.lease import Draw
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.kubeconfigs.minter import JUMP_S
from milo_discoveryd.log.events import EventType, Slice
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.frames import encode_with_kubeconfig
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_kube.credential import CredentialError

BATCH_BYTES = 1 << 20
KUBECONFIG_BYTES = 6 * 1024
"""The approximate size of a kubeconfig. Batches of a snapshot contain fewer clusters, to leave space for them."""
JITTER = 0.2
"""Kubeconfigs with a new credential are spread over this fraction of the old credential's remaining lifetime."""
MAX_JITTER_S = 600.0
"""The maximum spread: a long-lived credential may be replaced because it leaked."""
RETRY_S = 5.0
"""How long to wait after a kubeconfig could not be issued although a credential is held."""
REPLACED_SPREAD_S = 1.0
"""A credential that was replaced at its issuer is sent to all subscribers within this time."""


class _Delivery(msgspec.Struct):
    """The kubeconfig that the subscriber has for a cluster, and when the next one is due."""

    incarnation: int
    place: tuple[str, ...]
    issuer: str
    """The credential issuer that covers the cluster; empty if none does."""
    credential: IssuedCredential | None
    due_at: float
    is_charged: bool = False
    """Whether the next kubeconfig is already counted against the quota."""
    waits_for: LeaseKey | None = None
    """The lease whose next credential the delivery waits for."""


class KubeconfigRotation:
    def __init__(
        self,
        fleet: Fleet,
        kubeconfigs: Kubeconfigs,
        epoch: str,
        *,
        shown: ClusterView,
        ttl_s: float | None,
        call: CallContext,
        clock: Callable[[], float],
        wall: Callable[[], float],
        draw: Draw,
    ) -> None:
        self._fleet = fleet
        self._kubeconfigs = kubeconfigs
        self._epoch = epoch
        self._shown = shown
        self._ttl_s = ttl_s
        self._call = call
        self._to = call.recipient
        self._clock = clock
        self._wall = wall
        self._draw = draw
        self._ahead = wall() - clock()
        """The difference between the wall clock and the steady clock."""
        self._deliveries: dict[str, _Delivery] = {}
        self._paused_until = 0.0
        """The time at which the quota allows the next kubeconfig."""
        self._due: list[tuple[float, str]] = []
        """A heap of (time, name). Entries whose time differs from the delivery's `due_at` are stale and skipped."""
        self._waiting: defaultdict[LeaseKey, set[str]] = defaultdict(set)
        """Names of the deliveries that wait for a lease's next credential."""

    @contextmanager
    def subscribed(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` when a credential arrives that a delivery waits for, or the caller's token was reviewed."""

        def lease_changed(key: LeaseKey, replaced: str) -> None:
            for name in self._waiting.pop(key, ()):
                self._reschedule(name)
            if replaced in self._deliveries:
                # The former credential may be invalid before its expiry.
                self._schedule_within(replaced, REPLACED_SPREAD_S)
            wake()

        unsubscribe = self._kubeconfigs.subscribe(lease_changed)
        self._call.freshness.wake = wake
        try:
            yield
        finally:
            unsubscribe()

    def change_view(self, shown: ClusterView) -> None:
        """Apply a change of the caller's rights. If its terms change, every cluster gets a new kubeconfig."""
        self._shown = shown
        before, self._to = self._to, self._call.recipient
        if self._to is None or (before is not None and before.terms == self._to.terms):
            return
        for name in [*self._deliveries]:
            if (cluster := self._engaged(name)) is not None:
                self._schedule_now(cluster)

    def attach_kubeconfigs(self, changes: Slice) -> bytes:
        """Return the events, with a kubeconfig in each ENGAGED one if a credential is held and there is space."""
        events = [frame.data for frame in changes.frames]
        size = len(changes.data)
        for place, frame in enumerate(changes.frames):
            name = frame.cluster.target.name
            if frame.type is EventType.DISENGAGED:
                self._forget(name)
            elif frame.type is EventType.UPDATED:
                self._follow_update(name)
            else:
                cluster = self._engaged(name)
                if cluster is None or cluster.incarnation != frame.cluster.incarnation:
                    continue  # a later frame disengages it
                self._schedule_now(cluster)
                if size >= BATCH_BYTES - KUBECONFIG_BYTES or not self._call.freshness.is_fresh():
                    continue
                lease = self._lease(cluster)
                kubeconfig = None if lease is None else self._issue(cluster, lease)
                if kubeconfig is not None:
                    events[place] = encode_with_kubeconfig(
                        pb.ClusterEvent.TYPE_ENGAGED, frame.cluster, self._epoch, kubeconfig
                    )
                    size += len(events[place]) - len(frame.data)
        return b"".join(events)

    def catch_up(self) -> None:
        """Schedule kubeconfigs for a subscriber that resumed and has old credentials for its clusters."""
        for cluster in self._fleet.clusters():
            if cluster.target.name not in self._deliveries and self._shown.matches(cluster):
                self._schedule_now(cluster)

    def take_due(self) -> bytes:
        """Return the KUBECONFIG events that are due. Call it after everything else was sent."""
        self._follow_wall_clock()
        events: list[bytes] = []
        size = 0
        while self._due and self.due_in_s <= 0 and size < BATCH_BYTES - KUBECONFIG_BYTES:
            at, name = heapq.heappop(self._due)
            event = self._renewed(name, at)
            if event is not None:
                events.append(event)
                size += len(event)
        return b"".join(events)

    @property
    def due_in_s(self) -> float:
        """Seconds until `take_due` returns an event; infinite while nothing is scheduled."""
        if not self._due:
            return math.inf
        due_in_s = max(self._due[0][0], self._paused_until) - self._clock()
        return due_in_s if due_in_s > 0 or self._call.freshness.is_fresh() else math.inf

    def _renewed(self, name: str, planned_at: float) -> bytes | None:
        delivery, cluster = self._deliveries.get(name), self._engaged(name)
        if delivery is None or cluster is None or delivery.due_at != planned_at:
            return None
        if delivery.incarnation != cluster.incarnation:
            return None
        lease = self._lease(cluster)
        if lease is None or not self._charge(name):
            return None
        held, had = lease.credential(), delivery.credential
        if held is None or (had is not None and held.credential == had.credential):
            self._stop_waiting(name)
            delivery.waits_for = lease.key
            self._waiting[lease.key].add(name)
            return None
        kubeconfig = self._issue(cluster, lease, retry_s=RETRY_S)
        if kubeconfig is None:
            return None
        return encode_with_kubeconfig(pb.ClusterEvent.TYPE_KUBECONFIG, cluster, self._epoch, kubeconfig)

    def _engaged(self, name: str) -> Cluster | None:
        record = self._fleet[name]
        cluster = None if record is None else record.cluster
        return cluster if cluster is not None and self._shown.matches(cluster) else None

    def _follow_update(self, name: str) -> None:
        """Schedule a kubeconfig for a cluster with another endpoint, or whose labels select another issuer."""
        delivery, cluster = self._deliveries.get(name), self._engaged(name)
        if delivery is None or cluster is None:
            return
        if (delivery.place, delivery.issuer) != (cluster.target.place, self._issuer(cluster)):
            self._schedule_now(cluster)

    def _schedule_now(self, cluster: Cluster) -> None:
        self._schedule(cluster, None, self._clock())

    def _follow_wall_clock(self) -> None:
        """Reschedule all deliveries if the wall clock was set or the machine was suspended: they would be late."""
        ahead = self._wall() - self._clock()
        if abs(ahead - self._ahead) > JUMP_S:
            self._ahead = ahead
            for name in [*self._deliveries]:
                self._reschedule(name)

    def _charge(self, name: str) -> bool:
        """Count a kubeconfig against the quota before the request to the issuer, so that this is limited too."""
        delivery = self._deliveries[name]
        if not delivery.is_charged:
            wait_s = self._call.take_kubeconfig()
            delivery.is_charged = not wait_s
            if wait_s:
                self._paused_until = self._clock() + wait_s
                self._postpone(name, wait_s)
        return delivery.is_charged

    def _lease(self, cluster: Cluster) -> LeaseHandle | None:
        return None if self._to is None else self._kubeconfigs.find(cluster, self._ttl_s, self._to.terms)

    def _issuer(self, cluster: Cluster) -> str:
        lease = self._lease(cluster)
        return "" if lease is None else lease.key.issuer

    def _issue(self, cluster: Cluster, lease: LeaseHandle, *, retry_s: float = 0.0) -> pb.Kubeconfig | None:
        incarnation = wire_incarnation(self._epoch, cluster.incarnation)
        if self._to is None or not self._charge(cluster.target.name):
            return None
        try:
            made = lease.issue(incarnation, self._to)
        except UnfitError:
            return None  # until the endpoint or the issuer of the cluster changes
        except CredentialError:
            self._postpone(cluster.target.name, retry_s)
            return None
        assert made.refresh_at is not None
        self._schedule(cluster, made.credential, self._clock() + made.refresh_at - made.issued_at)
        return convert.kubeconfig(made)

    def _reschedule(self, name: str) -> None:
        delivery = self._deliveries.get(name)
        if delivery is None:
            return
        left_s = 0.0 if delivery.credential is None else max(0.0, delivery.credential.expires_at - self._wall())
        self._schedule_within(name, min(JITTER * left_s, MAX_JITTER_S))

    def _schedule_within(self, name: str, most_s: float) -> None:
        self._postpone(name, self._draw() * most_s)

    def _postpone(self, name: str, wait_s: float) -> None:
        delivery = self._deliveries[name]
        delivery.due_at = self._clock() + wait_s
        heapq.heappush(self._due, (delivery.due_at, name))

    def _schedule(self, cluster: Cluster, credential: IssuedCredential | None, at: float) -> None:
        name = cluster.target.name
        self._stop_waiting(name)
        self._deliveries[name] = _Delivery(
            cluster.incarnation, cluster.target.place, self._issuer(cluster), credential, at
        )
        heapq.heappush(self._due, (at, name))

    def _forget(self, name: str) -> None:
        self._stop_waiting(name)
        self._deliveries.pop(name, None)

    def _stop_waiting(self, name: str) -> None:
        delivery = self._deliveries.get(name)
        if delivery is None or delivery.waits_for is None:
            return
        names = self._waiting.get(delivery.waits_for)
        if names is not None:
            names.discard(name)
            if not names:
                del self._waiting[delivery.waits_for]
        delivery.waits_for = None
