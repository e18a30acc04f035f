"""Keeps the leases of one issuer: renews each in time, within a rate limit, with one mint in flight per lease.

Reading a held credential never waits, even if the issuer is down. While the issuer is down for the clusters of a
source, one lease of them at a time probes it and the others wait.
"""

import asyncio
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import (
    Issuer,
    MintRequest,
    NotifyingIssuer,
    RevokingIssuer,
    Scope,
    TimedIssuer,
    mint_timeout_s,
)
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.instruments import CredentialMetrics
from milo_discoveryd.kubeconfigs.credential_budget import CredentialBudget
from milo_discoveryd.kubeconfigs.credential_lease import JUMP_S, Draw
from milo_discoveryd.kubeconfigs.lease_table import LeaseEntry, LeaseKey, LeaseTable, RenewalTimer
from milo_discoveryd.kubeconfigs.mint_queue import MintQueue
from milo_discoveryd.kubeconfigs.revocations import Revocations
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster, Target
from milo_kube.credential import CredentialError
from milo_kube.moment import Moment
from milo_kube.rate_limit import Rate, TokenBucket

FIRST_ATTEMPT_S = 1.0
"""How long a stream waits for an issuer that has not responded yet, so that its first events contain credentials."""
CHECK_EVERY_S = 5.0
"""The maximum delay until a step of the wall clock is detected."""
TTL_STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
"""A requested ttl is rounded down to one of these, so that few leases serve all requests."""
LEASES_PER_STEP = 1000
CLUSTER_BACKOFF_S = 20.0
"""The longest backoff after a failure of one cluster's credential."""
SLOW_S = 0.25
"""While others wait, a mint in flight is slow after this time, unless the issuer is busy."""
_BUSY_S = 2.0
"""An issuer that has answered not longer ago than this, and no later request, is busy: if it is slow for all clusters,
it does not receive more requests at once."""
_BUSY = 2
"""The most mints of a source in flight, for each slot of the queue, while the issuer counts as busy. With more, tenants
hang, and some of them may answer slowly on purpose."""
_MOST_SLOW = 20
"""Maximum number of slow mints for each slot of the queue: 300 that hang for 15 s delay others for less than 30 s."""
_SUSPECTS = 2
"""The number of tenants whose clusters must have a failure that may be of the issuer until it counts as one."""

LeaseListener: TypeAlias = Callable[[LeaseKey, str], None]
"""Called with the key of each lease that received a new credential. The second argument is the name of the lease's
cluster if the issuer reported that the former credential was replaced, and empty otherwise."""


