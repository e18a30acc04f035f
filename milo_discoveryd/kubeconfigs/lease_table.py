"""The leases of one issuer, by key and by cluster, and when the next of them is due."""

import asyncio
import heapq
import itertools
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.kubeconfigs.credential_budget import CredentialBudget
from milo_discoveryd.kubeconfigs.credential_lease import LEAST_RENEWAL_S, RENEWAL, CredentialLease, Draw
from milo_discoveryd.model.cluster import Cluster, without_content

UNAWAITED_S = 120.0
"""Callers that do not wait try again sooner, and find their place in the queue."""


class LeaseKey(msgspec.Struct, frozen=True, gc=False):
    issuer: str
    incarnation: int
    """0 if one credential serves every cluster."""
    ttl_s: float
    place: tuple[str, ...] = ()
    """The cluster's location, if the credential is for this cluster alone: another endpoint needs another
    credential."""


class LeaseEntry:
    """A lease and its state in the minter's schedule."""

    def __init__(self, key: LeaseKey, cluster: Cluster | None, lease: CredentialLease) -> None:
        self.key = key
        self.cluster = cluster
        self.tenant = ("", "") if cluster is None else (cluster.target.source, cluster.target.tenant)
        """The cluster's source, and the tenant in whose budget the credential counts, also if the cluster moves to
        another one."""
        self.lease = lease
        self.counted: IssuedCredential | None = None
        """The credential that counts in the budget."""
        self._is_dropped = False
        self.is_wanted = True
        """The credential was used, or a newer one was requested. Without either, a cluster's lease is not renewed."""
        self.queued = False
        self.is_replaced = False
        """The credential was replaced at its issuer."""
        self.is_outdated = False
        """The credential was replaced while a mint was in flight, so the mint may return the former one."""
        self.failures = 0
        """Consecutive failures of this cluster, not of the issuer."""
        self.issued = 0
        """The number of credentials that the issuer had issued before the first failure, or at the last one."""
        self.fails_alone = False
        """Whether the issuer has issued others meanwhile: what failed with it is no retry when the issuer recovers."""
        self._attempt_ended: asyncio.Event | None = None
        """Only while tasks wait for it: an event takes more memory than most credentials."""

    @property
    def source(self) -> str:
        """The name of the cluster's source; empty if the credential serves all clusters."""
        return self.tenant[0]

    @property
    def name(self) -> str:
        """The name of the cluster; empty if the credential serves all clusters."""
        return "" if self.cluster is None else self.cluster.target.name

    @property
    def is_dropped(self) -> bool:
        """The cluster was disengaged: the result of a mint in flight is discarded."""
        return self._is_dropped

    def drop(self) -> None:
        self._is_dropped = True
        # What waits or is in flight keeps the lease, and its cluster may end repeatedly.
        self.cluster = None if self.cluster is None else without_content(self.cluster)
        self.wake()

    def wake(self) -> None:
        """Wake all tasks that wait in `attempt_ended`."""
        if self._attempt_ended is not None:
            self._attempt_ended.set()
            self._attempt_ended = None

    async def attempt_ended(self) -> None:
        if self._attempt_ended is None:
            self._attempt_ended = asyncio.Event()
        await self._attempt_ended.wait()


class LeaseWaits:
    """Counts the calls and streams that wait for the next credential of a cluster's lease, and knows the leases without
    a credential that none has waited for in a while. Callers determine how many leases there are, by the lifetimes that
    they ask for.
    """

    def __init__(self) -> None:
        self._waiters = Counter[LeaseEntry]()
        self._unawaited = OrderedDict[LeaseEntry, float]()
        """Since when none waits; the earliest first."""

    def begin(self, entry: LeaseEntry) -> None:
        self._waiters[entry] += 1
        self._unawaited.pop(entry, None)

    def end(self, entry: LeaseEntry, now: float) -> None:
        self._waiters[entry] -= 1
        if not self._waiters[entry]:
            del self._waiters[entry]
            self.note(entry, now)

    def note(self, entry: LeaseEntry, now: float) -> None:
        """Record that the lease was requested now."""
        self._unawaited.pop(entry, None)
        if entry.cluster is not None and not entry.is_dropped and entry not in self._waiters:
            self._unawaited[entry] = now

    def forget(self, entry: LeaseEntry) -> None:
        """The lease has ended."""
        self._unawaited.pop(entry, None)

    def take_due(self, now: float) -> Iterator[LeaseEntry]:
        """Return the leases without a credential that none has waited for since `UNAWAITED_S`."""
        while self._unawaited:
            entry, since = next(iter(self._unawaited.items()))
            if since > now - UNAWAITED_S:
                return
            del self._unawaited[entry]
            if entry.lease.is_renewing:
                self._unawaited[entry] = now
            elif entry.lease.held is None:
                yield entry


