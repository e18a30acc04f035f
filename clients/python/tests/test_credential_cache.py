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


def test_failed_credential_refresh_is_retried_after_a_delay():
    credentials = holding(FIRST)
    due = NOON + 5 * MINUTE
    credentials.refresh_failed(due)
    assert credentials.state(due + 0.9 * SECOND) is CredentialState.FRESH
    assert credentials.state(due + SECOND) is CredentialState.REFRESH_DUE


def test_failed_refresh_does_not_extend_an_expired_credential():
    credentials = holding(FIRST)
    credentials.refresh_failed(NOON + 10 * MINUTE)
    assert credentials.state(NOON + 10 * MINUTE) is CredentialState.EXPIRED


@pytest.mark.parametrize(
    ("life", "margin"),
    [(10 * MINUTE, 5 * SECOND), (20 * SECOND, 2 * SECOND), (2 * SECOND, 0.2 * SECOND)],
)
def test_expiry_margin_is_a_tenth_of_short_lifetimes(life, margin):
    assert usable_until(NOON + life, NOON) == NOON + life - margin


def test_credential_that_was_issued_after_its_expiry_has_no_expiry_margin():
    assert usable_until(NOON, NOON + MINUTE) == NOON