class Minter:
    def __init__(
        self,
        issuer: Issuer,
        *,
        metrics: CredentialMetrics,
        changed: LeaseListener,
        draw: Draw,
        concurrency: int = 10,
        per_second: float = 50.0,
        wall: Callable[[], float] = time.time,
        budget: CredentialBudget | None = None,
    ) -> None:
        self.issuer = issuer
        self._metrics = metrics
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._wall = wall
        places = 1 if issuer.scope is Scope.IDENTITY else concurrency
        # A command takes memory for as long as it runs.
        most_slow = 0 if issuer.scope is Scope.IDENTITY or isinstance(issuer, TimedIssuer) else _MOST_SLOW * places
        self._rate_limit = TokenBucket(Rate(per_second, concurrency), self._loop.time())
        self._outages: defaultdict[str, IssuerOutage] = defaultdict(lambda: IssuerOutage(issuer))
        """By source, each of which may have a backend of its own."""
        self._queue: MintQueue[LeaseEntry] = MintQueue(
            places, lambda source: self._outages[source].is_down, most_slow=most_slow
        )
        self._in_flight: dict[LeaseEntry, float] = {}
        """The mints in flight, with the times when they began."""
        self._leases = LeaseTable(draw, self._queue.remove, budget)
        self._work_available = asyncio.Event()
        self._timer: RenewalTimer[LeaseEntry] = RenewalTimer()
        self._revocations = (
            Revocations(issuer, issuer.name, concurrency=concurrency, per_second=per_second)
            if isinstance(issuer, RevokingIssuer)
            else None
        )
        if isinstance(issuer, NotifyingIssuer):
            issuer.subscribe(self._renew)
        self._attempted = asyncio.Event()

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def failure(self) -> CredentialError | None:
        """Why the last attempt failed, ignoring failures that concern only one cluster; None if it succeeded."""
        return next((outage.failure for outage in self._outages.values() if outage.failure is not None), None)

    def now(self) -> Moment:
        return Moment(self._wall(), self._loop.time())

    def key(self, cluster: Cluster, ttl_s: float) -> LeaseKey:
        if self.issuer.scope is Scope.IDENTITY:
            return self._shared_key(ttl_s)
        return replace(self._shared_key(ttl_s), incarnation=cluster.incarnation, place=cluster.target.place)

    def _shared_key(self, ttl_s: float) -> LeaseKey:
        return LeaseKey(self.issuer.name, 0, ttl_step(ttl_s) if self.issuer.takes_ttl else 0)

    def keep_ready(self, ttl_s: float) -> None:
        """If the issuer has one credential for all clusters, request it before the first caller does."""
        if self.issuer.scope is Scope.IDENTITY:
            self._requested(self._shared_key(ttl_s), None)

    def request(self, key: LeaseKey, cluster: Cluster, caller: str = "") -> LeaseEntry:
        """Return the lease of an engaged cluster, and queue a mint if its credential is missing or close to expiry."""
        entry = self._requested(key, cluster if self.issuer.scope is Scope.CLUSTER else None, caller)
        self._outages[entry.source].is_noticed = True
        return entry

    def _requested(self, key: LeaseKey, cluster: Cluster | None, caller: str = "") -> LeaseEntry:
        entry = self._leases.begin(key, cluster)
        now = self.now()
        useful = entry.lease.useful(now)
        if useful is None:
            entry.is_wanted = True
            self._leases.waits.note(entry, now.steady)
        if self._is_due(entry, now) or (useful is None and entry.lease.due_at is None):
            self._enqueue(entry, caller)
        return entry

    async def settle(self, entry: LeaseEntry, within_s: float) -> None:
        """Wait, for up to `within_s`, until the lease has a useful credential, has failed, or was dropped."""
        waiting = self.wait(entry)
        try:
            async with asyncio.timeout(within_s):
                while not entry.is_dropped and not self._is_settled(entry):
                    await entry.attempt_ended()
        except TimeoutError:
            pass
        finally:
            waiting.end()

    def wait(self, entry: LeaseEntry) -> "LeaseWait":
        self._leases.waits.begin(entry)
        return LeaseWait(self, entry)

    def end_wait(self, entry: LeaseEntry) -> None:
        self._leases.waits.end(entry, self._loop.time())

    async def _remove_unawaited(self) -> None:
        for count, entry in enumerate(self._leases.waits.take_due(self._loop.time()), 1):
            self._leases.remove(entry.key)
            if not count % LEASES_PER_STEP:
                await asyncio.sleep(0)

    def _is_settled(self, entry: LeaseEntry) -> bool:
        return entry.lease.useful(self.now()) is not None or not (entry.queued or entry.lease.is_renewing)

    async def first_attempt(self) -> None:
        """Wait, for up to a second, for the first attempt of an issuer with one credential for all clusters."""
        if self.issuer.scope is Scope.IDENTITY:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ATTEMPT_S):
                    await self._attempted.wait()

    def unfit_for_all(self) -> UnfitError | None:
        """Return why an issuer with one credential for all clusters cannot serve any, or None."""
        is_shared = self.issuer.scope is Scope.IDENTITY
        return self.failure if is_shared and isinstance(self.failure, UnfitError) else None

    def drop(self, cluster: Cluster) -> None:
        """Discard the leases of a disengaged cluster, including the result of a mint in flight."""
        self._leases.drop(cluster)
        # Revoke even without a lease: an earlier run of the daemon may have minted for this cluster.
        if self._revocations is not None and self.issuer.scope is Scope.CLUSTER:
            self._revocations.add(cluster)

    def held(self) -> Iterable[IssuedCredential]:
        """Return all valid credentials."""
        now = self.now()
        return [issued for entry in self._leases if (issued := entry.lease.valid(now)) is not None]

    def failing(self) -> Counter[str]:
        """Return the number of clusters that get no new credential because of a failure specific to the cluster, by
        reason."""
        of_clusters: dict[int, str] = {}
        for entry in self._leases:
            if entry.cluster is not None and entry.lease.failure is not None and entry.failures:
                of_clusters[entry.key.incarnation] = entry.lease.failure.reason
        return Counter(of_clusters.values())

    def held_for(self, cluster: Cluster) -> IssuedCredential | None:
        """Return a valid credential for the cluster, if one was requested earlier."""
        now = self.now()
        entries = self._leases if self.issuer.scope is Scope.IDENTITY else self._leases.of_cluster(cluster)
        found = (entry.lease.valid(now) for entry in entries)
        return next((issued for issued in found if issued is not None), None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._schedule(), name=f"schedule renewals of {self.issuer.name}")
            tasks.create_task(self._mint_queued(tasks), name=f"mint from {self.issuer.name}")
            if self._revocations is not None:
                tasks.create_task(self._revocations.run(), name=f"revoke at {self.issuer.name}")

    def _enqueue(self, entry: LeaseEntry, caller: str = "") -> None:
        if entry.lease.is_renewing:
            return
        queue = self._queue.advance if entry.queued else self._queue.add
        entry.queued = True
        queue(entry, ends_at=entry.lease.ends_at, failures=entry.fails_alone, caller=caller)
        self._work_available.set()

    def _renew(self, is_replaced: Callable[[Target], bool]) -> None:
        """Mint again for the clusters whose credentials were replaced at their issuer."""
        for entry in self._leases:
            if entry.cluster is not None and is_replaced(entry.cluster.target):
                entry.is_replaced, entry.is_outdated = True, entry.lease.is_renewing
                self._enqueue(entry)

    def _plan(self, entry: LeaseEntry) -> None:
        if entry.lease.due_at is not None:
            self._timer.add(entry.lease.due_at, entry)

    async def _schedule(self) -> None:
        """Queue each lease when it is due, and check all leases after a step of the wall clock."""
        offset = self._wall() - self._loop.time()
        while True:
            now = self.now()
            if abs(now.wall - now.steady - offset) > JUMP_S:
                offset = now.wall - now.steady
                for entry in [*self._leases]:
                    self._check_contained(entry, now)
            for entry in self._timer.take_due(now.steady):
                self._check_contained(entry, now)
            await self._remove_unawaited()
            await self._timer.wait_for_due(now.steady, at_most_s=CHECK_EVERY_S)

    def _check_contained(self, entry: LeaseEntry, now: Moment) -> None:
        with log.contained("credential not renewed", issuer=self.issuer.name, cluster=entry.name):
            self._check(entry, now)

    def _check(self, entry: LeaseEntry, now: Moment) -> None:
        if entry.is_dropped or not self._is_due(entry, now):
            return
        if entry.is_wanted or self.issuer.scope is Scope.IDENTITY:
            self._enqueue(entry)
        elif entry.lease.valid(now) is None:
            self._leases.remove(entry.key)
        else:
            self._timer.add(now.steady + CHECK_EVERY_S, entry)

    def _is_due(self, entry: LeaseEntry, now: Moment) -> bool:
        is_due = entry.lease.check(now)
        self._leases.count(entry)  # the lease has released an expired credential
        return is_due

    async def _mint_queued(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            while (entry := self._queue.next_to_mint(self._loop.time())) is not None:
                tasks.create_task(self._work(entry), name=f"mint from {self.issuer.name}")
            self._work_available.clear()
            if not self._queue:
                await self._work_available.wait()
                continue
            timer = self._loop.call_later(SLOW_S / 2, self._work_available.set)
            await self._work_available.wait()
            timer.cancel()
            for slow in filter(self._is_slow, self._in_flight):
                self._queue.leave_slot(slow)

    def _is_slow(self, entry: LeaseEntry) -> bool:
        began_at, now = self._in_flight.get(entry, inf), self._loop.time()
        outage = self._outages[entry.source]
        is_busy = outage.in_flight <= _BUSY * self._queue.places and outage.is_busy(began_at, now)
        return now - began_at >= SLOW_S and not is_busy

    async def _work(self, entry: LeaseEntry) -> None:
        try:
            with log.contained("credential not renewed", issuer=self.issuer.name, cluster=entry.name):
                await self._attempt(entry)
        finally:
            self._queue.done(entry, has_failed=entry.lease.failure is not None, is_slow=self._is_slow(entry))
            self._in_flight.pop(entry, None)
            self._work_available.set()

    async def _attempt(self, entry: LeaseEntry) -> None:
        await asyncio.sleep(self._rate_limit.charge(self._loop.time()))
        entry.queued = False
        if not entry.is_dropped:
            await self._mint(entry)

    async def _mint(self, entry: LeaseEntry) -> None:
        held, outage = entry.lease.begin(), self._outages[entry.source]
        if entry.lease.failure is None:
            entry.issued = outage.issued
        self._in_flight[entry] = started_at = self._loop.time()
        outage.began(started_at)
        result, is_new = "cancelled", False
        try:
            issued = self._leases.budget.admit(await self._minted(entry, held), held, entry.tenant)
            entry.lease.succeeded(issued, self.now())
        except CredentialError as error:
            result = "unfit" if isinstance(error, UnfitError) else "failed"
            self._failed(entry, error)
        except Exception as error:
            result = "failed"
            log.exception("mint failed", issuer=self.issuer.name, cluster=entry.name)
            problem = f"internal error ({type(error).__name__}); its stack is in the daemon's log"
            self._failed(entry, BackendError(problem, of_cluster=entry.cluster is not None))
        else:
            result = "dropped" if entry.is_dropped else "ok"
            outage.succeeded(started_at, self._loop.time())
            entry.failures, entry.fails_alone = 0, False
            is_new = held is None or held.credential != issued.credential
            entry.is_wanted = entry.is_wanted and not is_new
        finally:
            outage.in_flight -= 1
            self._leases.count(entry)
            self._attempted.set()
            self._metrics.mint_ended(self.issuer.name, result, self._loop.time() - started_at)
        self._ended(entry, is_new=is_new)

    def _ended(self, entry: LeaseEntry, *, is_new: bool) -> None:
        if entry.is_dropped:
            return
        self._plan(entry)
        if entry.is_outdated:
            entry.is_outdated = False
            self._enqueue(entry)
        entry.wake()
        if is_new:
            replaced = entry.cluster.target.name if entry.cluster is not None and entry.is_replaced else ""
            entry.is_replaced = entry.queued
            self._changed(entry.key, replaced)

    async def _minted(self, entry: LeaseEntry, held: IssuedCredential | None) -> IssuedCredential:
        request = MintRequest(
            ttl_s=entry.key.ttl_s,
            cluster=entry.cluster,
            held=None if held is None else held.credential,
        )
        issuer, timeout_s = self.issuer, mint_timeout_s(self.issuer)
        try:
            async with asyncio.timeout(timeout_s):
                return await issuer.mint(request)
        except TimeoutError:
            message = f"the credential issuer {issuer.name} did not answer within {timeout_s:g} s"
            of_cluster = entry.cluster is not None
            raise BackendError(message, of_cluster=of_cluster, may_be_of_issuer=of_cluster, reason="timeout") from None

    def _failed(self, entry: LeaseEntry, error: CredentialError) -> None:
        outage = self._outages[entry.source]
        retry_after_s = error.retry_after_s if isinstance(error, BackendError) else None
        if entry.cluster is not None and (isinstance(error, UnfitError) or _is_of_cluster(error)):
            about = {"issuer": self.issuer.name, "cluster": entry.name}
            may_be_of_issuer = isinstance(error, BackendError) and error.may_be_of_issuer
            if may_be_of_issuer:
                outage.suspect(error, entry.cluster.target)
            else:
                outage.end_outage()
            entry.fails_alone |= not may_be_of_issuer or entry.issued != outage.issued
            entry.issued = outage.issued
            if entry.fails_alone or outage.failure is None:
                if not entry.failures:
                    log.warning("cluster credential not issued", **about, problem=str(error))
                entry.failures += 1
            entry.lease.failed(error, self.now(), retry_after_s, longest_s=CLUSTER_BACKOFF_S)
            return
        outage.begin_outage(error)
        entry.lease.failed(error, self.now(), retry_after_s)

    def problem(self, cluster: Cluster) -> CredentialError | None:
        """Return why the cluster gets no new credential: a failure for this cluster, or a failure of the issuer."""
        own = (entry.lease.failure for entry in self._leases.of_cluster(cluster))
        source = cluster.target.source if self.issuer.scope is Scope.CLUSTER else ""
        return next((failure for failure in own if failure is not None), self.failure_of(source))

    def failure_of(self, source: str) -> CredentialError | None:
        """Return why the issuer fails for the clusters of a source; None if it does not."""
        return self._outages[source].failure


def _is_of_cluster(error: CredentialError) -> bool:
    return isinstance(error, BackendError) and error.of_cluster


def ttl_step(ttl_s: float) -> float:
    return TTL_STEPS_S[max(0, bisect_right(TTL_STEPS_S, ttl_s) - 1)]


class LeaseWait(msgspec.Struct, frozen=True, gc=False):
    """A call or stream that waits for the next credential of a lease."""

    minter: Minter
    entry: LeaseEntry

    def end(self) -> None:
        self.minter.end_wait(self.entry)


class IssuerOutage:
    """Tracks and logs the outages of the issuer, which affect all clusters of a source."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self.failure: CredentialError | None = None
        """Why the last attempt failed, ignoring failures that concern only one cluster; None if it succeeded."""
        self.issued = 0
        """The number of credentials that the issuer has issued."""
        self.is_noticed = False
        """Whether any caller has requested a credential. If so, failures are warnings. `keep_ready` does not count."""
        self._is_warned = False
        self.is_down = False
        """Whether the failure is certainly one of the issuer. One attempt at a time then probes it."""
        self.in_flight = 0
        self._began_at = self._answered_at = -inf
        """When the latest mint that succeeded began, and when it ended; before that, when the first one began."""
        self._suspects: set[str] = set()
        """The tenants whose clusters failed since the last success, with what may be a failure of the issuer."""

    def began(self, now: float) -> None:
        self.in_flight += 1
        if self._answered_at == -inf:
            self._answered_at = now

    def is_busy(self, began_at: float, now: float) -> bool:
        """Return whether a mint in flight may be slow because of the issuer, and not because of its cluster."""
        return began_at >= self._began_at and now - self._answered_at <= _BUSY_S

    def succeeded(self, began_at: float, now: float) -> None:
        self.end_outage()
        self.issued += 1
        if began_at >= self._began_at:  # if it was overtaken, its cluster is slow, and not the issuer
            self._began_at, self._answered_at = began_at, now

    def begin_outage(self, failure: CredentialError) -> None:
        self.is_down = True
        self._note(failure)

    def suspect(self, failure: CredentialError, target: Target) -> None:
        """Record a failure of a cluster that may be one of the issuer. Even if it counts as one, attempts for other
        clusters go on, since one owner of objects may have several tenants."""
        self.is_down = False
        if len(self._suspects) < _SUSPECTS:
            self._suspects.add(target.tenant or target.name)
        if len(self._suspects) == _SUSPECTS or self.failure is not None:
            self._note(failure)

    def _note(self, failure: CredentialError) -> None:
        is_new = self.failure is None or str(self.failure) != str(failure)
        if is_new or (self.is_noticed and not self._is_warned):
            note = log.warning if self.is_noticed else log.info
            note("credential issuer failed", issuer=self._issuer.name, type=self._issuer.type, problem=str(failure))
            self._is_warned = self.is_noticed
        self.failure = failure

    def end_outage(self) -> None:
        if self.failure is not None:
            log.info("credential issuer recovered", issuer=self._issuer.name)
        self.failure, self.is_down = None, False
        self._suspects.clear()
        self._is_warned = False
