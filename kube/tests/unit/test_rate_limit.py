"""Token buckets, single and keyed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_kube.rate_limit import KeyedBuckets, Rate, TokenBucket

RATE = Rate(per_second=2.0, burst=3.0)


def test_token_bucket_starts_full_and_then_limits_to_its_rate() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.4) == pytest.approx(0.1)
    assert bucket.take(0.5) == 0.0


def test_denied_take_from_token_bucket_consumes_no_tokens() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.take(0.0, 3.0)
    assert {bucket.take(0.0) for _ in range(100)} == {0.5}


def test_token_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert bucket.take(1e9, 3.0) == 0.0
    assert bucket.take(1e9) > 0


def test_token_bucket_charge_goes_into_debt_up_to_the_debt_limit() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert bucket.charge(0.0, 3.0) == 0.0
    assert bucket.charge(0.0) == 0.5
    assert bucket.charge(0.0, 100.0, max_debt=4.0) == 2.0
    assert bucket.take(2.0) == 0.5
    assert bucket.take(2.5) == 0.0


def test_token_bucket_with_lowered_burst_discards_excess_tokens() -> None:
    bucket = TokenBucket(RATE, 0.0)
    bucket.change_rate(Rate(1.0, 1.0))
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == 1.0


@given(st.lists(st.floats(0, 10), max_size=50))
def test_token_bucket_never_grants_more_than_burst_plus_rate(waits: list[float]) -> None:
    bucket, now, granted = TokenBucket(RATE, 0.0), 0.0, 0
    for wait in waits:
        now += wait
        while bucket.take(now) == 0.0:
            granted += 1
    assert granted <= math.floor(RATE.burst + now * RATE.per_second + 1e-6)


def test_keyed_token_buckets_do_not_share_tokens() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(10)
    assert buckets.bucket("a", RATE, 0.0).take(0.0, 3.0) == 0.0
    assert buckets.bucket("a", RATE, 0.0).take(0.0) > 0
    assert buckets.bucket("b", RATE, 0.0).take(0.0) == 0.0


def test_least_recently_used_token_bucket_is_evicted() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(2)
    for key in ("a", "b", "a", "c"):
        buckets.bucket(key, RATE, 0.0).take(0.0, 3.0)
    assert len(buckets) == 2
    assert buckets.bucket("a", RATE, 0.0).take(0.0) > 0
    assert buckets.bucket("b", RATE, 0.0).take(0.0) == 0.0
