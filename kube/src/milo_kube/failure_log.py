"""Rate-limited logging of repeated handler failures: one traceback, then one line with counts per interval."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

INTERVAL_S = 30.0
# Limits memory: once this many kinds are tracked, failures of all other kinds are logged as one kind.
_MAX_KINDS = 64
_OF_CLUSTER = 16
"""The part of the kinds that one cluster may have, whose API server determines how many there are: its further failures
are one kind."""


class Summary(NamedTuple):
    """Repeated failures of one kind."""

    failures: int
    clusters: int
    what: str = ""
    """The text of the last failure."""


@dataclass(slots=True)
class _Kind:
    logged_at: float
    cluster: str = ""
    """The cluster whose failure is of this kind; empty if those of any cluster are."""
    is_new: bool = True
    failures: int = 0
    clusters: set[str] = field(default_factory=set)
    what: str = ""


class FailureLog:
    """The log policy for failures. By default, failures of one kind have the same exception type and source line.

    A kind without failures for an interval after its last log line is forgotten: its next failure is logged with a
    traceback again.
    """

    def __init__(self, interval: float = INTERVAL_S, *, max_kinds: int = _MAX_KINDS) -> None:
        self._max_kinds = max_kinds
        self._interval = interval
        self._kinds: dict[object, _Kind] = {}

    def __bool__(self) -> bool:
        """Return whether failures are tracked, so that `summaries` has to be called again."""
        return bool(self._kinds)

    def is_new(self, cluster: str, error: BaseException, now: float, *, key: object = None, what: str = "") -> bool:
        """Record a failure; return whether to log it with its traceback. Otherwise `summaries` counts it.

        `key`: the kind, of failures of this cluster alone. `what`: the text of the summary.
        """
        of_cluster = "" if key is None else cluster
        key = (type(error), raised_at(error)) if key is None else key
        if key not in self._kinds:
            if of_cluster and self._count(of_cluster) >= self._max_kinds // _OF_CLUSTER:
                key = of_cluster
            if len(self._kinds) >= self._max_kinds and key not in self._kinds:
                key, of_cluster = None, ""
        kind = self._kinds.setdefault(key, _Kind(now, of_cluster))
        if kind.is_new:
            kind.is_new = False
            return True
        kind.failures += 1
        kind.clusters.add(cluster)
        kind.what = what
        return False

    def summaries(self, now: float, *, final: bool = False) -> list[Summary]:
        """Return the failures since the last log line, for each kind whose interval has elapsed."""
        found: list[Summary] = []
        for key, kind in tuple(self._kinds.items()):
            if now - kind.logged_at < self._interval and not final:
                continue
            if kind.failures:
                found.append(Summary(kind.failures, len(kind.clusters), kind.what))
                self._kinds[key] = _Kind(now, kind.cluster, is_new=False)
            else:
                del self._kinds[key]
        return found

    def _count(self, cluster: str) -> int:
        return sum(kind.cluster == cluster for kind in self._kinds.values())


def raised_at(error: BaseException) -> object:
    """Return the source line that raised the error, as a code object and a line number."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last and (last.tb_frame.f_code, last.tb_lineno)
