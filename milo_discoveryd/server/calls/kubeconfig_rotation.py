"""Sends and renews one stream's kubeconfigs: in ENGAGED events, and in a KUBECONFIG event before each one expires.

Frames of the log are shared by all subscribers; kubeconfigs are added to copies of them here. Once the stream has
begun, no event waits for a credential: if there is none, the event is sent without a kubeconfig, and a KUBECONFIG event
follows.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.daemon_errors import UnfitError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.kubeconfigs.kubeconfigs import Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import LeaseHandle
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.log.events import EventType, Slice
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.delivery_schedule import CHARGED, Delivery, DeliverySchedule
from milo_discoveryd.server.calls.frames import encode_with_kubeconfig
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_kube.credential import CredentialError

BATCH_BYTES = 512 << 10
"""The size up to which kubeconfigs are added to a batch."""
KUBECONFIG_BYTES = 6 * 1024
"""The approximate size of a kubeconfig. Batches of a snapshot have fewer clusters, to leave space for kubeconfigs."""
_CLUSTERS_PER_STEP = 1000
"""How many clusters are examined before other tasks run on the event loop."""
_STEP_S = 0.01
"""How long kubeconfigs are renewed before other tasks run on the event loop: each takes some 0.1 ms."""
RETRY_S = 5.0
"""The delay before a retry if a kubeconfig could not be issued although a credential is held, or not be sent before
what changed."""


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
        schedule: DeliverySchedule,
    ) -> None:
        self._fleet = fleet
        self._kubeconfigs = kubeconfigs
        self._epoch = epoch
        self._shown = shown
        self._ttl_s = ttl_s
        self._call = call
        self._to = call.recipient
        self._schedule = schedule
        self._outdated: list[str] = []
        """Clusters whose kubeconfig has former terms, which `take_due` schedules."""

    @contextmanager
    def subscribed(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` when a lease has a new credential, the caller's token was reviewed, or the deliveries were given
        up."""

        def lease_changed(key: LeaseKey, replaced: str) -> None:
            self._schedule.lease_changed(key, replaced)
            wake()

        unsubscribe = self._kubeconfigs.subscribe(lease_changed)
        self._call.freshness.wake = self._schedule.wake = wake
        try:
            yield
        finally:
            unsubscribe()
            self._schedule.clear()

    def change_view(self, shown: ClusterView) -> None:
        """Apply a change of the caller's rights. If the terms change, every cluster gets a new kubeconfig."""
        self._shown = shown
        before, self._to = self._to, self._call.recipient
        if self._to is None or (before is not None and before.terms == self._to.terms):
            return
        self._outdated = self._schedule.names

    def attach_kubeconfigs(self, changes: Slice) -> bytes:
        """Return the events, with a kubeconfig in each ENGAGED one if it can be issued at once and there is space."""
        events = [frame.data for frame in changes.frames]
        size = len(changes.data)
        for place, frame in enumerate(changes.frames):
            name = frame.cluster.target.name
            if frame.type is EventType.DISENGAGED:
                self._schedule.forget(name)
            elif frame.type is EventType.UPDATED:
                self._follow_update(name)
            else:
                cluster = self._engaged(name)
                if cluster is None or cluster.incarnation != frame.cluster.incarnation:
                    continue  # a later frame disengages this incarnation, or updates it
                delivery = self._schedule_now(cluster)
                is_full = size >= BATCH_BYTES - KUBECONFIG_BYTES
                if is_full or not self._schedule.has_turn(delivery) or not self._call.freshness.is_fresh():
                    continue
                lease = self._lease(cluster)
                kubeconfig = None if lease is None else self._issue(cluster, lease, delivery)
                if kubeconfig is not None:
                    events[place] = encode_with_kubeconfig(
                        pb.ClusterEvent.TYPE_ENGAGED, frame.cluster, self._epoch, kubeconfig
                    )
                    size += len(events[place]) - len(frame.data)
        return b"".join(events)

    def catch_up(self) -> Iterator[None]:
        """Schedule kubeconfigs for a subscriber that resumed and has old credentials for its clusters.

        Yields after every `_CLUSTERS_PER_STEP` clusters.
        """
        clusters = [*self._fleet.clusters()]
        for start in range(0, len(clusters), _CLUSTERS_PER_STEP):
            for cluster in clusters[start : start + _CLUSTERS_PER_STEP]:
                if self._schedule[cluster.target.name] is None and self._shown.matches(cluster):
                    self._schedule_now(cluster)
            yield

    def is_due(self) -> bool:
        """Return whether to call `take_due`.

        Raises ExhaustedError, as does every method that schedules a kubeconfig, if the streams have too many.
        """
        self._schedule.require_room()
        self._schedule.follow_wall_clock()
        return self.due_in_s <= 0

    def take_due(self, revision: int) -> bytes:
        """Return due KUBECONFIG events, at most one batch of them.

        The subscriber has all changes up to `revision`. Those of clusters that changed since are due again later.
        """
        if self.due_in_s <= 0:
            self._schedule_outdated()
        events: list[bytes] = []
        size, until = 0, self._schedule.clock() + _STEP_S
        for _ in range(0 if self._outdated else _CLUSTERS_PER_STEP):
            if self.due_in_s > 0 or size >= BATCH_BYTES - KUBECONFIG_BYTES or self._schedule.clock() >= until:
                break
            delivery = self._schedule.pop_due()
            event = None if delivery is None else self._renewed(delivery, revision)
            if event is not None:
                events.append(event)
                size += len(event)
        return b"".join(events)

    @property
    def due_in_s(self) -> float:
        """Seconds until `take_due` may return an event; infinite while nothing is scheduled, or while a due kubeconfig
        waits for a review of the caller's token."""
        due_in_s = 0.0 if self._outdated else self._schedule.due_in_s
        return due_in_s if due_in_s > 0 or self._call.freshness.is_fresh() else math.inf

    def _schedule_outdated(self) -> None:
        step = self._outdated[-_CLUSTERS_PER_STEP:]
        del self._outdated[-_CLUSTERS_PER_STEP:]
        for name in step:
            if self._schedule[name] is not None and (cluster := self._engaged(name)) is not None:
                self._schedule_now(cluster)

    def _renewed(self, delivery: Delivery, revision: int) -> bytes | None:
        record = self._fleet[delivery.name]
        if record is None or (cluster := record.cluster) is None or cluster.incarnation != delivery.incarnation:
            return None
        if not self._shown.matches(cluster):
            return None
        if record.entry.revision > revision:
            self._schedule.postpone(delivery, RETRY_S)
            return None
        lease = self._lease(cluster)
        if lease is None or not self._charge(delivery, cluster):
            return None
        held, had = lease.credential(), delivery.credential
        if held is None or (had is not None and held.credential == had.credential):
            self._schedule.await_lease(delivery, lease)
            return None
        made = self._issue(cluster, lease, delivery, retry_s=RETRY_S)
        kind = pb.ClusterEvent.TYPE_KUBECONFIG
        return None if made is None else encode_with_kubeconfig(kind, cluster, self._epoch, made)

    def _engaged(self, name: str) -> Cluster | None:
        record = self._fleet[name]
        cluster = None if record is None else record.cluster
        return cluster if cluster is not None and self._shown.matches(cluster) else None

    def _follow_update(self, name: str) -> None:
        """Schedule a new kubeconfig if the cluster's endpoint changed or its labels now select another issuer.

        Also schedule one if none is scheduled, because the cluster was out of view when its ENGAGED event was sent.
        """
        delivery, cluster = self._schedule[name], self._engaged(name)
        if cluster is None:
            return
        described = cluster.target.place, self._issuer(cluster)
        # The lease that it waits for may have ended while the cluster had another endpoint.
        is_waiting = delivery is not None and delivery.waits_for is not None
        is_owed = delivery is not None and delivery.credential is None and delivery.round <= 0
        if delivery is None or is_waiting or is_owed or (delivery.place, delivery.issuer) != described:
            self._schedule_now(cluster)

    def _schedule_now(self, cluster: Cluster) -> Delivery:
        return self._schedule.schedule(cluster, self._issuer(cluster), None, self._schedule.clock())

    def _charge(self, delivery: Delivery, cluster: Cluster) -> bool:
        """Count a kubeconfig against the quota before a credential is requested, so that requests are limited too."""
        if delivery.round != CHARGED:
            wait_s = math.inf
            if self._schedule.has_turn(delivery):
                wait_s = self._call.take_kubeconfig(is_renewal=delivery.is_renewal)
            if not wait_s:
                delivery.round = CHARGED
            else:
                target = cluster.target
                self._schedule.await_turn(delivery, (target.source, target.tenant or target.name), wait_s)
        return delivery.round == CHARGED

    def _lease(self, cluster: Cluster) -> LeaseHandle | None:
        if self._to is None:
            return None
        return self._kubeconfigs.find(cluster, self._ttl_s, self._to.terms, self._call.identity)

    def _issuer(self, cluster: Cluster) -> str:
        lease = self._lease(cluster)
        return "" if lease is None else lease.key.issuer

    def _issue(
        self, cluster: Cluster, lease: LeaseHandle, delivery: Delivery, *, retry_s: float = 0.0
    ) -> pb.Kubeconfig | None:
        if self._to is None or not self._charge(delivery, cluster):
            return None
        try:
            made = lease.issue(wire_incarnation(self._epoch, cluster.incarnation), self._to)
        except UnfitError:
            return None  # not rescheduled: fails again unless the endpoint, the issuer or the terms change
        except CredentialError:
            self._schedule.postpone(delivery, retry_s)
            return None
        assert made.refresh_at is not None
        due_at = self._schedule.clock() + made.refresh_at - made.issued_at
        self._schedule.schedule(cluster, self._issuer(cluster), made.credential, due_at)
        return convert.kubeconfig(made)
