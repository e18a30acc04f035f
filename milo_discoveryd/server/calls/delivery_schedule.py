"""The schedule of one stream's kubeconfigs: when the next one of each cluster is due."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.kubeconfigs.credential_lease import JUMP_S, Draw
from milo_discoveryd.kubeconfigs.lease_handle import LeaseHandle
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.kubeconfigs.minter import LeaseWait
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls.grpc_errors import ExhaustedError

JITTER = 0.2
"""Kubeconfigs with a new credential are spread over this fraction of the old credential's remaining lifetime."""
MAX_JITTER_S = 600.0
"""The maximum spread. It is short, because a long-lived credential may be replaced after it leaked."""
REPLACED_SPREAD_S = 1.0
"""If a credential is replaced at its issuer, the kubeconfigs with the new one are spread over this time."""

DELIVERY_BYTES = 224
"""The memory that a delivery takes, with its entries in the tables of its schedule, in bytes."""
CHARGED = -1
_STALE_KEPT = 100
_STALE_PART = 4
"""Entries of replaced deliveries are dropped when there are more than a fourth of the others."""
_DROPPED_PER_STEP = 1000
_RETRY_S = 5.0
_TENANT_KEYS = 1024
"""Limits the memory of their rounds, which `DELIVERY_BYTES` has no part for."""


class Delivery(msgspec.Struct, gc=False):
    """The kubeconfig that the subscriber has for a cluster, and when the next one is due.

    All streams together have very many, which the garbage collector would examine at once.
    """

    name: str
    incarnation: int
    place: tuple[str, ...]
    issuer: str
    """The credential issuer that covers the cluster; empty if none does."""
    credential: IssuedCredential | None
    due_at: float
    is_renewal: bool = False
    """Whether the subscriber has received a kubeconfig of this engagement."""
    round: int = 0
    """The round in which it may be counted against the quota, which it waits for; 0 if it does not, and `CHARGED` if
    the next kubeconfig is already counted."""
    waits_for: LeaseWait | None = None
    """The wait for the next credential of its lease."""

    def __lt__(self, other: "Delivery") -> bool:
        is_of_another_round = self.round != other.round and self.round > 0
        return self.round < other.round if is_of_another_round else self.due_at < other.due_at


class QuotaQueue:
    """The deliveries that wait for the quota. A round has one of each tenant: one tenant may have very many."""

    def __init__(self) -> None:
        self.waiting: list[Delivery] = []
        """A heap, with stale deliveries."""
        self.paused_until = 0.0
        """The time at which the quota allows the next one."""
        self._round = 1
        self._rounds: dict[int, int] = {}
        """The last round of each tenant that waits, or waited not long ago. Few tenants share one of `_TENANT_KEYS`."""

    def next_round(self, tenant: Hashable) -> int:
        if not self.waiting:
            self._rounds.clear()
        elif self.waiting[0].round > self._round:
            self._round = self.waiting[0].round
            self._rounds = {key: last for key, last in self._rounds.items() if last >= self._round}
        key = hash(tenant) % _TENANT_KEYS
        self._rounds[key] = found = max(self._round, self._rounds.get(key, 0) + 1)
        return found


class StreamMemory(Protocol):
    """The memory that open streams share."""

    def count_deliveries(self, added: int) -> bool:
        """Count so many more bytes of deliveries, or fewer. Return whether all take no more than they may."""


class DeliveryBudget:
    """Counts the deliveries of all streams. At the limit, the caller with the most loses those of its newest stream, if
    it then still has as many as the caller that adds another. Otherwise this one does: callers with as many would end
    each other's streams in turn, and none would keep any.
    """

    def __init__(self, memory: StreamMemory) -> None:
        self._memory = memory
        self._schedules: dict[Hashable, dict[DeliverySchedule, None]] = {}
        """The schedules of each caller, the oldest first."""
        self._deliveries: Counter[Hashable] = Counter()

    def add(self, schedule: "DeliverySchedule") -> None:
        """Count one more delivery of a stream."""
        self._schedules.setdefault(schedule.caller, {})[schedule] = None
        self._deliveries[schedule.caller] += 1
        if not self._memory.count_deliveries(DELIVERY_BYTES):
            self._newest_of(self._loser(schedule.caller)).give_up()

    def _loser(self, caller: Hashable) -> Hashable:
        [(most, count)] = self._deliveries.most_common(1)
        return most if count - len(self._newest_of(most)) >= self._deliveries[caller] else caller

    def _newest_of(self, caller: Hashable) -> "DeliverySchedule":
        return next(reversed(self._schedules[caller]))

    def remove(self, schedule: "DeliverySchedule", count: int, *, is_last: bool) -> None:
        self._deliveries[schedule.caller] -= count
        self._memory.count_deliveries(-DELIVERY_BYTES * count)
        if is_last and (of_caller := self._schedules.get(schedule.caller)) is not None:
            of_caller.pop(schedule, None)
            if not of_caller:
                del self._schedules[schedule.caller], self._deliveries[schedule.caller]


