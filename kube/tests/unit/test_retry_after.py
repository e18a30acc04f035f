"""The header Retry-After."""

from datetime import UTC, datetime

import pytest

from milo_kube.retry_after import LONGEST_S, delay_s, stated

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0.0),
        ("30", 30.0),
        ("999999999", 999999999.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:59:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", None),  # without a time zone
        ("Thu, 01 Jan 99999 12:00:30 GMT", None),
        (f"Thu, 01 Jan {2**31} 12:00:30 GMT", None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("1e9", None),
        ("\uff19", None),
        ("soon", None),
        ("9" * 5000, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_retry_after_accepts_seconds_and_dates_and_ignores_other_values(text: str, wanted: float | None) -> None:
    assert stated({"Retry-After": text}, NOW) == wanted


@pytest.mark.parametrize(
    ("own_s", "stated_s", "delay"),
    [
        (0.4, None, 0.4),
        (0.4, 5.0, 5.4),  # with the jitter of the client's own delay
        (8.0, 5.0, 8.0),
        (8.0, 7.5, 8.5),  # at most a second of jitter
        (0.4, 0.0, 0.4),
        (0.4, 1e9, LONGEST_S + 0.4),
    ],
)
def test_retry_delay_honors_retry_after_and_the_backoff_of_the_client(
    own_s: float, stated_s: float | None, delay: float
) -> None:
    assert delay_s(own_s, stated_s) == delay
