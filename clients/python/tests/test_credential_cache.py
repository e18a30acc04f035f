"""Tests of cached credentials: their states over time, and which of two credentials is kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery._credential_cache import CredentialCache, CredentialState, usable_until

from .kubeconfigs import text, value

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
FIRST = value(text(token="first"), now=NOON)
SECOND_ONE = value(text(token="second"), now=NOON + 5 * MINUTE)


def holding(*offered, pushed: bool = False) -> CredentialCache:
    credentials = CredentialCache()
    for credential in offered:
        credentials.offer(credential, NOON + 5 * MINUTE, pushed=pushed)
    return credentials


@pytest.mark.parametrize(
    ("after", "state"),
    [
        (0 * MINUTE, CredentialState.FRESH),
        (5 * MINUTE - SECOND, CredentialState.FRESH),
        (5 * MINUTE, CredentialState.REFRESH_DUE),
        (10 * MINUTE - 6 * SECOND, CredentialState.REFRESH_DUE),
        (10 * MINUTE - 5 * SECOND, CredentialState.EXPIRED),
        (20 * MINUTE, CredentialState.EXPIRED),
    ],
)
def test_credential_is_fresh_then_due_for_refresh_then_expired(after, state):
    assert holding(FIRST).state(NOON + after) is state


def test_empty_credential_cache_is_expired():
    assert CredentialCache().state(NOON) is CredentialState.EXPIRED


def test_pushed_credential_delays_the_refresh():
    cache = holding(FIRST, pushed=True)
    assert cache.state(NOON + 6 * MINUTE) is CredentialState.FRESH
    assert cache.state(NOON + 6.25 * MINUTE) is CredentialState.REFRESH_DUE


def test_credential_cache_keeps_the_credential_that_expires_later():
    assert holding(FIRST, SECOND_ONE).current.access.token == "second"
    assert holding(SECOND_ONE, FIRST).current.access.token == "second"


def test_credential_cache_keeps_a_credential_issued_later_with_a_shorter_lifetime():
    shorter = value(text(token="shorter"), now=NOON + MINUTE, life=MINUTE)
    assert holding(FIRST, shorter).current.access.token == "shorter"


def test_issued_credential_is_not_replaced_by_an_older_pushed_credential():
    shorter = value(text(token="shorter"), now=NOON + MINUTE, life=MINUTE)
    cache = holding(FIRST, pushed=True)
    cache.offer(shorter, NOON + MINUTE)
    cache.offer(FIRST, NOON + MINUTE, pushed=True)
    assert cache.current.access.token == "shorter"


def test_credential_that_was_issued_in_the_future_is_replaced():
    cache = holding(value(text(token="ahead"), now=NOON + 60 * MINUTE))
    cache.offer(FIRST, NOON)
    assert cache.current.access.token == "first"


def test_credential_of_a_former_endpoint_is_expired_and_replaced_by_an_older_one():
    cache = holding(SECOND_ONE)
    assert cache.state(NOON + 5 * MINUTE, "https://moved.test") is CredentialState.EXPIRED
    cache.offer(FIRST, NOON + 5 * MINUTE, endpoint="https://moved.test")
    assert cache.current.access.token == "first"
    assert cache.state(NOON, "https://moved.test") is CredentialState.FRESH


def test_credential_without_expiry_never_expires():
    without_expiry = replace(FIRST, expires_at=None, refresh_after=None)
    assert holding(without_expiry).state(NOON + timedelta(days=999)) is CredentialState.FRESH


def test_failed_credential_requests_are_repeated_after_growing_delays():
    credentials = holding(FIRST)
    now = NOON + 5 * MINUTE
    for least, most in ((0.5, 1), (1, 2), (2, 4), (2.5, 5), (2.5, 5)):
        credentials.request_failed(now)
        assert not credentials.may_request(now + (least - 0.1) * SECOND)
        assert credentials.state(now + (least - 0.1) * SECOND) is CredentialState.FRESH
        now += most * SECOND
        assert credentials.may_request(now)
        assert credentials.state(now) is CredentialState.REFRESH_DUE
    credentials.requested(FIRST, now)
    credentials.request_failed(now)
    assert credentials.may_request(now + SECOND), "a success resets the backoff"


def test_delay_that_the_daemon_states_is_kept():
    credentials = holding(FIRST)
    credentials.request_failed(NOON, retry_after=MINUTE)
    assert not credentials.may_request(NOON + 59 * SECOND)
    assert credentials.may_request(NOON + 61 * SECOND)


def test_failed_request_does_not_extend_an_expired_credential():
    credentials = holding(FIRST)
    credentials.request_failed(NOON + 10 * MINUTE)
    assert credentials.state(NOON + 10 * MINUTE) is CredentialState.EXPIRED


def test_credential_that_is_due_on_arrival_is_requested_again_after_a_minimum_interval():
    credentials = holding(FIRST)
    ahead = NOON + 7 * MINUTE
    credentials.requested(FIRST, ahead)
    assert credentials.state(ahead + 4.9 * SECOND) is CredentialState.FRESH
    assert credentials.state(ahead + 5 * SECOND) is CredentialState.REFRESH_DUE


def test_minimum_interval_ends_with_another_endpoint_a_clock_set_back_or_a_pushed_credential():
    credentials = CredentialCache()
    credentials.requested(FIRST, NOON, "https://a.test")
    assert credentials.may_request(NOON, "https://a.test"), "the first one may be rejected by now"
    credentials.requested(FIRST, NOON, "https://a.test")
    assert not credentials.may_request(NOON, "https://a.test")
    assert credentials.may_request(NOON, "https://b.test")
    assert credentials.may_request(NOON - SECOND, "https://a.test")
    credentials.offer(SECOND_ONE, NOON, endpoint="https://a.test", pushed=True)
    assert credentials.may_request(NOON, "https://a.test")


@pytest.mark.parametrize(
    ("life", "margin"),
    [(10 * MINUTE, 5 * SECOND), (20 * SECOND, 2 * SECOND), (2 * SECOND, 0.2 * SECOND)],
)
def test_expiry_margin_is_a_tenth_of_short_lifetimes(life, margin):
    assert usable_until(NOON + life, NOON) == NOON + life - margin


def test_credential_that_was_issued_after_its_expiry_has_no_expiry_margin():
    assert usable_until(NOON, NOON + MINUTE) == NOON


def test_expiry_margin_does_not_precede_the_first_year():
    first = datetime.min.replace(tzinfo=UTC)
    assert usable_until(first, None) == first
