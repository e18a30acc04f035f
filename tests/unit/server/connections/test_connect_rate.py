"""The rate limit for new connections, by network."""

from milo_discoveryd.server.connections.connection_rates import MAX_NETWORKS, ConnectRateLimiter
from milo_kube.rate_limit import Rate


def test_connect_rate_limiter_allows_burst_then_rate() -> None:
    limiter = ConnectRateLimiter(Rate(2, 3))
    assert [limiter.admit("a", 0) for _ in range(5)] == [True, True, True, False, False]
    assert [limiter.admit("a", now) for now in (0.4, 0.5, 0.6, 1.0)] == [False, True, False, True]
    assert [limiter.admit("a", 1000) for _ in range(5)] == [True, True, True, False, False]


def test_connect_rate_limiter_is_per_address() -> None:
    limiter = ConnectRateLimiter(Rate(1, 1))
    assert [limiter.admit(place, 0) for place in "aabb"] == [True, False, True, False]


def test_connect_rate_limiter_charges_failures_more() -> None:
    limiter = ConnectRateLimiter(Rate(10, 20), failure_cost=10)
    for _ in range(2):
        assert limiter.admit("a", 0)
        limiter.failed("a", 0)
    assert [limiter.admit("a", now) for now in (0, 0.09, 0.11)] == [False, False, True]
    limiter.failed("a", 0.11)
    assert [limiter.admit("a", now) for now in (1.0, 1.11)] == [False, True]


def test_connect_rate_limiter_debt_is_bounded() -> None:
    limiter = ConnectRateLimiter(Rate(10, 20), failure_cost=10)
    for _ in range(100):
        limiter.failed("a", 0)
    assert [limiter.admit("a", now) for now in (2.0, 2.11)] == [False, True]


def test_connect_rate_limiter_evicts_addresses() -> None:
    limiter = ConnectRateLimiter(Rate(1, 1))
    for number in range(2 * MAX_NETWORKS):
        limiter.admit(str(number), 0)
    assert len(limiter._buckets) == MAX_NETWORKS
    assert not limiter.admit(str(2 * MAX_NETWORKS - 1), 0)
