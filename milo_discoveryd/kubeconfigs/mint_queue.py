"""Decides which lease is minted next, so that clusters that fail or hang do not delay the others.

Of the concurrent mints, at most a quarter are retries after a failure of the cluster itself, and at most three quarters
are first credentials and retries together. Renewals of what expires soon come before these, in up to three quarters. A
tenant, as `Target.tenant` names it, uses at most half of the slots that the other tenants leave free, and the tenant
with the fewest mints in flight is next, within a round before those whose last mint failed: one owner of objects may
have many tenants, all of which hang. So does a source, whose objects may name the tenants of another one, and while its
backend is down, one mint at a time is made for it. A cluster has at most one mint in flight.

A first credential or renewal that takes much longer than others leaves its slot, and goes on as one of a limited number
of slow mints: hundreds of tenants that have not failed before can hang at once. It still counts in the share of its
tenant. Retries keep their slots, but those of tenants whose last mint was slow leave one to other retries.

First credentials of a tenant are minted in rounds, in each of which every caller that waits has one: a caller
can ask for those of all clusters, each with several lifetimes, at once. One that several callers want is in the
earliest of their rounds.
"""

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Container
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec

from milo_discoveryd.model.cluster import Cluster


class Mintable(Protocol):
    cluster: Cluster | None


M = TypeVar("M", bound="Mintable")


_WITHOUT_CREDENTIAL = float("-inf")
_SKIPPED_KEPT = 100
_URGENT_S = 300.0
"""Renewals of what expires within this time are not minted after first credentials."""
_MOST_FAILING = 10_000
"""Maximum number of tenants whose failures are remembered."""
_Tenant: TypeAlias = tuple[str, str]
"""The source, and the tenant in it."""


class QueuedMint(msgspec.Struct, frozen=True, order=True):
    ends_at: float
    round: int
    """0 if the lease has a credential."""
    number: int


_Turn: TypeAlias = tuple[float, int, bool, QueuedMint]
"""The turn of a tenant: when its first lease expires, the round of that, whether the tenant's last mint failed, and the
place of that lease."""


class _WaitingMints(Generic[M]):
    """The leases of one kind that wait in one source, by tenant: very many tenants can have one each."""

    def __init__(self, running: Container[_Tenant], failing: Container[_Tenant]) -> None:
        """`running`: the tenants with a mint in flight; `failing`: those whose last mint failed."""
        self._running = running
        self._failing = failing
        self.by_tenant: dict[_Tenant, list[tuple[QueuedMint, M]]] = {}
        self._firsts: list[tuple[_Turn, _Tenant]] = []
        """A heap with the turn of each tenant that has no mint in flight. Entries not in `_listed` are stale."""
        self._listed: dict[_Tenant, _Turn] = {}

    def push(self, tenant: _Tenant, waiting: QueuedMint, entry: M) -> None:
        heapq.heappush(self.by_tenant.setdefault(tenant, []), (waiting, entry))
        self.list(tenant)

    def pop(self, tenant: _Tenant) -> tuple[QueuedMint, M]:
        heap = self.by_tenant[tenant]
        popped = heapq.heappop(heap)
        if not heap:
            del self.by_tenant[tenant]
        return popped

    def list(self, tenant: _Tenant) -> None:
        """List a tenant by its turn."""
        heap = self.by_tenant.get(tenant)
        if heap is None:
            self._listed.pop(tenant, None)
            return
        first = heap[0][0]
        turn = first.ends_at, first.round, tenant in self._failing, first
        if self._listed.get(tenant) != turn:
            self._listed[tenant] = turn
            heapq.heappush(self._firsts, (turn, tenant))

    def first_of_others(self) -> tuple[_Turn, _Tenant] | None:
        """Return the first turn of all tenants without a mint in flight. Others are to be listed again."""
        while self._firsts:
            first, tenant = self._firsts[0]
            if self._listed.get(tenant) == first:
                if tenant not in self._running:
                    return first, tenant
                del self._listed[tenant]
            heapq.heappop(self._firsts)
        return None

    def only(self, is_current: Callable[[QueuedMint, M], bool]) -> "_WaitingMints[M]":
        """Return these without those that are not current."""
        current = _WaitingMints[M](self._running, self._failing)
        for tenant, heap in self.by_tenant.items():
            if left := [each for each in heap if is_current(*each)]:
                heapq.heapify(left)
                current.by_tenant[tenant] = left
                current.list(tenant)
        return current


