"""Rate-limited logging of repeated handler failures: one traceback, then one line with counts per interval."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

INTERVAL_S = 30.0
# Failures of many kinds at once are logged as if they were one kind.
_MAX_KINDS = 64


@dataclass(slots=True)
class _Kind:
    logged_at: float
    is_new: bool = True
    failures: int = 0
    clusters: set[str] = field(default_factory=set)


class FailureLog:
    """The log policy for handler failures. Failures of one kind have the same exception type, raised by the same line.

    A kind that does not occur for an interval is forgotten, so its next failure is logged with a traceback again.
    """

    def __init__(self, interval: float = INTERVAL_S) -> None:
        self._interval = interval
        self._kinds: dict[object, _Kind] = {}

    def __bool__(self) -> bool:
        """Return whether there were failures in the last interval."""
        return bool(self._kinds)

    def is_new(self, cluster: str, error: BaseException, now: float) -> bool:
        """Record a failure; return whether to log it with its traceback. Otherwise `summaries` counts it."""
        key = _key(error)
        if key not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            key = None
        kind = self._kinds.setdefault(key, _Kind(now))
        if kind.is_new:
            kind.is_new = False
            return True
        kind.failures += 1
        kind.clusters.add(cluster)
        return False

    def summaries(self, now: float, *, final: bool = False) -> list[tuple[int, int]]:
        """Return the numbers of failures and clusters since the last log line, of each kind whose interval is over."""
        found: list[tuple[int, int]] = []
        for key, kind in tuple(self._kinds.items()):
            if now - kind.logged_at < self._interval and not final:
                continue
            if kind.failures:
                found.append((kind.failures, len(kind.clusters)))
                self._kinds[key] = _Kind(now, is_new=False)
            else:
                del self._kinds[key]
        return found


def _key(error: BaseException) -> object:
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return type(error), last and (last.tb_frame.f_code, last.tb_lineno)
