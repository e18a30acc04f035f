"""Keeps the leases of one source: asks it in time, not too often, and never twice for the same.

What a lease holds is read without waiting, whatever the source is doing. When the source is down, one lease at a time
tries it, and the others wait until it is back.
"""

import asyncio
import heapq
import itertools
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol, TypeAlias

import msgspec
import structlog

from milo_discoveryd.credentials.minted import Minted
from milo_discoveryd.credentials.sources.minting import MintingSource, RevokingSource, Scope, Wanted
from milo_discoveryd.daemon_errors import BackendError, CredentialError, UnfitError
from milo_discoveryd.kubeconfigs.lease import Draw, Lease
from milo_discoveryd.kubeconfigs.pace import Pace
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.model.moment import Moment

log = structlog.get_logger()

MINT_TIMEOUT_S = 30.0
LOOK_EVERY_S = 5.0
"""How soon a wall clock that was set is noticed."""
JUMP_S = 5.0
TTL_STEPS_S = (10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
"""A ttl that was asked for counts as the next shorter of these, so that few leases serve whatever is asked."""
REVOKE_WAITS_S = (1.0, 60.0)
REVOKING_AT_MOST = 50_000
"""So many wait for it. What is beyond them is left to its end, which comes by itself."""


class Key(msgspec.Struct, frozen=True):
    """Whose credential a lease is for."""

    source: str
    incarnation: int
    """0 where one is for every cluster."""
    ttl_s: float


class Tally(Protocol):
    def mint_ended(self, source: str, result: str, seconds: float) -> None: ...


class Kept:
    """A lease, and what belongs to it."""

    def __init__(self, key: Key, target: Target | None, lease: Lease) -> None:
        self.key = key
        self.target = target
        self.lease = lease
        self._is_dropped = False
        self.is_wanted = True
        """Somebody has taken what it holds, or asked for more: if nobody has, it isn't renewed."""
        self.queued = False
        self._told = asyncio.Event()

    @property
    def is_dropped(self) -> bool:
        """Its cluster was disengaged: what may still come for it is nobody's."""
        return self._is_dropped

    def drop(self) -> None:
        self._is_dropped = True
        self.tell()

    def tell(self) -> None:
        """That an attempt has ended: wakes all who wait for that."""
        self._told.set()
        self._told = asyncio.Event()

    async def told(self) -> None:
        await self._told.wait()


Told: TypeAlias = Callable[[Key], None]
"""Hears of every lease that has something new."""


class Minter:
    def __init__(
        self,
        source: MintingSource,
        *,
        tally: Tally,
        told: Told,
        draw: Draw,
        concurrency: int = 10,
        per_second: float = 50.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self._tally = tally
        self._told = told
        self._draw = draw
        self._loop = asyncio.get_running_loop()
        self._wall = wall
        self._workers = 1 if source.scope is Scope.IDENTITY else concurrency
        self._pace = Pace(per_second, concurrency, self._loop.time())
        self._kept: dict[Key, Kept] = {}
        self._of_cluster: defaultdict[int, dict[Key, None]] = defaultdict(dict)
        self._queue: asyncio.PriorityQueue[tuple[float, int, Kept]] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Kept]] = []
        self._sooner = asyncio.Event()
        self._revoking: OrderedDict[tuple[str, int], Target] = OrderedDict()
        self._to_revoke = asyncio.Event()
        self.trouble: CredentialError | None = None
        """Why the last attempt failed; None when the last one succeeded."""
        self._trying = asyncio.Lock()
        self._tried = asyncio.Event()

    def __len__(self) -> int:
        return len(self._kept)

    def now(self) -> Moment:
        return Moment(self._wall(), self._loop.time())

    def key(self, cluster: Cluster, ttl_s: float) -> Key:
        incarnation = 0 if self.source.scope is Scope.IDENTITY else cluster.incarnation
        return Key(self.source.name, incarnation, stepped(ttl_s) if self.source.takes_ttl else 0)

    def wanted(self, cluster: Cluster, ttl_s: float) -> Kept:
        """The lease that serves the cluster, which is being seen to from now on. The cluster is engaged."""
        return self._seen_to(self.key(cluster, ttl_s), cluster.target)

    def keep_ready(self, ttl_s: float) -> None:
        """Sees to a credential for every cluster, where one is for every cluster, before anybody asks."""
        if self.source.scope is Scope.IDENTITY:
            self._seen_to(Key(self.source.name, 0, stepped(ttl_s) if self.source.takes_ttl else 0), None)

    def _seen_to(self, key: Key, target: Target | None) -> Kept:
        kept = self._kept.get(key)
        if kept is None:
            of_one = self.source.scope is Scope.CLUSTER
            self._kept[key] = kept = Kept(key, target if of_one else None, Lease(self._draw))
            if of_one:
                self._of_cluster[key.incarnation][key] = None
        now = self.now()
        useful = kept.lease.useful(now)
        if useful is None:
            kept.is_wanted = True
        if kept.lease.look(now) or (useful is None and kept.lease.due_at is None):
            self._enqueue(kept)
        return kept

    async def first_attempt(self, within_s: float) -> None:
        """Until a source whose one credential is for all has been asked once, at most for so long."""
        if self.source.scope is Scope.IDENTITY:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._tried.wait()

    def drop(self, cluster: Cluster) -> None:
        """The cluster was disengaged: nothing that is or will be minted for it is handed out any more."""
        for key in self._of_cluster.pop(cluster.incarnation, ()):
            self._kept.pop(key).drop()
        # Though nothing was minted for it: an earlier run of the daemon may have.
        is_revoked = isinstance(self.source, RevokingSource) and self.source.scope is Scope.CLUSTER
        if is_revoked and len(self._revoking) < REVOKING_AT_MOST:
            self._revoking[(cluster.target.name, cluster.incarnation)] = cluster.target
            self._to_revoke.set()

    def held(self) -> Iterable[Minted]:
        """All that is held and good."""
        now = self.now()
        return [minted for kept in self._kept.values() if (minted := kept.lease.valid(now)) is not None]

    def held_for(self, cluster: Cluster) -> Minted | None:
        """What is good for the cluster, of what was asked for already."""
        now = self.now()
        keys = self._kept if self.source.scope is Scope.IDENTITY else self._of_cluster.get(cluster.incarnation, ())
        found = (self._kept[key].lease.valid(now) for key in keys)
        return next((minted for minted in found if minted is not None), None)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_time(), name=f"keep time for {self.source.name}")
            for _ in range(self._workers):
                tasks.create_task(self._work(), name=f"mint from {self.source.name}")
            if isinstance(self.source, RevokingSource):
                tasks.create_task(self._revoke(self.source), name=f"revoke at {self.source.name}")

    def _enqueue(self, kept: Kept) -> None:
        """Behind those who have nothing, and those whose credential ends sooner."""
        if not kept.queued and not kept.lease.is_renewing:
            kept.queued = True
            self._queue.put_nowait((kept.lease.ends_at, next(self._numbers), kept))

    def _plan(self, kept: Kept) -> None:
        due_at = kept.lease.due_at
        if due_at is not None:
            heapq.heappush(self._due, (due_at, next(self._numbers), kept))
            if self._due[0][2] is kept:
                self._sooner.set()

    async def _keep_time(self) -> None:
        """Queues each lease when it is due, and looks at all of them when the wall clock was set."""
        ahead = self._wall() - self._loop.time()
        while True:
            now = self.now()
            if abs(now.wall - now.steady - ahead) > JUMP_S:
                ahead = now.wall - now.steady
                for kept in [*self._kept.values()]:
                    self._consider(kept, now)
            while self._due and self._due[0][0] <= now.steady:
                _, _, kept = heapq.heappop(self._due)
                self._consider(kept, now)
            self._sooner.clear()
            wait = LOOK_EVERY_S if not self._due else min(LOOK_EVERY_S, self._due[0][0] - now.steady)
            timer = self._loop.call_later(max(0.0, wait), self._sooner.set)
            try:
                await self._sooner.wait()
            finally:
                timer.cancel()

    def _consider(self, kept: Kept, now: Moment) -> None:
        if kept.is_dropped or not kept.lease.look(now):
            return
        if kept.is_wanted or self.source.scope is Scope.IDENTITY:
            self._enqueue(kept)
        elif kept.lease.valid(now) is None:
            self._of_cluster[kept.key.incarnation].pop(kept.key, None)
            self._kept.pop(kept.key, None)  # nobody has taken it, and it is over
        else:
            heapq.heappush(self._due, (now.steady + LOOK_EVERY_S, next(self._numbers), kept))

    async def _work(self) -> None:
        while True:
            _, _, kept = await self._queue.get()
            if self.trouble is None:
                await self._attempt(kept)
                continue
            async with self._trying:  # the source is down, or was a moment ago: one looks whether it is back
                await self._attempt(kept)

    async def _attempt(self, kept: Kept) -> None:
        await asyncio.sleep(self._pace.take(self._loop.time()))
        kept.queued = False
        if not kept.is_dropped:
            await self._mint(kept)

    async def _mint(self, kept: Kept) -> None:
        held = kept.lease.begin()
        began = self._loop.time()
        result, is_new = "cancelled", False
        try:
            minted = await self._minted(kept, held)
        except CredentialError as error:
            result = "unfit" if isinstance(error, UnfitError) else "failed"
            self._failed(kept, error)
        else:
            result = "dropped" if kept.is_dropped else "ok"
            if self.trouble is not None:
                log.info("credential source is well again", source=self.source.name)
            self.trouble = None
            kept.lease.succeeded(minted, self.now())
            is_new = held is None or held.credential != minted.credential
            kept.is_wanted = kept.is_wanted and not is_new
        finally:
            self._tried.set()
            self._tally.mint_ended(self.source.name, result, self._loop.time() - began)
        self._ended(kept, is_new=is_new)

    def _ended(self, kept: Kept, *, is_new: bool) -> None:
        if kept.is_dropped:
            return
        self._plan(kept)
        kept.tell()
        if is_new:
            self._told(kept.key)

    async def _minted(self, kept: Kept, held: Minted | None) -> Minted:
        wanted = Wanted(
            ttl_s=kept.key.ttl_s,
            target=kept.target,
            incarnation=kept.key.incarnation,
            held=None if held is None else held.credential,
        )
        try:
            async with asyncio.timeout(MINT_TIMEOUT_S):
                return await self.source.mint(wanted)
        except TimeoutError:
            raise BackendError(f"{self.source.name} did not answer within {MINT_TIMEOUT_S:g} s") from None

    def _failed(self, kept: Kept, error: CredentialError) -> None:
        if self.trouble is None or str(self.trouble) != str(error):
            log.warning("credential source failed", source=self.source.name, type=self.source.type, problem=str(error))
        self.trouble = error
        kept.lease.failed(error, self.now(), error.retry_after_s if isinstance(error, BackendError) else None)

    async def _revoke(self, source: RevokingSource) -> None:
        wait = REVOKE_WAITS_S[0]
        while True:
            await self._to_revoke.wait()
            (name, incarnation), target = next(iter(self._revoking.items()))
            try:
                async with asyncio.timeout(MINT_TIMEOUT_S):
                    await source.revoke(target, incarnation)
            except (CredentialError, TimeoutError) as error:
                log.warning("credentials not revoked yet", source=self.source.name, cluster=name, problem=str(error))
                self._revoking.move_to_end((name, incarnation))
                await asyncio.sleep(wait)
                wait = min(REVOKE_WAITS_S[1], wait * 2)
            else:
                wait = REVOKE_WAITS_S[0]
                del self._revoking[(name, incarnation)]
                log.info("credentials revoked", source=self.source.name, cluster=name, uid=target.uid)
                if not self._revoking:
                    self._to_revoke.clear()


def stepped(ttl_s: float) -> float:
    return max((step for step in TTL_STEPS_S if step <= ttl_s), default=ttl_s)
