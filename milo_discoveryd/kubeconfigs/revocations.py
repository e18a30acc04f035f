"""Revokes the credentials of disengaged clusters at their issuer, and retries until each revocation succeeds."""

import asyncio
from collections import OrderedDict

from milo_discoveryd.credentials.issuers.issuer import RevokingIssuer
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster
from milo_kube.credential import CredentialError

TIMEOUT_S = 30.0
BACKOFF_S = (1.0, 60.0)
MAX_PENDING = 50_000
"""Maximum number of pending revocations. Credentials beyond this number are left to expire."""


class Revocations:
    def __init__(self, issuer: RevokingIssuer, name: str) -> None:
        self._issuer = issuer
        self._name = name
        self._pending: OrderedDict[int, Cluster] = OrderedDict()
        self._added = asyncio.Event()

    def add(self, cluster: Cluster) -> None:
        if len(self._pending) < MAX_PENDING:
            self._pending[cluster.incarnation] = cluster
            self._added.set()

    async def run(self) -> None:
        wait = BACKOFF_S[0]
        while True:
            await self._added.wait()
            incarnation, cluster = next(iter(self._pending.items()))
            target = cluster.target
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._issuer.revoke(cluster)
            except (CredentialError, TimeoutError) as error:
                log.warning("credential revocation failed", issuer=self._name, cluster=target.name, problem=str(error))
                self._pending.move_to_end(incarnation)
                await asyncio.sleep(wait)
                wait = min(BACKOFF_S[1], wait * 2)
            else:
                wait = BACKOFF_S[0]
                del self._pending[incarnation]
                log.info("credentials revoked", issuer=self._name, cluster=target.name, uid=target.uid)
                if not self._pending:
                    self._added.clear()
