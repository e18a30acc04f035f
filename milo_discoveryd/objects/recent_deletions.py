"""The deletions of established objects that a watch reported recently, by tenant. Pure."""

from collections import Counter, deque


class RecentDeletions:
    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._reported: deque[tuple[float, str]] = deque()
        self._by_tenant: Counter[str] = Counter()
        """The number of these deletions of each tenant that has one."""

    def report(self, tenant: str, now: float) -> int:
        """Record a deletion. Return how many there are, without those of the other tenant that has the most: one that
        deletes its projects all the time does not hold the deletions of others."""
        while self._reported and self._reported[0][0] <= now - self._within_s:
            _, former = self._reported.popleft()
            self._by_tenant[former] -= 1
            if not self._by_tenant[former]:
                del self._by_tenant[former]
        self._reported.append((now, tenant))
        own = self._by_tenant.pop(tenant, 0) + 1
        most_of_another = max(self._by_tenant.values(), default=0)
        self._by_tenant[tenant] = own
        return len(self._reported) - most_of_another
