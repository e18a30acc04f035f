"""The kubeconfigs of one stream: one with each ENGAGED, and the next in a KUBECONFIG event before it runs out.

The log's frames are shared by all subscribers and stay as they are. What is one subscriber's own is put beside them
here. No event waits for a credential: where none is at hand, the event goes without, and a KUBECONFIG event follows.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import CredentialError
from milo_discoveryd.kubeconfigs.issuer import Issuer, LeaseHandle
from milo_discoveryd.kubeconfigs.lease import Draw
from milo_discoveryd.kubeconfigs.minter import JUMP_S, LeaseKey
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.events import Frames
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.server.calls import convert
from milo_discoveryd.server.calls.access import CallContext
from milo_discoveryd.server.calls.frames import decode_frame, encode_frame

BATCH_BYTES = 1 << 20
KUBECONFIG_BYTES = 6 * 1024
"""About what a kubeconfig takes: so many fewer clusters are put into a batch of a snapshot."""
SPREAD = 0.2
"""Within this part of what is left of their old credential, clusters that waited for a new one are given it."""


class _Given(msgspec.Struct):
    """What the subscriber has of a cluster that it was told of."""

    incarnation: int
    minted: IssuedCredential | None
    due_at: float
    """When to look for the next."""
    is_paid: bool = False
    """The next is counted already, among those that the subscriber may have in a minute."""


class KubeconfigRotation:
    def __init__(
        self,
        fleet: Fleet,
        issuer: Issuer,
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
        self._issuer = issuer
        self._epoch = epoch
        self._shown = shown
        self._ttl_s = ttl_s
        self._call = call
        self._to = call.recipient
        self._clock = clock
        self._wall = wall
        self._draw = draw
        self._ahead = wall() - clock()
        """By so much the wall clock is before the steady one."""
        self._given: dict[str, _Given] = {}
        self._paused_until = 0.0
        """By when there is another one among those that the subscriber may have in a minute."""
        self._due: list[tuple[float, str]] = []
        """Soonest first. What was planned otherwise since is passed over when its time comes."""
        self._waiting: defaultdict[LeaseKey, set[str]] = defaultdict(set)
        """Whose time has come, and who wait for something new on a lease."""

    @contextmanager
    def following(self, ring: Callable[[], None]) -> Iterator[None]:
        """Rings when a credential came that somebody here waits for."""

        def told(key: LeaseKey) -> None:
            for name in self._waiting.pop(key, ()):
                self._look_again(name)
            ring()

        unfollow = self._issuer.subscribe(told)
        try:
            yield
        finally:
            unfollow()

    def turn(self, shown: ClusterView) -> None:
        """The subscriber's rights are others from here on. What no longer comes as it did comes anew."""
        self._shown = shown
        before, self._to = self._to, self._call.recipient
        if self._to is None or (before is not None and before.terms == self._to.terms):
            return
        for name in [*self._given]:
            if (cluster := self._engaged(name)) is not None:
                self._owe(cluster)

    def attach_kubeconfigs(self, frames: Iterable[bytes]) -> Frames:
        """The frames, those of ENGAGED events with a kubeconfig, as far as there is one and it fits in."""
        dressed = list(frames)
        size = sum(map(len, dressed))
        for place, frame in enumerate(dressed):
            event = decode_frame(frame)
            if event.type == pb.ClusterEvent.TYPE_DISENGAGED:
                self._given.pop(event.cluster.name, None)
            elif event.type == pb.ClusterEvent.TYPE_ENGAGED:
                cluster = self._engaged(event.cluster.name)
                if (
                    cluster is None
                    or convert.incarnation(self._epoch, cluster.incarnation) != event.cluster.incarnation
                ):
                    continue  # it has ended since, which is told in its turn
                self._owe(cluster)
                if size >= BATCH_BYTES - KUBECONFIG_BYTES:
                    continue
                lease = self._lease(cluster)
                kubeconfig = None if lease is None else self._give(cluster, lease)
                if kubeconfig is not None:
                    event.kubeconfig.CopyFrom(kubeconfig)
                    dressed[place] = encode_frame(event)
                    size += len(dressed[place]) - len(frame)
        return Frames(dressed)

    def catch_up(self) -> None:
        """The subscriber has come back, and knows the clusters; what it has of credentials may be over."""
        for cluster in self._fleet.registry.clusters():
            if cluster.target.name not in self._given and self._shown.matches(cluster):
                self._owe(cluster)

    def take(self) -> Frames:
        """KUBECONFIG events that are due. To be called when the subscriber was told all else."""
        self._follow_wall_clock()
        frames: list[bytes] = []
        size = 0
        while self._due and self.due_in_s <= 0 and size < BATCH_BYTES - KUBECONFIG_BYTES:
            at, name = heapq.heappop(self._due)
            frame = self._renewed(name, at)
            if frame is not None:
                frames.append(frame)
                size += len(frame)
        return Frames(frames)

    @property
    def due_in_s(self) -> float:
        return max(self._due[0][0], self._paused_until) - self._clock() if self._due else math.inf

    def _renewed(self, name: str, planned_at: float) -> bytes | None:
        given, cluster = self._given.get(name), self._engaged(name)
        if given is None or cluster is None or given.due_at != planned_at or given.incarnation != cluster.incarnation:
            return None
        lease = self._lease(cluster)
        if lease is None or not self._pay(name):
            return None
        minted = lease.credential()
        if minted is None or (given.minted is not None and minted.credential == given.minted.credential):
            self._waiting[lease.key].add(name)
            return None
        kubeconfig = self._give(cluster, lease)
        if kubeconfig is None:
            return None
        return encode_frame(
            pb.ClusterEvent(
                type=pb.ClusterEvent.TYPE_KUBECONFIG,
                cluster=convert.cluster(cluster, self._epoch),
                kubeconfig=kubeconfig,
            )
        )

    def _engaged(self, name: str) -> Cluster | None:
        """As the subscriber may see it."""
        record = self._fleet.registry[name]
        cluster = None if record is None else record.cluster
        return cluster if cluster is not None and self._shown.matches(cluster) else None

    def _owe(self, cluster: Cluster) -> None:
        self._plan(cluster, None, self._clock())

    def _follow_wall_clock(self) -> None:
        """Where it was set, or the machine has slept, what was planned by the steady clock may come too late."""
        ahead = self._wall() - self._clock()
        if abs(ahead - self._ahead) > JUMP_S:
            self._ahead = ahead
            for name in [*self._given]:
                self._look_again(name)

    def _pay(self, name: str) -> bool:
        """Counted before it is asked for, so that asking costs the source no more than handing out does."""
        given = self._given[name]
        if not given.is_paid:
            wait_s = self._call.take_kubeconfig()
            given.is_paid = not wait_s
            if wait_s:
                self._paused_until = given.due_at = self._clock() + wait_s
                heapq.heappush(self._due, (given.due_at, name))
        return given.is_paid

    def _lease(self, cluster: Cluster) -> LeaseHandle | None:
        return None if self._to is None else self._issuer.find(cluster, self._ttl_s, self._to.terms)

    def _give(self, cluster: Cluster, lease: LeaseHandle) -> pb.Kubeconfig | None:
        incarnation = convert.incarnation(self._epoch, cluster.incarnation)
        if self._to is None or not self._pay(cluster.target.name):
            return None
        try:
            made = lease.issue(incarnation, self._to)
        except CredentialError:
            return None  # the issuer has told of it, and the subscriber is given one when there is one
        assert made.refresh_at is not None
        self._plan(cluster, made.credential, self._clock() + made.refresh_at - made.issued_at)
        return convert.kubeconfig(made)

    def _look_again(self, name: str) -> None:
        given = self._given.get(name)
        if given is None:
            return
        left = 0.0 if given.minted is None else max(0.0, given.minted.expires_at - self._wall())
        given.due_at = self._clock() + self._draw() * SPREAD * left
        heapq.heappush(self._due, (given.due_at, name))

    def _plan(self, cluster: Cluster, minted: IssuedCredential | None, at: float) -> None:
        self._given[cluster.target.name] = _Given(cluster.incarnation, minted, at)
        heapq.heappush(self._due, (at, cluster.target.name))
