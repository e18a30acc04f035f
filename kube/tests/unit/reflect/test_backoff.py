"""Backoff between retries."""

import pytest

from milo_kube.reflect.backoff import Backoff

BACKOFF = Backoff(first_s=0.5, cap_s=15.0)


@pytest.mark.parametrize(("attempt", "least"), [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 15.0), (1000, 15.0)])
def test_backoff_doubles_up_to_cap_with_jitter(attempt: int, least: float) -> None:
    assert BACKOFF.delay(attempt, lambda: 0.0) == least
    assert BACKOFF.delay(attempt, lambda: 0.5) == 1.5 * least
