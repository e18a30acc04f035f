"""Rate limits for new connections and for refused calls, and the networks of peers."""

import pytest

from milo_discoveryd.server.connections.connection_rates import (
    CALL_RATE,
    MAX_DEBT,
    MAX_ORIGINS,
    REFUSED_CALL_RATE,
    CallRateLimiter,
    ConnectRateLimiter,
    PausedError,
    RefusedCallLimiter,
    network,
    peer_address,
)
from milo_kube.rate_limit import Rate

BURST = int(REFUSED_CALL_RATE.burst)


def test_connect_rate_limiter_allows_burst_then_rate() -> None:
    limiter = ConnectRateLimiter(Rate(2, 3))
    assert [limiter.admit("a", 0) for _ in range(5)] == [True, True, True, False, False]
    assert [limiter.admit("a", now) for now in (0.4, 0.5, 0.6, 1.0)] == [False, True, False, True]
    assert [limiter.admit("a", 1000) for _ in range(5)] == [True, True, True, False, False]


def test_connect_rate_limiter_is_per_address() -> None:
    limiter = ConnectRateLimiter(Rate(1, 1))
    assert [limiter.admit(place, 0) for place in "aabb"] == [True, False, True, False]


def test_connect_rate_limiter_charges_more_for_failures_than_for_connections() -> None:
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


def test_connect_rate_limiter_evicts_addresses_beyond_the_maximum() -> None:
    limiter = ConnectRateLimiter(Rate(1, 1))
    for number in range(2 * MAX_ORIGINS):
        limiter.admit(str(number), 0)
    assert len(limiter._buckets) == MAX_ORIGINS
    assert not limiter.admit(str(2 * MAX_ORIGINS - 1), 0)


def test_refused_calls_within_the_rate_do_not_throttle_the_owner() -> None:
    limiter = RefusedCallLimiter()
    assert [limiter.charge(["uid 1"], 0.0) for _ in range(BURST)] == [0.0] * BURST
    limiter.admit(["uid 1"], 0.0)
    assert limiter.charge(["uid 1"], 1.0) == 0.0


def test_owner_with_too_many_refused_calls_is_throttled_without_affecting_other_owners() -> None:
    limiter = RefusedCallLimiter()
    pauses = [limiter.charge(["uid 1"], 0.0) for _ in range(BURST + 100)]
    assert pauses[-1] == pytest.approx(100 / REFUSED_CALL_RATE.per_second)
    with pytest.raises(PausedError, match=r"connect again in 1\.5 s"):
        limiter.admit(["uid 1"], 0.5)
    limiter.admit(["uid 2"], 0.5)
    limiter.admit(["uid 1"], pauses[-1])


def test_refused_calls_throttle_every_identity_in_a_certificate() -> None:
    limiter = RefusedCallLimiter()
    for _ in range(BURST + 1):
        limiter.charge(["dns:a", "dns:b"], 0.0)
    for names in (["dns:a"], ["dns:b"], ["dns:b", "dns:c"]):
        with pytest.raises(PausedError):
            limiter.admit(names, 0.0)


def test_refused_call_throttling_has_a_maximum_duration() -> None:
    limiter = RefusedCallLimiter()
    for _ in range(100 * BURST):
        limiter.charge(["uid 1"], 0.0)
    limiter.admit(["uid 1"], MAX_DEBT / REFUSED_CALL_RATE.per_second)


@pytest.mark.parametrize(
    ("address", "peer", "counts_as"),
    [
        (("192.0.2.1", 5), "ipv4:192.0.2.1:5", "ipv4:192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "ipv6:[2001:db8:1:2:3:4:5:6]:5", "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 7, 0, 0), "ipv6:[2001:db8:1:2::9]:7", "2001:db8:1:2::/64"),
        (("2001:db8:1:3::9", 7, 0, 0), "ipv6:[2001:db8:1:3::9]:7", "2001:db8:1:3::/64"),
        (("::ffff:192.0.2.1", 7, 0, 0), "ipv6:[::ffff:192.0.2.1]:7", "ipv4:192.0.2.1"),
        (("fe80::1%eth0", 7, 0, 2), "ipv6:[fe80::1%eth0]:7", "fe80::/64"),
        ("", "unix:", "unix:"),
    ],
)
def test_peers_are_grouped_by_ipv4_address_or_ipv6_64_prefix(address: object, peer: str, counts_as: str) -> None:
    assert peer_address(address) == peer
    assert network(peer) == counts_as


def test_owner_with_too_many_calls_waits_without_affecting_other_owners() -> None:
    limiter, burst = CallRateLimiter(), int(CALL_RATE.burst)
    assert limiter.take(["uid 1"], burst + 100, 0.0) == 0.0
    for _ in range(2):
        assert limiter.take(["uid 1"], 100, 0.0) == pytest.approx(100 / CALL_RATE.per_second)
    assert limiter.take(["uid 2"], 100, 0.0) == 0.0
    assert limiter.take(["uid 2", "uid 1"], 100, 0.0) == pytest.approx(100 / CALL_RATE.per_second)
    assert limiter.take(["uid 1"], 1, 0.1) == 0.0
