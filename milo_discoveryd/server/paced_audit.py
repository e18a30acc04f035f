"""Rate limit for audit lines about calls: any client can cause any number of them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import caller_key
from milo_kube.rate_limit import KeyedBuckets, Rate

RATE = Rate(per_second=1.0, burst=20.0)
"""The rate of lines for each caller and reason or event, so that one kind of call cannot hide another."""
MAX_KEYS = 10_000


class CallAudit(Protocol):
    """The receiver of audit events about calls."""

    def noted(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        """Record a call that succeeded."""

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None: ...

    def suppressed(self, reason: str) -> None:
        """Count a denial for which no separate line is written."""


class PacedAudit:
    """Records calls up to a rate. Calls beyond it are counted, and the next line or `flush` reports their number."""

    def __init__(self, audit: CallAudit, clock: Callable[[], float]) -> None:
        self._audit = audit
        self._clock = clock
        self._buckets: KeyedBuckets[tuple[str, str]] = KeyedBuckets(MAX_KEYS)
        self._suppressed: dict[tuple[str, str], _Suppressed] = {}

    def noted(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        """Record a call that succeeded. Not rate limited here, because other quotas limit these calls."""
        self._audit.noted(caller, rule, event, **about)

    def noted_at_rate(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        """Record a successful call, up to a rate limit, because its caller can repeat it at will."""
        self._record(self._audit.noted, caller, rule, event, about)

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        if not self._record(self._audit.refused, caller, rule, reason, about):
            self._audit.suppressed(reason)

    def flush(self) -> None:
        """Record the number of calls that were suppressed since the last line of their kind."""
        waiting, self._suppressed = self._suppressed, {}
        for (_, name), denial in waiting.items():
            denial.record(denial.caller, denial.rule, name, suppressed=denial.times)

    def _record(
        self, record: Callable[..., None], caller: Caller, rule: str, name: str, about: dict[str, object]
    ) -> bool:
        """Record a call, or count it and return False."""
        key, now = (caller_key(caller), name), self._clock()
        if self._buckets.bucket(key, RATE, now).take(now):
            earlier = self._suppressed.get(key)
            self._suppressed[key] = _Suppressed(record, caller, rule, 1 if earlier is None else earlier.times + 1)
            return False
        if key in self._suppressed:
            about["suppressed"] = self._suppressed.pop(key).times
        record(caller, rule, name, **about)
        return True


class _Suppressed(NamedTuple):
    record: Callable[..., None]
    caller: Caller
    rule: str
    times: int
