"""Revokes the credentials of disengaged clusters at their issuer. A revocation that fails or hangs delays no other."""

import asyncio
from math import inf

from milo_discoveryd.credentials.issuers.issuer import RevokingIssuer
from milo_discoveryd.kubeconfigs.mint_queue import MintQueue
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster, ClusterIdentity, without_content
from milo_kube.credential import CredentialError
from milo_kube.rate_limit import Rate, TokenBucket

TIMEOUT_S = 30.0
BACKOFF_S = (1.0, 60.0)
"""The first wait after a failed revocation and the longest one; the wait doubles with each failure."""
MAX_PENDING = 50_000
"""Maximum number of pending revocations. Credentials beyond this number are left to expire."""


class PendingRevocation:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.latest = cluster
        """The latest incarnation that has ended, with whose credentials those of the earlier ones are revoked."""
        self.failures = 0
        self.retry: asyncio.TimerHandle | None = None


class Revocations:
    """The pending revocations of one issuer: several at a time, within a rate limit, each until it succeeds."""

    def __init__(self, issuer: RevokingIssuer, name: str, *, concurrency: int, per_second: float) -> None:
        self._issuer = issuer
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._rate_limit = TokenBucket(Rate(per_second, concurrency), self._loop.time())
        self._queue: MintQueue[PendingRevocation] = MintQueue(concurrency)
        self._pending: dict[ClusterIdentity, PendingRevocation] = {}
        self._is_full = False
        self._changed = asyncio.Event()

    def add(self, cluster: Cluster) -> None:
        ended = without_content(cluster)
        pending = self._pending.get(cluster.identity)
        if pending is not None:
            pending.latest = ended
            if pending.retry is not None:
                pending.retry.cancel()
                pending.failures = 0
                self._enqueue(pending)
        elif len(self._pending) < MAX_PENDING:
            pending = self._pending[cluster.identity] = PendingRevocation(ended)
            self._enqueue(pending)
        elif not self._is_full:
            self._is_full = True
            problem = f"{MAX_PENDING} revocations are pending: credentials of further clusters are left to expire"
            log.warning("credentials not revoked", issuer=self._name, problem=problem)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                while (pending := self._queue.next_to_mint()) is not None:
                    tasks.create_task(self._attempt(pending), name=f"revoke at {self._name}")
                self._changed.clear()
                await self._changed.wait()

    def _enqueue(self, pending: PendingRevocation) -> None:
        pending.retry = None
        self._queue.add(pending, ends_at=-inf, failures=pending.failures)
        self._changed.set()

    async def _attempt(self, pending: PendingRevocation) -> None:
        ended = pending.latest
        target = ended.target
        try:
            await asyncio.sleep(self._rate_limit.charge(self._loop.time()))
            async with asyncio.timeout(TIMEOUT_S):
                await self._issuer.revoke(ended)
        except Exception as error:
            about = {"issuer": self._name, "cluster": target.name}
            if not isinstance(error, CredentialError | TimeoutError):
                log.exception("credential revocation failed", **about)
            elif not pending.failures:
                problem = str(error) or f"no response within {TIMEOUT_S:g} s"
                log.warning("credential revocation failed", **about, problem=problem)
            first, longest = BACKOFF_S
            wait_s = min(longest, first * 2.0 ** min(pending.failures, 10))
            pending.retry = self._loop.call_later(wait_s, self._enqueue, pending)
            pending.failures += 1
        else:
            log.info("credentials revoked", issuer=self._name, cluster=target.name, uid=target.uid)
            del self._pending[ended.identity]
            self._is_full = False
            if pending.latest is not ended:
                self.add(pending.latest)
        finally:
            self._queue.done(pending)
            self._changed.set()
