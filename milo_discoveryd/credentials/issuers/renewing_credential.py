"""The credential provider for discovery with a credential from one of the configured issuers."""

import asyncio
import time
from collections.abc import Callable

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.credentials.issuers.issuer import Issuer, MintRequest
from milo_kube.credential import Credential, CredentialError

RETRY_AFTER_S = 5.0
"""The shortest time between two requests after a rejected credential or a failed renewal."""


class RenewingCredential:
    """A credential that is renewed at half its lifetime and after a 401. If renewal at half the lifetime fails, the old
    one is used until it expires."""

    def __init__(self, issuer: Issuer, *, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._issuer = issuer
        self._ttl_s = ttl_s
        self._clock = clock
        self._minted: IssuedCredential | None = None
        self._requested_at = float("-inf")
        self._failure: CredentialError | None = None
        self._single_flight = asyncio.Lock()

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        async with self._single_flight:
            now = self._clock()
            held = self._minted if self._minted is not None and now < self._minted.expires_at else None
            is_refused = held is not None and held.credential == refused
            if held is not None and not is_refused and now < held.issued_at + held.life_s / 2:
                return held.credential
            if 0 <= now - self._requested_at < RETRY_AFTER_S:
                if held is not None:
                    return held.credential
                if self._failure is not None:
                    raise self._failure
            self._requested_at = now
            request = MintRequest(ttl_s=self._ttl_s, held=None if held is None else held.credential)
            try:
                self._minted = await self._issuer.mint(request)
                self._failure = None
            except CredentialError as error:
                self._failure = error
                if held is None or is_refused:
                    raise
                return held.credential
            return self._minted.credential
