"""Decides which lease is minted next, so that clusters that fail or hang do not delay the others. Pure.

Of the concurrent mints, at most a quarter are retries after a failure of the cluster itself, at most three quarters are
first credentials and retries, and at most half are of one organization. A cluster has one mint in flight.
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
        self._for_organization = max(1, (places + 1) // 2)
        self._waiting: dict[str, dict[str, list[tuple[QueuedMint, M]]]] = {
            "retry": defaultdict(list),
            "first": defaultdict(list),
            "renewal": defaultdict(list),
        }
        self._number = 0
        self._running: dict[int, str] = {}
        """The kind of mint that is in flight for each cluster, by incarnation."""
        self._kinds: Counter[str] = Counter()
        self._organizations: Counter[str] = Counter()
        self._parked: defaultdict[int, list[tuple[str, QueuedMint, M]]] = defaultdict(list)

    def add(self, entry: M, *, ends_at: float, failures: int) -> None:
        """Add a lease that expires at `ends_at`. `failures`: those of the cluster itself since a success."""
        kind = "retry" if failures else "first" if ends_at == float("-inf") else "renewal"
        self._number += 1
        self._push(kind, QueuedMint(ends_at, self._number), entry)

    def take(self) -> M | None:
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
            self._running[incarnation] = kind
            self._kinds[kind] += 1
            self._organizations[organization] += 1
            return entry

    def done(self, entry: M) -> None:
        incarnation = _incarnation(entry)
        self._kinds[self._running.pop(incarnation)] -= 1
        organization = _organization(entry)
        self._organizations[organization] -= 1
        if not self._organizations[organization]:
            del self._organizations[organization]
        for kind, waiting, parked in self._parked.pop(incarnation, ()):
            self._push(kind, waiting, parked)

    def _next(self) -> tuple[str, str] | None:
        free = len(self._running) < self.places
        is_new_allowed = free and self._kinds["first"] + self._kinds["retry"] < self._for_new
        allowed = {
            "renewal": free,
            "first": is_new_allowed,
            "retry": is_new_allowed and self._kinds["retry"] < self._for_retries,
        }
        heads = [
            (heap[0][0], kind, organization)
            for kind, by_organization in self._waiting.items()
            if allowed[kind]
            for organization, heap in by_organization.items()
            if not organization or self._organizations[organization] < self._for_organization
        ]
        if not heads:
            return None
        _, kind, organization = min(heads)
        return kind, organization

    def _push(self, kind: str, waiting: QueuedMint, entry: M) -> None:
        heapq.heappush(self._waiting[kind][_organization(entry)], (waiting, entry))


def _incarnation(entry: Mintable) -> int:
    return 0 if entry.cluster is None else entry.cluster.incarnation


def _organization(entry: Mintable) -> str:
    return "" if entry.cluster is None else entry.cluster.target.organization
