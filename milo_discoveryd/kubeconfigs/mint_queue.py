"""Decides which lease is minted next, so that clusters that fail or hang do not delay the others.

Of the concurrent mints, at most a quarter are retries after a failure of the cluster itself, and at most three quarters
are first credentials and retries together. An organization uses at most half of the slots that the other organizations
leave free, and the organization with the fewest mints in flight is next. A cluster has at most one mint in flight.
"""

import heapq
from collections import Counter, defaultdict
from typing import Generic, Protocol, TypeVar

import msgspec

from milo_discoveryd.model.cluster import Cluster


class Mintable(Protocol):
    cluster: Cluster | None


M = TypeVar("M", bound="Mintable")


class QueuedMint(msgspec.Struct, frozen=True, order=True):
    ends_at: float
    number: int


class MintQueue(Generic[M]):
    def __init__(self, places: int) -> None:
        self.places = places
        self._for_retries = max(1, places // 4)
        self._for_new = max(1, places - self._for_retries)
        self._waiting: dict[str, dict[str, list[tuple[QueuedMint, M]]]] = {
            "retry": defaultdict(list),
            "first": defaultdict(list),
            "renewal": defaultdict(list),
        }
        self._number = 0
        self._running: dict[int, tuple[str, str]] = {}
        """The kind and the organization of the mint that is in flight for each cluster, by incarnation. The cluster
        may move to another organization until the mint is done."""
        self._kinds: Counter[str] = Counter()
        self._organizations: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        """The slots that first credentials and retries take, by organization."""
        self._parked: defaultdict[int, list[tuple[str, QueuedMint, M]]] = defaultdict(list)

    def add(self, entry: M, *, ends_at: float, failures: int) -> None:
        """Add a lease that expires at `ends_at`. `failures` counts the cluster's own failures since a success."""
        kind = "retry" if failures else "first" if ends_at == float("-inf") else "renewal"
        self._number += 1
        self._push(kind, QueuedMint(ends_at, self._number), entry)

    def next_to_mint(self) -> M | None:
        """Return the next lease to mint, which counts as in flight until `done`; None if none may be minted now."""
        while True:
            found = self._next()
            if found is None:
                return None
            kind, organization = found
            heap = self._waiting[kind][organization]
            waiting, entry = heapq.heappop(heap)
            if not heap:
                del self._waiting[kind][organization]
            incarnation = _incarnation(entry)
            if incarnation in self._running:
                self._parked[incarnation].append((kind, waiting, entry))
                continue
            self._running[incarnation] = found
            self._kinds[kind] += 1
            self._organizations[organization] += 1
            self._new[organization] += kind != "renewal"
            return entry

    def done(self, entry: M) -> None:
        incarnation = _incarnation(entry)
        kind, organization = self._running.pop(incarnation)
        self._kinds[kind] -= 1
        self._organizations[organization] -= 1
        self._new[organization] -= kind != "renewal"
        if not self._organizations[organization]:
            del self._organizations[organization], self._new[organization]
        for kind, waiting, parked in self._parked.pop(incarnation, ()):
            self._push(kind, waiting, parked)

    def _next(self) -> tuple[str, str] | None:
        free = self.places - len(self._running)
        free_for_new = min(free, self._for_new - self._kinds["first"] - self._kinds["retry"])
        allowed = {
            "renewal": (free, self._organizations),
            "first": (free_for_new, self._new),
            "retry": (free_for_new if self._kinds["retry"] < self._for_retries else 0, self._new),
        }
        heads = [
            (self._organizations[organization], heap[0][0], kind, organization)
            for kind, by_organization in self._waiting.items()
            for left, taken in [allowed[kind]]
            if left
            for organization, heap in by_organization.items()
            if not organization or taken[organization] < left
        ]
        if not heads:
            return None
        _, _, kind, organization = min(heads)
        return kind, organization

    def _push(self, kind: str, waiting: QueuedMint, entry: M) -> None:
        heapq.heappush(self._waiting[kind][_organization(entry)], (waiting, entry))


def _incarnation(entry: Mintable) -> int:
    return 0 if entry.cluster is None else entry.cluster.incarnation


def _organization(entry: Mintable) -> str:
    return "" if entry.cluster is None else entry.cluster.target.organization
