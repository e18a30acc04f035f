"""Cache limits, and the budget of all caches."""

import random

import pytest

from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.tenants import Tenant

LIMITS = CacheLimits(objects=2, bytes=10, total_bytes=15)


class Cache:
    def __init__(self, budget: CacheBudget, tenant: Tenant = ("",)) -> None:
        self.tenant = tenant
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
    assert large.problem == (
        "it is the largest of its tenant, which has the most of all caches, and these together exceed 15 bytes "
        "(CacheLimits.total_bytes)"
    )
    assert (small.problem, budget.total) == ("", 7)
    small.grow(-7)
    budget.forget(small)
    budget.forget(small)
    assert budget.total == 0


def test_tenant_with_many_small_caches_drops_no_larger_cache_of_another_tenant() -> None:
    budget = CacheBudget(CacheLimits(total_bytes=1000))
    victims = [Cache(budget, ("", "acme")), Cache(budget, ("", "", "alone"))]
    for victim in victims:
        victim.grow(100)
    attackers = [Cache(budget, ("", f"evil-{number % 3}")) for number in range(90)]
    for _ in range(3):  # dropped caches are listed again
        for attacker in attackers:
            if not attacker.counted_bytes:
                attacker.grow(9)
            assert budget.total <= 1000
    assert [victim.problem for victim in victims] == ["", ""]
    assert sum(attacker.counted_bytes for attacker in attackers) > 700


def test_large_step_of_one_tenant_drops_as_many_caches_of_the_largest_one_as_it_takes() -> None:
    budget = CacheBudget(CacheLimits(total_bytes=1000))
    small = [Cache(budget, ("", "many")) for _ in range(80)]
    for each in small:
        each.grow(10)
    Cache(budget, ("", "acme")).grow(300)
    assert budget.total == 980
    assert sum(bool(each.problem) for each in small) == 12


def test_cache_counts_for_the_present_organization_of_its_cluster() -> None:
    budget = CacheBudget(LIMITS)
    moved, other, grown = (Cache(budget, ("", name)) for name in ("acme", "other", "acme"))
    moved.grow(6)
    other.grow(7)
    moved.tenant = ("", "other")
    grown.grow(5)
    assert [bool(each.problem) for each in (moved, other, grown)] == [False, True, False]
    budget.forget(moved)
    assert budget.total == 5


@pytest.mark.parametrize("seed", range(20))
def test_tenant_within_its_share_loses_no_cache(seed: int) -> None:
    chosen = random.Random(seed)
    budget = CacheBudget(CacheLimits(total_bytes=10_000))
    caches = [Cache(budget, ("", f"{chosen.randrange(4)}")) for _ in range(60)]
    modest = [Cache(budget, ("", "modest")) for _ in range(3)]
    for _ in range(3000):
        cache = chosen.choice(caches)
        cache.grow(chosen.randint(-cache.counted_bytes, chosen.choice((20, 2000))))
        if (cache := chosen.choice(modest)).counted_bytes < 600:
            cache.grow(chosen.randint(0, 50))
        assert budget.total == sum(cache.counted_bytes for cache in (*caches, *modest)) <= 10_000
    assert not any(cache.problem for cache in modest)
    assert any(cache.problem for cache in caches)


def test_caches_are_searched_for_the_largest_once_for_much_growth() -> None:
    budget = CacheBudget(CacheLimits(total_bytes=64_000))
    searched = 0

    class Counting(Cache):
        @property
        def tenant(self) -> Tenant:
            nonlocal searched
            searched += 1
            return ("", "many")

        @tenant.setter
        def tenant(self, _: Tenant) -> None: ...

    caches = [Counting(budget) for _ in range(600)]
    for each in caches:
        each.grow(100)
    grown = caches[0]
    for _ in range(10_000):
        grown.grow(1)
    assert 0 < searched <= 10 * len(caches)
