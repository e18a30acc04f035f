"""Counts and orders removals by tenant, so that a burst of one tenant's delays none of others'. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class TenantCounts:
    """The tenant that has the most removals may have as many as it likes: they count for its own alone. So if most
    tenants lose clusters at once, as with a faulty server or controller, that is a burst for all."""

    def __init__(self) -> None:
        self.total = 0
        self._by_tenant: Counter[str] = Counter()
        """Only tenants that have any."""
        self._having: dict[int, dict[str, None]] = {}
        """The tenants that have this many."""
        self._most = 0

    def add(self, tenant: str) -> None:
        self._change(tenant, 1)

    def remove(self, tenant: str) -> None:
        self._change(tenant, -1)

    def counted_for(self, tenant: str) -> int:
        """Return how many count for a removal of this tenant: all, but those of another one that has more than any."""
        return self.total - (self._most if self._by_tenant[tenant] < self._most else 0)

    def not_counted_for(self, tenant: str) -> str | None:
        """Return the tenant whose removals do not count for those of this one; None if all count."""
        return next(iter(self._having[self._most])) if self._by_tenant[tenant] < self._most else None

    def _change(self, tenant: str, change: int) -> None:
        before = self._by_tenant[tenant]
        after = before + change
        self.total += change
        self._by_tenant[tenant] = after
        self._having.setdefault(after, {})[tenant] = None
        if not after:
            del self._by_tenant[tenant], self._having[after]
        if before:
            del self._having[before][tenant]
            if not self._having[before]:
                del self._having[before]
        if after > self._most or (before == self._most and before not in self._having):
            self._most = after


def in_turns(removals: Iterable[T], tenant: Callable[[T], str]) -> list[T]:
    """Return the removals in an order in which tenants take turns."""
    before, turns = Counter[str](), list[tuple[int, T]]()
    for removal in removals:
        key = tenant(removal)
        turns.append((before[key], removal))
        before[key] += 1
    turns.sort(key=lambda turn: turn[0])
    return [removal for _, removal in turns]
