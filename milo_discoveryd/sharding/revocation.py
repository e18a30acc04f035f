"""Revokes the credentials that other members obtained for clusters, before this member engages these clusters."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from milo_discoveryd.credentials.issuers.issuer import FencingIssuer
from milo_discoveryd.logger import log
from milo_discoveryd.sharding.credential_fence import TOKEN_CACHE_S, CredentialFence
from milo_kube.credential import CredentialError

RETRY_S = 2.0


class CredentialRevocation:
    def __init__(
        self,
        fence: CredentialFence,
        issuers: Sequence[FencingIssuer],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.fence = fence
        self._issuers = issuers
        self._sleep = sleep
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Check the fence again, because the ownership has changed."""
        self._changed.set()

    async def run(self, cleared: Callable[[], None]) -> None:
        """Perform due revocations until canceled. `cleared` is called when more clusters may be engaged."""
        while True:
            self._changed.clear()
            due = self.fence.due
            if due is None:
                await self._changed.wait()
                continue
            try:
                for issuer in self._issuers:
                    await issuer.revoke_others(due.covers)
            except CredentialError as error:
                log.warning("credentials of former owners not revoked", problem=str(error))
                await self._sleep(RETRY_S)
                continue
            await self._sleep(TOKEN_CACHE_S)
            self.fence.revoked(due)
            cleared()
