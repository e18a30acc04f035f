"""Cache limits, and the budget of all caches."""

from milo_kube.cache_budget import CacheBudget, CacheLimits

LIMITS = CacheLimits(objects=2, bytes=10, total_bytes=15)


class Cache:
    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self.counted_bytes = 0
        self.problem = ""

    def grow(self, size: int) -> None:
        self.counted_bytes += size
        self._budget.grown(self, size)

    def exceed(self, problem: str) -> None:
        self._budget.forget(self)
        self.counted_bytes = 0
        self.problem = problem


def test_budget_reports_the_limit_that_a_cache_exceeds() -> None:
    budget = CacheBudget(LIMITS)
    assert [budget.problem(*counts) for counts in ((2, 10), (3, 1), (1, 11))] == [
        "",
        "the cluster has more than 2 of these objects (CacheLimits.objects)",
        "these objects of the cluster take more than 10 bytes (CacheLimits.bytes)",
    ]


def test_largest_cache_is_dropped_when_the_total_budget_is_exceeded() -> None:
    budget = CacheBudget(LIMITS)
    large, small = Cache(budget), Cache(budget)
    large.grow(9)
    small.grow(6)
    assert (budget.total, large.problem) == (15, "")
    small.grow(1)
    assert "largest of all caches" in large.problem
    assert (small.problem, budget.total) == ("", 7)
    small.grow(-7)
    budget.forget(small)
    budget.forget(small)
    assert budget.total == 0