class DeliverySchedule:
    def __init__(
        self,
        clock: Callable[[], float],
        wall: Callable[[], float],
        draw: Draw,
        *,
        budget: DeliveryBudget,
        caller: Hashable = "",
        later: Callable[[Callable[[], None]], object] = lambda step: step(),
    ) -> None:
        """`later` runs a step after other tasks."""
        self.clock = clock
        self.caller = caller
        self._budget = budget
        self._is_given_up = False
        self.wake: Callable[[], None] = lambda: None
        """Called when the deliveries are given up: the stream may wait."""
        self._wall = wall
        self._draw = draw
        self._later = later
        self._ahead = wall() - clock()
        """The difference between the wall clock and the steady clock."""
        self._deliveries: dict[str, Delivery] = {}
        self._due: list[Delivery] = []
        """A heap. Deliveries that others have replaced are stale and skipped."""
        self._limited = QuotaQueue(), QuotaQueue()
        """The first kubeconfigs and the renewals that wait for the quota."""
        self._waiting: dict[LeaseKey, str | set[str]] = {}
        """Names of the deliveries that wait for a lease's next credential. Nearly all leases have one, which is stored
        without a set."""

    def __getitem__(self, name: str) -> Delivery | None:
        return self._deliveries.get(name)

    def __len__(self) -> int:
        return len(self._deliveries)

    @property
    def names(self) -> list[str]:
        return [*self._deliveries]

    @property
    def due_in_s(self) -> float:
        """Seconds until the next kubeconfig is due; infinite while nothing is scheduled."""
        due_at = self._due[0].due_at if self._due else math.inf
        for queue in self._limited:
            if queue.waiting:
                due_at = min(due_at, queue.paused_until)
        return due_at - self.clock()

    def pop_due(self) -> Delivery | None:
        """Remove the first delivery of the schedule, and return it, or None if it is stale.

        Those that wait for the quota come last: others may have a turn before them.
        """
        heap, now = self._due, self.clock()
        if not heap or heap[0].due_at > now:
            ready = (queue.waiting for queue in self._limited if queue.waiting and queue.paused_until <= now)
            heap = next(ready, heap)
        delivery = heapq.heappop(heap)
        return delivery if self._is_current(delivery) else None

    def has_turn(self, delivery: Delivery) -> bool:
        """Return whether the delivery may be counted against the quota: others may wait for it."""
        return delivery.round != 0 or not self._limited[delivery.is_renewal].waiting

    def await_turn(self, delivery: Delivery, tenant: Hashable, wait_s: float) -> None:
        """Let a delivery wait for the quota, which allows the next one in `wait_s`; infinite if that is known."""
        queue = self._limited[delivery.is_renewal]
        if wait_s < math.inf:
            queue.paused_until = self.clock() + wait_s
        its_round = delivery.round or queue.next_round(tenant)
        self._push(msgspec.structs.replace(delivery, round=its_round), queue.waiting)

    def schedule(self, cluster: Cluster, issuer: str, credential: IssuedCredential | None, due_at: float) -> Delivery:
        """Schedule the next kubeconfig of a cluster. `credential` is the one that the subscriber has.

        Raises ExhaustedError.
        """
        self.require_room()
        target = cluster.target
        name = target.name
        self._stop_waiting(name)
        before = self._deliveries.get(name)
        delivery = Delivery(name, cluster.incarnation, target.place, issuer, credential, due_at)
        if before is not None:
            delivery.round = CHARGED if before.round == CHARGED and credential is None else 0
            delivery.is_renewal = before.is_renewal and before.incarnation == cluster.incarnation
        delivery.is_renewal |= credential is not None
        self._push(delivery, self._due)
        if before is None:
            self._budget.add(self)
            self.require_room()
        return delivery

    def require_room(self) -> None:
        """Require that the deliveries were not given up. Raises ExhaustedError."""
        if self._is_given_up:
            message = "open streams have kubeconfigs of too many clusters in total; use a filter, or close a stream"
            raise ExhaustedError("TOO_MANY_KUBECONFIGS", "kubeconfigs of streams", message, retry_after_s=_RETRY_S)

    def give_up(self) -> None:
        """Drop all deliveries, so that the stream ends."""
        self._is_given_up = True
        self.clear()
        self.wake()

    def clear(self) -> None:
        """Drop all deliveries. What they hold is freed in steps: for 100,000 clusters, that takes 0.3 s."""
        self._budget.remove(self, len(self._deliveries), is_last=True)
        deliveries, heaps, waiting = self._deliveries, self._heaps, self._waiting
        self._deliveries, self._due, self._waiting = {}, [], {}
        self._limited = QuotaQueue(), QuotaQueue()

        def drop() -> None:
            for _ in range(_DROPPED_PER_STEP):
                if deliveries:
                    _, delivery = deliveries.popitem()
                    if delivery.waits_for is not None:
                        delivery.waits_for.end()
                if waiting:
                    waiting.popitem()
            for heap in heaps:
                del heap[-_DROPPED_PER_STEP:]
            if deliveries or waiting or any(heaps):
                self._later(drop)

        drop()

    def postpone(self, delivery: Delivery, wait_s: float) -> None:
        self._push(
            msgspec.structs.replace(delivery, due_at=self.clock() + wait_s, round=min(delivery.round, 0)), self._due
        )

    def await_lease(self, delivery: Delivery, lease: LeaseHandle) -> None:
        """Delay the cluster's next kubeconfig until the lease gets another credential."""
        self._stop_waiting(delivery.name)
        wait = lease.wait()
        self._deliveries[delivery.name] = msgspec.structs.replace(delivery, due_at=math.inf, waits_for=wait)
        others = self._waiting.setdefault(wait.entry.key, delivery.name)
        if isinstance(others, set):
            others.add(delivery.name)
        elif others != delivery.name:
            self._waiting[wait.entry.key] = {others, delivery.name}

    def lease_changed(self, key: LeaseKey, replaced: str) -> None:
        """Schedule the deliveries that wait for a lease, and the delivery for the cluster `replaced`, whose credential
        was replaced at its issuer."""
        if (waiting := self._waiting.get(key)) is not None:
            for name in (waiting,) if isinstance(waiting, str) else [*waiting]:
                self._stop_waiting(name)
                self._reschedule(name)
        if (delivery := self._deliveries.get(replaced)) is not None:
            # The former credential may be invalid before its expiry.
            self._postpone_within(delivery, REPLACED_SPREAD_S)

    def forget(self, name: str) -> None:
        self._stop_waiting(name)
        if self._deliveries.pop(name, None) is not None:
            self._budget.remove(self, 1, is_last=not self._deliveries)

    def follow_wall_clock(self) -> None:
        """Reschedule all deliveries if the wall clock was set or the machine was suspended, so that none is late."""
        ahead = self._wall() - self.clock()
        if abs(ahead - self._ahead) > JUMP_S:
            self._ahead = ahead
            for name in self.names:
                self._reschedule(name)

    @property
    def _heaps(self) -> tuple[list[Delivery], ...]:
        firsts, renewals = self._limited
        return self._due, firsts.waiting, renewals.waiting

    def _push(self, delivery: Delivery, heap: list[Delivery]) -> None:
        self._deliveries[delivery.name] = delivery
        heapq.heappush(heap, delivery)
        count = len(self._due)
        for queue in self._limited:
            count += len(queue.waiting) if queue.waiting else 0
        if count > len(self._deliveries) * (1 + 1 / _STALE_PART) + _STALE_KEPT:
            # Stale entries would stay for half the lifetime of their credentials.
            for each in self._heaps:
                each[:] = filter(self._is_current, each)
                heapq.heapify(each)

    def _is_current(self, delivery: Delivery) -> bool:
        return self._deliveries.get(delivery.name) is delivery

    def _reschedule(self, name: str) -> None:
        delivery = self._deliveries.get(name)
        if delivery is None:
            return
        left_s = 0.0 if delivery.credential is None else max(0.0, delivery.credential.expires_at - self._wall())
        self._postpone_within(delivery, min(JITTER * left_s, MAX_JITTER_S))

    def _postpone_within(self, delivery: Delivery, most_s: float) -> None:
        self.postpone(delivery, self._draw() * most_s)

    def _stop_waiting(self, name: str) -> None:
        delivery = self._deliveries.get(name)
        if delivery is None or (wait := delivery.waits_for) is None:
            return
        delivery.waits_for, key = None, wait.entry.key
        waiting = self._waiting[key]
        if isinstance(waiting, set):
            waiting.discard(name)
        if not waiting or waiting == name:
            del self._waiting[key]
        wait.end()
