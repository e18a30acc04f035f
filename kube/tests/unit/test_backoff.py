"""Tests of the delays of the exponential backoff."""

from __future__ import annotations

from datetime import timedelta

from milo_discovery import BackoffPolicy
from milo_kube.backoff import StreamBackoff

POLICY = BackoffPolicy(initial=timedelta(seconds=1), maximum=timedelta(seconds=5), healthy=timedelta(seconds=10))
AT_ONCE = timedelta()


def always(draw: float) -> StreamBackoff:
    return StreamBackoff(POLICY, draw=lambda: draw)


def test_backoff_doubles_up_to_the_maximum():
    backoff = always(1.0)
    assert [backoff.failed(ran=AT_ONCE).total_seconds() for _ in range(5)] == [1, 2, 4, 5, 5]


def test_backoff_jitter_is_at_most_half():
    backoff = always(0.0)
    assert [backoff.failed(ran=AT_ONCE).total_seconds() for _ in range(4)] == [0.5, 1, 2, 2.5]


def test_backoff_resets_after_a_healthy_run():
    backoff = always(1.0)
    for _ in range(3):
        backoff.failed(ran=timedelta(seconds=9.9))
    assert backoff.failed(ran=timedelta(seconds=10)) == timedelta(seconds=1)


def test_backoff_adds_retry_after():
    assert always(1.0).failed(ran=AT_ONCE, retry_after=timedelta(seconds=30)) == timedelta(seconds=31)


def test_backoff_does_not_overflow():
    backoff = always(1.0)
    for _ in range(10_000):
        delay = backoff.failed(ran=AT_ONCE)
    assert delay == timedelta(seconds=5)
