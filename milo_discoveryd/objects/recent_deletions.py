"""The deletions of established objects that a watch reported recently. Pure."""

from collections import deque

from milo_discoveryd.model.tenant_counts import TenantCounts


class RecentDeletions:
    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._reported: deque[tuple[float, str]] = deque()
        self._counts = TenantCounts()

    def report(self, tenant: str, now: float) -> int:
        """Record a deletion. Return how many count for it, with this one."""
        while self._reported and self._reported[0][0] <= now - self._within_s:
            self._counts.remove(self._reported.popleft()[1])
        self._reported.append((now, tenant))
        self._counts.add(tenant)
        return self._counts.counted_for(tenant)