class MintQueue(Generic[M]):
    def __init__(self, places: int, is_down: Callable[[str], bool] = lambda _: False, *, most_slow: int = 0) -> None:
        """`is_down` returns whether the backend for the clusters of a source is down. `most_slow`: the maximum number
        of slow mints, which take no slot."""
        self.places = places
        self._is_down = is_down
        self._most_slow = most_slow
        self._number = 0
        self._queued: dict[int, QueuedMint] = {}
        """The place of each lease that waits, by its `id`. Other places of a lease in the heaps are skipped."""
        self._skipped = 0
        """The number of these, about."""
        self._round = 0
        """The latest round that has begun."""
        self._rounds: dict[str, int] = {}
        """The last round of each caller in which it waits for a credential, or waited not long ago."""
        self._running: dict[int, tuple[str, _Tenant]] = {}
        """The kind and the tenant of the mint that is in flight for each cluster, by incarnation. The cluster may
        move to another tenant until the mint is done."""
        self._slow: set[int] = set()
        """The clusters, by incarnation, whose mint is in flight without a slot."""
        slow_retries, retries, all_, new = (_TakenSlots() for _ in range(4))
        self._slots = {
            "slow retry": (slow_retries, retries, all_, new),
            "retry": (retries, all_, new),
            "first": (all_, new),
            "renewal": (all_,),
        }
        """The slots that slow retries take, all retries, all mints, and first credentials and retries, by kind."""
        self._failing: OrderedDict[_Tenant, bool] = OrderedDict()
        """The tenants whose last mint failed, the latest last, and whether it was slow."""
        self._waiting: dict[str, dict[str, _WaitingMints[M]]] = {}
        """What waits in each source, by kind."""
        self._parked: defaultdict[int, list[tuple[str, QueuedMint, M]]] = defaultdict(list)

    def __len__(self) -> int:
        """The number of leases that wait."""
        return len(self._queued)

    def add(self, entry: M, *, ends_at: float, failures: int, caller: str = "") -> None:
        """Add a lease that expires at `ends_at`. `failures` counts the cluster's own failures since a success."""
        self._place(entry, ends_at, self._next_round(caller, ends_at), failures, caller)

    def advance(self, entry: M, *, ends_at: float, failures: int, caller: str) -> None:
        """Move a lease forward, if it waits, to where it would be if this caller alone had requested it."""
        waiting, its_round = self._queued.get(id(entry)), self._next_round(caller, ends_at)
        if waiting is not None and (ends_at, its_round) < (waiting.ends_at, waiting.round):
            self._place(entry, ends_at, its_round, failures, caller)

    def remove(self, entry: M) -> None:
        """Remove a lease, if it waits: those of one cluster that ends repeatedly could be of any number."""
        if self._queued.pop(id(entry), None) is None:
            return
        self._skipped += 1
        if self._skipped > len(self._queued) + _SKIPPED_KEPT:
            self._skipped = 0
            for by_kind in self._waiting.values():
                by_kind.update({kind: mints.only(self._is_current) for kind, mints in by_kind.items()})

    def _is_current(self, waiting: QueuedMint, entry: M) -> bool:
        return self._queued.get(id(entry)) is waiting

    def _place(self, entry: M, ends_at: float, its_round: int, failures: int, caller: str) -> None:
        retry = "slow retry" if self._failing.get(_tenant(entry)) else "retry"
        kind = retry if failures else "first" if ends_at == _WITHOUT_CREDENTIAL else "renewal"
        self._number += 1
        self._skipped += id(entry) in self._queued
        waiting = self._queued[id(entry)] = QueuedMint(ends_at, its_round, self._number)
        if its_round:
            self._rounds[caller] = its_round
        self._push(kind, waiting, entry)

    def _next_round(self, caller: str, ends_at: float) -> int:
        return max(self._round, self._rounds.get(caller, 0) + 1) if ends_at == _WITHOUT_CREDENTIAL else 0

    def next_to_mint(self, now: float = _WITHOUT_CREDENTIAL) -> M | None:
        """Return the next lease to mint, which counts as in flight until `done`; None if none may be minted now."""
        while True:
            found = self._next(now)
            if found is None:
                return None
            kind, tenant = found
            mints = self._waiting[tenant[0]][kind]
            waiting, entry = mints.pop(tenant)
            incarnation = _incarnation(entry)
            is_current = self._is_current(waiting, entry)
            self._skipped -= not is_current
            if not is_current or incarnation in self._running:
                if is_current:
                    self._parked[incarnation].append((kind, waiting, entry))
                mints.list(tenant)
                continue
            del self._queued[id(entry)]
            self._begin(waiting.round)
            self._running[incarnation] = found
            for slots in self._slots[kind]:
                slots.take(tenant)
            return entry

    def _begin(self, its_round: int) -> None:
        if not self._queued:
            self._rounds.clear()
        if its_round > self._round:
            self._round = its_round
            self._rounds = {caller: last for caller, last in self._rounds.items() if last >= its_round}

    def leave_slot(self, entry: M) -> None:
        """Let a mint in flight that is slow go on without a slot, unless it has to keep it for now."""
        incarnation = _incarnation(entry)
        kind, tenant = self._running[incarnation]
        has_room = len(self._slow) < self._most_slow and not self._is_down(tenant[0])
        if has_room and kind in ("first", "renewal") and incarnation not in self._slow:
            self._slow.add(incarnation)
            for slots in self._slots[kind]:
                slots.leave(tenant)

    def done(self, entry: M, *, has_failed: bool = False, is_slow: bool = False) -> None:
        incarnation = _incarnation(entry)
        kind, tenant = self._running.pop(incarnation)
        for slots in self._slots[kind]:
            if incarnation not in self._slow:
                slots.leave(tenant)
            slots.end(tenant)
        self._slow.discard(incarnation)
        self._failing.pop(tenant, None)
        if has_failed:
            self._failing[tenant] = is_slow
            if len(self._failing) > _MOST_FAILING:
                self._failing.popitem(last=False)
        for mints in self._waiting[tenant[0]].values():
            mints.list(tenant)
        for kind, waiting, parked in self._parked.pop(incarnation, ()):
            self._push(kind, waiting, parked)

    def _next(self, now: float) -> tuple[str, _Tenant] | None:
        slow_retries, retries, all_, new = self._slots["slow retry"]
        free = self.places - all_.total
        for_retries = max(1, self.places // 4)
        for_new = max(1, self.places - for_retries)
        free_for_new = min(free, for_new - new.total)
        free_for_retries = free_for_new if retries.total < for_retries else 0
        free_for_slow = free_for_retries if slow_retries.total < max(1, for_retries - 1) else 0
        allowed = {"renewal": free, "first": free_for_new, "retry": free_for_retries, "slow retry": free_for_slow}
        renewals = all_.total - new.total
        urgent_until = now + _URGENT_S if renewals < for_new else _WITHOUT_CREDENTIAL
        heads: list[tuple[int, int, bool, _Turn, str, _Tenant]] = []

        def found(running: int, its_running: int, turn: _Turn, kind: str, tenant: _Tenant) -> None:
            is_urgent = kind == "renewal" and turn[0] <= urgent_until
            heads.append((running, its_running, not is_urgent, turn, kind, tenant))

        for source, by_kind in self._waiting.items():
            running = all_.by_source[source]
            if running and self._is_down(source):
                continue
            for kind, mints in by_kind.items():
                left, taken = allowed[kind], self._slots[kind][-1]
                is_over_its_share = len(self._waiting) > 1 and taken.by_source[source] >= left
                if not left or not mints.by_tenant or is_over_its_share:
                    continue
                if (other := mints.first_of_others()) is not None:
                    found(running, 0, other[0], kind, other[1])
                for tenant, its_running in all_.by_tenant.items():
                    if tenant in mints.by_tenant and (not tenant[1] or taken.by_tenant.get(tenant, 0) < left):
                        first = mints.by_tenant[tenant][0][0]
                        turn = first.ends_at, first.round, tenant in self._failing, first
                        found(running, its_running, turn, kind, tenant)
        if not heads:
            return None
        *_, kind, tenant = min(heads)
        return kind, tenant

    def _push(self, kind: str, waiting: QueuedMint, entry: M) -> None:
        source, _ = tenant = _tenant(entry)
        if source not in self._waiting:
            running = self._slots["renewal"][0].by_tenant
            self._waiting[source] = {each: _WaitingMints(running, self._failing) for each in self._slots}
        self._waiting[source][kind].push(tenant, waiting, entry)


class _TakenSlots:
    def __init__(self) -> None:
        self.total = 0
        self.by_source: defaultdict[str, int] = defaultdict(int)
        self.by_tenant: Counter[_Tenant] = Counter()
        """With the slow mints, which have left their slots."""

    def take(self, tenant: _Tenant) -> None:
        self.total += 1
        self.by_source[tenant[0]] += 1
        self.by_tenant[tenant] += 1

    def leave(self, tenant: _Tenant) -> None:
        self.total -= 1
        self.by_source[tenant[0]] -= 1

    def end(self, tenant: _Tenant) -> None:
        self.by_tenant[tenant] -= 1
        if not self.by_tenant[tenant]:
            del self.by_tenant[tenant]


def _incarnation(entry: Mintable) -> int:
    return 0 if entry.cluster is None else entry.cluster.incarnation


def _tenant(entry: Mintable) -> _Tenant:
    target = None if entry.cluster is None else entry.cluster.target
    return ("", "") if target is None else (target.source, target.tenant)
