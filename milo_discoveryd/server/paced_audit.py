"""Rate limit for audit lines about denials: any client can cause them, as often as it likes."""

from collections.abc import Callable
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import caller_key
from milo_kube.rate_limit import KeyedBuckets, Rate

RATE = Rate(per_second=1.0, burst=20.0)
"""Lines for each caller and reason, so that one kind of denial can't hide another."""
MAX_KEYS = 10_000


class DenialAudit(Protocol):
    """Where denials are recorded."""

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None: ...

    def suppressed(self, reason: str) -> None:
        """Count a denial that is not recorded by a line of its own."""


class PacedAudit:
    """Records denials up to a rate. Those beyond it are counted, and the next line or `flush` gives their number."""

    def __init__(self, audit: DenialAudit, clock: Callable[[], float]) -> None:
        self._audit = audit
        self._clock = clock
        self._buckets: KeyedBuckets[tuple[str, str]] = KeyedBuckets(MAX_KEYS)
        self._suppressed: dict[tuple[str, str], tuple[Caller, str, int]] = {}

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        key, now = (caller_key(caller), reason), self._clock()
        if self._buckets.bucket(key, RATE, now).take(now):
            _, _, count = self._suppressed.get(key, (caller, rule, 0))
            self._suppressed[key] = (caller, rule, count + 1)
            self._audit.suppressed(reason)
            return
        if key in self._suppressed:
            about["suppressed"] = self._suppressed.pop(key)[2]
        self._audit.refused(caller, rule, reason, **about)

    def flush(self) -> None:
        """Record the number of denials that were suppressed since the last line about their kind."""
        waiting, self._suppressed = self._suppressed, {}
        for (_, reason), (caller, rule, count) in waiting.items():
            self._audit.refused(caller, rule, reason, suppressed=count)
