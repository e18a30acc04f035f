"""Callers that a listener turned away before anybody asked what they may do."""

import time

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.server.calls.access import DenialAudit


class RejectionLog:
    """Written down, but not to the flooding of what they are written in: whoever can connect brings them about."""

    _AT_ONCE = 10
    _AGAIN_S = 10.0

    def __init__(self, audit: DenialAudit) -> None:
        self._audit = audit
        self._since = float("-inf")
        self._told = 0
        self._untold = 0

    def tell(self, caller: Caller, reason: str, problem: str) -> None:
        now = time.monotonic()
        if now - self._since >= self._AGAIN_S:
            self._since, self._told = now, 0
        if self._told >= self._AT_ONCE:
            self._untold += 1
            return
        self._told += 1
        before = {"untold_before": self._untold} if self._untold else {}
        self._audit.refused(caller, "", reason, problem=problem, **before)
        self._untold = 0