class LeaseTable:
    def __init__(
        self, draw: Draw, discarded: Callable[[LeaseEntry], None], budget: CredentialBudget | None = None
    ) -> None:
        """`discarded` is called with each lease that ends."""
        self._draw = draw
        self._discarded = discarded
        self.budget = budget or CredentialBudget()
        self.waits = LeaseWaits()
        self._entries: dict[LeaseKey, LeaseEntry] = {}
        self._of_cluster: defaultdict[int, dict[LeaseKey, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LeaseEntry]:
        return iter(self._entries.values())

    def begin(self, key: LeaseKey, cluster: Cluster | None) -> LeaseEntry:
        """Return the lease of the key, and create it if there is none. Leases of the cluster's former endpoints end:
        the users who write its object choose how often that changes."""
        entry = self._entries.get(key)
        if entry is None:
            # A caller may ask for short lifetimes, and then gets the next credential in time.
            asked_s = RENEWAL[0] * key.ttl_s or LEAST_RENEWAL_S
            least_s = 0.0 if cluster is None else min(asked_s, LEAST_RENEWAL_S)
            lease = CredentialLease(self._draw, least_renewal_s=least_s)
            self._entries[key] = entry = LeaseEntry(key, cluster, lease)
            if cluster is not None:
                of_cluster = self._of_cluster[key.incarnation]
                for former in [former for former in of_cluster if former.place != key.place]:
                    del of_cluster[former]
                    self._discard(former)
                of_cluster[key] = None
        # A cluster from the state file lacks the fields of its object until the object is received again.
        entry.cluster = cluster
        return entry

    def remove(self, key: LeaseKey) -> None:
        """Remove an unused lease."""
        self._of_cluster[key.incarnation].pop(key, None)
        if key in self._entries:
            self._discard(key)

    def drop(self, cluster: Cluster) -> None:
        """Remove the leases of a disengaged cluster; the result of a mint in flight will be discarded."""
        for key in self._of_cluster.pop(cluster.incarnation, ()):
            self._discard(key)

    def count(self, entry: LeaseEntry) -> None:
        """Count what the lease holds now in the budget."""
        held = None if entry.is_dropped else entry.lease.held
        self.budget.count(held, entry.counted, entry.tenant)
        entry.counted = held

    def _discard(self, key: LeaseKey) -> None:
        entry = self._entries.pop(key)
        entry.drop()
        self.waits.forget(entry)
        self.count(entry)
        self._discarded(entry)

    def of_cluster(self, cluster: Cluster) -> list[LeaseEntry]:
        """Return the leases of a cluster at its current endpoint."""
        keys = self._of_cluster.get(cluster.incarnation, ())
        return [self._entries[key] for key in keys if key.place == cluster.target.place]


L = TypeVar("L")


class RenewalTimer(Generic[L]):
    """A timer for many leases: wakes one task when the next of them is due. It keeps no lease, and so no credential,
    that was dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, weakref.ref[L]]] = []
        self._due_sooner = asyncio.Event()

    def add(self, due_at: float, lease: L) -> None:
        """Add a lease that is due at this time on the event loop's clock. It may be in the timer several times."""
        heapq.heappush(self._due, (due_at, next(self._numbers), weakref.ref(lease)))
        if self._due[0][2]() is lease:
            self._due_sooner.set()

    def take_due(self, now: float) -> Iterator[L]:
        while self._due and self._due[0][0] <= now:
            if (lease := heapq.heappop(self._due)[2]()) is not None:
                yield lease

    async def wait_for_due(self, now: float, *, at_most_s: float) -> None:
        """Wait until the next lease is due, for up to `at_most_s`."""
        self._due_sooner.clear()
        wait_s = at_most_s if not self._due else min(at_most_s, self._due[0][0] - now)
        timer = self._loop.call_later(max(0.0, wait_s), self._due_sooner.set)
        try:
            await self._due_sooner.wait()
        finally:
            timer.cancel()
