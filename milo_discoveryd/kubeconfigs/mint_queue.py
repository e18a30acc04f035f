"""Decides which lease is minted next, so that clusters that fail or hang do not delay the others.

Of the concurrent mints, at most a quarter are retries after a failure of the cluster itself, and at most three quarters
are first credentials and retries together. A tenant, as `Target.tenant` names it, uses at most half of the slots that
the other tenants leave free, and the tenant with the fewest mints in flight is next. A cluster has at most one mint in
flight.

First credentials of a tenant are minted in rounds, in each of which every caller that waits has one: a caller
can ask for those of all clusters, each with several lifetimes, at once. One that several callers want is in the
earliest of their rounds.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Container
from typing import Generic, Protocol, TypeVar

import msgspec

from milo_discoveryd.model.cluster import Cluster


class Mintable(Protocol):
    cluster: Cluster | None


M = TypeVar("M", bound="Mintable")


_WITHOUT_CREDENTIAL = float("-inf")
_SKIPPED_KEPT = 100


class QueuedMint(msgspec.Struct, frozen=True, order=True):
    ends_at: float
    round: int
    """0 if the lease has a credential."""
    number: int


class _WaitingMints(Generic[M]):
    """The leases of one kind that wait, by tenant: very many tenants can have one each."""

    def __init__(self, running: Container[str]) -> None:
        """`running`: the tenants with a mint in flight."""
        self._running = running
        self.by_tenant: dict[str, list[tuple[QueuedMint, M]]] = {}
        self._firsts: list[tuple[QueuedMint, str]] = []
        """A heap with the first lease of each tenant that has no mint in flight. Entries not in `_listed` are stale."""
        self._listed: dict[str, QueuedMint] = {}

    def push(self, tenant: str, waiting: QueuedMint, entry: M) -> None:
        heapq.heappush(self.by_tenant.setdefault(tenant, []), (waiting, entry))
        self.list(tenant)

    def pop(self, tenant: str) -> tuple[QueuedMint, M]:
        heap = self.by_tenant[tenant]
        popped = heapq.heappop(heap)
        if not heap:
            del self.by_tenant[tenant]
        return popped

    def list(self, tenant: str) -> None:
        """List a tenant by its first lease."""
        heap = self.by_tenant.get(tenant)
        if heap is None:
            self._listed.pop(tenant, None)
        elif self._listed.get(tenant) != heap[0][0]:
            self._listed[tenant] = heap[0][0]
            heapq.heappush(self._firsts, (heap[0][0], tenant))

    def first_of_others(self) -> tuple[QueuedMint, str] | None:
        """Return the first lease of all tenants without a mint in flight. Others are to be listed again."""
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
        current = _WaitingMints[M](self._running)
        for tenant, heap in self.by_tenant.items():
            for waiting, entry in heap:
                if is_current(waiting, entry):
                    current.push(tenant, waiting, entry)
        return current


class MintQueue(Generic[M]):
    def __init__(self, places: int) -> None:
        self.places = places
        self._for_retries = max(1, places // 4)
        self._for_new = max(1, places - self._for_retries)
        self._number = 0
        self._queued: dict[int, QueuedMint] = {}
        """The place of each lease that waits, by its `id`. Other places of a lease in the heaps are skipped."""
        self._skipped = 0
        """The number of these, about."""
        self._round = 0
        """The latest round that has begun."""
        self._rounds: dict[str, int] = {}
        """The last round of each caller in which it waits for a credential, or waited not long ago."""
        self._running: dict[int, tuple[str, str]] = {}
        """The kind and the tenant of the mint that is in flight for each cluster, by incarnation. The cluster may
        move to another tenant until the mint is done."""
        self._kinds: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()
        self._waiting: dict[str, _WaitingMints[M]] = {
            kind: _WaitingMints(self._tenants) for kind in ("retry", "first", "renewal")
        }
        self._new: Counter[str] = Counter()
        """The slots that first credentials and retries take, by tenant."""
        self._parked: defaultdict[int, list[tuple[str, QueuedMint, M]]] = defaultdict(list)

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
            self._waiting = {kind: waiting.only(self._is_current) for kind, waiting in self._waiting.items()}

    def _is_current(self, waiting: QueuedMint, entry: M) -> bool:
        return self._queued.get(id(entry)) == waiting

    def _place(self, entry: M, ends_at: float, its_round: int, failures: int, caller: str) -> None:
        kind = "retry" if failures else "first" if ends_at == _WITHOUT_CREDENTIAL else "renewal"
        self._number += 1
        self._skipped += id(entry) in self._queued
        waiting = self._queued[id(entry)] = QueuedMint(ends_at, its_round, self._number)
        if its_round:
            self._rounds[caller] = its_round
        self._push(kind, waiting, entry)

    def _next_round(self, caller: str, ends_at: float) -> int:
        return max(self._round, self._rounds.get(caller, 0) + 1) if ends_at == _WITHOUT_CREDENTIAL else 0

    def next_to_mint(self) -> M | None:
        """Return the next lease to mint, which counts as in flight until `done`; None if none may be minted now."""
        while True:
            found = self._next()
            if found is None:
                return None
            kind, tenant = found
            waiting, entry = self._waiting[kind].pop(tenant)
            incarnation = _incarnation(entry)
            is_current = self._is_current(waiting, entry)
            self._skipped -= not is_current
            if not is_current or incarnation in self._running:
                if is_current:
                    self._parked[incarnation].append((kind, waiting, entry))
                self._waiting[kind].list(tenant)
                continue
            del self._queued[id(entry)]
            self._begin(waiting.round)
            self._running[incarnation] = found
            self._kinds[kind] += 1
            self._tenants[tenant] += 1
            self._new[tenant] += kind != "renewal"
            return entry

    def _begin(self, its_round: int) -> None:
        if not self._queued:
            self._rounds.clear()
        if its_round > self._round:
            self._round = its_round
            self._rounds = {caller: last for caller, last in self._rounds.items() if last >= its_round}

    def done(self, entry: M) -> None:
        incarnation = _incarnation(entry)
        kind, tenant = self._running.pop(incarnation)
        self._kinds[kind] -= 1
        self._tenants[tenant] -= 1
        self._new[tenant] -= kind != "renewal"
        if not self._tenants[tenant]:
            del self._tenants[tenant], self._new[tenant]
            for mints in self._waiting.values():
                mints.list(tenant)
        for kind, waiting, parked in self._parked.pop(incarnation, ()):
            self._push(kind, waiting, parked)

    def _next(self) -> tuple[str, str] | None:
        free = self.places - len(self._running)
        free_for_new = min(free, self._for_new - self._kinds["first"] - self._kinds["retry"])
        allowed = {
            "renewal": (free, self._tenants),
            "first": (free_for_new, self._new),
            "retry": (free_for_new if self._kinds["retry"] < self._for_retries else 0, self._new),
        }
        heads: list[tuple[int, QueuedMint, str, str]] = []
        for kind, mints in self._waiting.items():
            left, taken = allowed[kind]
            if not left or not mints.by_tenant:
                continue
            if (found := mints.first_of_others()) is not None:
                heads.append((0, found[0], kind, found[1]))
            for tenant, running in self._tenants.items():
                if tenant in mints.by_tenant and (not tenant or taken[tenant] < left):
                    heads.append((running, mints.by_tenant[tenant][0][0], kind, tenant))
        if not heads:
            return None
        _, _, kind, tenant = min(heads)
        return kind, tenant

    def _push(self, kind: str, waiting: QueuedMint, entry: M) -> None:
        self._waiting[kind].push(_tenant(entry), waiting, entry)


def _incarnation(entry: Mintable) -> int:
    return 0 if entry.cluster is None else entry.cluster.incarnation


def _tenant(entry: Mintable) -> str:
    return "" if entry.cluster is None else entry.cluster.target.tenant
