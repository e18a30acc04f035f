"""Tracks and logs the outages of one credential issuer, which affect all clusters."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

from milo_discoveryd.credentials.issuers.issuer import Issuer
from milo_discoveryd.logger import log
from milo_kube.credential import CredentialError


class IssuerOutage:
    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self.failure: CredentialError | None = None
        """Why the last attempt failed; None if it succeeded."""
        self.is_noticed = False
        """Whether a caller ever requested a credential: failures are then warnings. `keep_ready` does not count."""
        self._is_warned = False
        self._probing = asyncio.Lock()

    def attempt(self) -> AbstractAsyncContextManager[None]:
        """Return the context of an attempt. While the issuer is down, one attempt at a time probes it."""
        return nullcontext() if self.failure is None else self._probing

    def begin_outage(self, failure: CredentialError) -> None:
        is_new = self.failure is None or str(self.failure) != str(failure)
        if is_new or (self.is_noticed and not self._is_warned):
            note = log.warning if self.is_noticed else log.info
            note("credential issuer failed", issuer=self._issuer.name, type=self._issuer.type, problem=str(failure))
            self._is_warned = self.is_noticed
        self.failure = failure

    def end_outage(self) -> None:
        if self.failure is not None:
            log.info("credential issuer recovered", issuer=self._issuer.name)
        self.failure = None
        self._is_warned = False
