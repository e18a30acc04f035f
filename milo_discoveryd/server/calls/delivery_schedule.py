"""The schedule of one stream's kubeconfigs: when the next one of each cluster is due."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable

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

MAX_DELIVERIES = 600_000
"""Maximum number of deliveries of all streams together. Each takes up to 300 bytes."""
_STALE_KEPT = 100
_DROPPED_PER_STEP = 1000
_RETRY_S = 5.0


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
    is_charged: bool = False
    """Whether the next kubeconfig is already counted against the quota."""
    waits_for: LeaseKey | None = None
    """The lease whose next credential the delivery waits for."""


class DeliveryBudget:
    """Counts the deliveries of all streams. At the limit, the caller with the most loses those of its newest stream, if
    it then still has as many as the caller that adds another. Otherwise this one does: callers with as many would end
    each other's streams in turn, and none would keep any.
    """

    def __init__(self, limit: int = MAX_DELIVERIES) -> None:
        self._free = limit
        self._schedules: dict[Hashable, dict[DeliverySchedule, None]] = {}
        """The schedules of each caller, the oldest first."""
        self._deliveries: Counter[Hashable] = Counter()

    def add(self, schedule: "DeliverySchedule") -> None:
        """Count one more delivery of a stream."""
        self._schedules.setdefault(schedule.caller, {})[schedule] = None
        self._deliveries[schedule.caller] += 1
        self._free -= 1
        if self._free < 0:
            self._newest_of(self._loser(schedule.caller)).give_up()

    def _loser(self, caller: Hashable) -> Hashable:
        [(most, count)] = self._deliveries.most_common(1)
        return most if count - len(self._newest_of(most)) >= self._deliveries[caller] else caller

    def _newest_of(self, caller: Hashable) -> "DeliverySchedule":
        return next(reversed(self._schedules[caller]))

    def remove(self, schedule: "DeliverySchedule", count: int, *, is_last: bool) -> None:
        self._deliveries[schedule.caller] -= count
        self._free += count
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
        caller: Hashable = "",
        budget: DeliveryBudget | None = None,
        later: Callable[[Callable[[], None]], object] = lambda step: step(),
    ) -> None:
        """`later` runs a step after other tasks."""
        self.clock = clock
        self.caller = caller
        self._budget = budget or DeliveryBudget()
        self._is_given_up = False
        self.wake: Callable[[], None] = lambda: None
        """Called when the deliveries are given up: the stream may wait."""
        self._wall = wall
        self._draw = draw
        self._later = later
        self._ahead = wall() - clock()
        """The difference between the wall clock and the steady clock."""
        self._deliveries: dict[str, Delivery] = {}
        self._paused_until = 0.0
        """The time at which the quota allows the next kubeconfig."""
        self._due: list[tuple[float, str]] = []
        """A heap of (time, name). Entries whose time differs from the delivery's `due_at` are stale and skipped."""
        self._waiting: dict[LeaseKey, tuple[LeaseWait, str | set[str]]] = {}
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
        return max(self._due[0][0], self._paused_until) - self.clock() if self._due else math.inf

    def pop_due(self) -> Delivery | None:
        """Remove the first entry of the schedule, and return its delivery, or None if the entry is stale."""
        due_at, name = heapq.heappop(self._due)
        return self._deliveries[name] if self._is_current(due_at, name) else None

    def schedule(self, cluster: Cluster, issuer: str, credential: IssuedCredential | None, due_at: float) -> Delivery:
        """Schedule the next kubeconfig of a cluster. `credential` is the one that the subscriber has.

        Raises ExhaustedError.
        """
        self.require_room()
        target = cluster.target
        name = target.name
        self._stop_waiting(name)
        delivery = Delivery(name, cluster.incarnation, target.place, issuer, credential, due_at)
        is_new = name not in self._deliveries
        self._deliveries[name] = delivery
        self._push(delivery)
        if is_new:
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
        deliveries, due, waiting = self._deliveries, self._due, self._waiting
        self._deliveries, self._due, self._waiting = {}, [], {}

        def drop() -> None:
            for _ in range(_DROPPED_PER_STEP):
                if waiting:
                    _, (wait, _) = waiting.popitem()
                    wait.end()
                if deliveries:
                    deliveries.popitem()
            del due[-_DROPPED_PER_STEP:]
            if waiting or deliveries or due:
                self._later(drop)

        drop()

    def postpone(self, delivery: Delivery, wait_s: float) -> None:
        delivery.due_at = self.clock() + wait_s
        self._push(delivery)

    def pause(self, wait_s: float) -> None:
        """Suspend deliveries for this number of seconds."""
        self._paused_until = self.clock() + wait_s

    def await_lease(self, delivery: Delivery, lease: LeaseHandle) -> None:
        """Delay the cluster's next kubeconfig until the lease gets another credential."""
        self._stop_waiting(delivery.name)
        delivery.waits_for = key = lease.key
        wait, others = self._waiting.get(key) or (lease.wait(), delivery.name)
        if isinstance(others, set):
            others.add(delivery.name)
        elif others != delivery.name:
            others = {others, delivery.name}
        self._waiting[key] = wait, others

    def lease_changed(self, key: LeaseKey, replaced: str) -> None:
        """Schedule the deliveries that wait for a lease, and the delivery for the cluster `replaced`, whose credential
        was replaced at its issuer."""
        if (awaited := self._waiting.pop(key, None)) is not None:
            wait, waiting = awaited
            wait.end()
            for name in (waiting,) if isinstance(waiting, str) else waiting:
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

    def _push(self, delivery: Delivery) -> None:
        heapq.heappush(self._due, (delivery.due_at, delivery.name))
        if len(self._due) > 2 * len(self._deliveries) + _STALE_KEPT:
            # Stale entries would stay for half the lifetime of their credentials.
            self._due = [*{(due_at, name) for due_at, name in self._due if self._is_current(due_at, name)}]
            heapq.heapify(self._due)

    def _is_current(self, due_at: float, name: str) -> bool:
        delivery = self._deliveries.get(name)
        return delivery is not None and delivery.due_at == due_at

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
        if delivery is None or delivery.waits_for is None:
            return
        wait, waiting = self._waiting.get(delivery.waits_for) or (None, None)
        if isinstance(waiting, set):
            waiting.discard(name)
        if wait is not None and (not waiting or waiting == name):
            del self._waiting[delivery.waits_for]
            wait.end()
        delivery.waits_for = None
