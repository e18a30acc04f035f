"""The rate limit for refused calls."""

import pytest

from milo_discoveryd.server.connections.connection_rates import (
    MAX_DEBT,
    REFUSED_CALL_RATE,
    PausedError,
    RefusedCallLimiter,
)

BURST = int(REFUSED_CALL_RATE.burst)


def test_refused_calls_within_the_rate_cause_no_pause() -> None:
    limiter = RefusedCallLimiter()
    assert [limiter.charge(["uid 1"], 0.0) for _ in range(BURST)] == [0.0] * BURST
    limiter.admit(["uid 1"], 0.0)
    assert limiter.charge(["uid 1"], 1.0) == 0.0


def test_owner_with_too_many_refused_calls_is_paused_and_others_are_not() -> None:
    limiter = RefusedCallLimiter()
    pauses = [limiter.charge(["uid 1"], 0.0) for _ in range(BURST + 100)]
    assert pauses[-1] == pytest.approx(100 / REFUSED_CALL_RATE.per_second)
    with pytest.raises(PausedError, match=r"connect again in 1\.5 s"):
        limiter.admit(["uid 1"], 0.5)
    limiter.admit(["uid 2"], 0.5)
    limiter.admit(["uid 1"], pauses[-1])


def test_refused_calls_pause_every_name_of_a_certificate() -> None:
    limiter = RefusedCallLimiter()
    for _ in range(BURST + 1):
        limiter.charge(["dns:a", "dns:b"], 0.0)
    for names in (["dns:a"], ["dns:b"], ["dns:b", "dns:c"]):
        with pytest.raises(PausedError):
            limiter.admit(names, 0.0)


def test_refused_call_pause_is_bounded() -> None:
    limiter = RefusedCallLimiter()
    for _ in range(100 * BURST):
        limiter.charge(["uid 1"], 0.0)
    limiter.admit(["uid 1"], MAX_DEBT / REFUSED_CALL_RATE.per_second)
