"""When a credential is good, when the next is due, and which of two counts. No clock runs here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from milo_discovery._credential import Credentials, Standing, usable_until

from .kubeconfigs import text, value

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
FIRST = value(text(token="first"), now=NOON)
SECOND_ONE = value(text(token="second"), now=NOON + 5 * MINUTE)


def holding(*offered, sent: bool = False) -> Credentials:
    credentials = Credentials()
    for each in offered:
        credentials.offer(each, sent=sent)
    return credentials


@pytest.mark.parametrize(
    ("after", "standing"),
    [
        (0 * MINUTE, Standing.FRESH),
        (5 * MINUTE - SECOND, Standing.FRESH),
        (5 * MINUTE, Standing.DUE),
        (10 * MINUTE - 6 * SECOND, Standing.DUE),
        (10 * MINUTE - 5 * SECOND, Standing.OVER),
        (20 * MINUTE, Standing.OVER),
    ],
)
def test_it_is_fresh_until_the_next_is_due_and_over_a_little_before_its_end(after, standing):
    assert holding(FIRST).standing(NOON + after) is standing


def test_before_the_first_there_is_nothing_good():
    assert Credentials().standing(NOON) is Standing.OVER


def test_who_is_sent_renewals_gives_them_time_to_come():
    fed = holding(FIRST, sent=True)
    assert fed.standing(NOON + 6 * MINUTE) is Standing.FRESH
    assert fed.standing(NOON + 6.25 * MINUTE) is Standing.DUE


def test_the_one_that_lives_longer_counts():
    assert holding(FIRST, SECOND_ONE).current.access.token == "second"
    assert holding(SECOND_ONE, FIRST).current.access.token == "second"


def test_one_without_an_end_is_never_over():
    endless = replace(FIRST, expires_at=None, refresh_after=None)
    assert holding(endless).standing(NOON + timedelta(days=999)) is Standing.FRESH


def test_a_failure_is_not_followed_by_another_attempt_at_once():
    credentials = holding(FIRST)
    due = NOON + 5 * MINUTE
    credentials.failed(due)
    assert credentials.standing(due + 0.9 * SECOND) is Standing.FRESH
    assert credentials.standing(due + SECOND) is Standing.DUE


def test_a_failure_makes_nothing_good_that_is_over():
    credentials = holding(FIRST)
    credentials.failed(NOON + 10 * MINUTE)
    assert credentials.standing(NOON + 10 * MINUTE) is Standing.OVER


@pytest.mark.parametrize(
    ("life", "margin"),
    [(10 * MINUTE, 5 * SECOND), (20 * SECOND, 2 * SECOND), (2 * SECOND, 0.2 * SECOND)],
)
def test_the_margin_is_short_for_short_lives(life, margin):
    assert usable_until(NOON + life, NOON) == NOON + life - margin
