"""Comparison of this machine's clock with the Date header of a response."""

from datetime import UTC, datetime

import pytest

from milo_discoveryd.watchers.transport import seconds_ahead

NOON = datetime(2027, 1, 15, 12, 0, tzinfo=UTC).timestamp()
DATE = "Fri, 15 Jan 2027 12:00:00 GMT"


@pytest.mark.parametrize(
    ("sent_at", "received_at", "ahead_s"),
    [
        (NOON, NOON + 0.1, 0.0),
        (NOON - 0.5, NOON + 0.5, 0.0),
        (NOON - 3600, NOON - 3600, 3600.0),
        (NOON + 3600, NOON + 3601, -3600.0),
        (NOON - 3600, NOON + 3600, 0.0),
    ],
    ids=["equal", "within the request", "slow here", "fast here", "slow response"],
)
def test_local_clock_is_compared_with_the_date_of_the_response(
    sent_at: float, received_at: float, ahead_s: float
) -> None:
    assert seconds_ahead(DATE, sent_at, received_at) == ahead_s


@pytest.mark.parametrize(
    "date",
    [
        *(None, "", "yesterday", "Fri, 15 Jan 2027 12:00:00 CET", "Fri, 32 Jan 2027 12:00:00 GMT"),
        f"Fri, 15 Jan {2**31} 12:00:00 GMT",
    ],
)
def test_missing_or_malformed_date_is_ignored(date: str | None) -> None:
    assert seconds_ahead(date, 0.0, 0.0) == 0.0
