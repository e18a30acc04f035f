"""Which channel a call runs on, and when one is closed."""

from __future__ import annotations

from itertools import count

from milo_discovery._lane import Lanes


def lanes() -> Lanes[int]:
    return Lanes(iter(count()).__next__)


def test_calls_share_a_channel_that_works():
    shared = lanes()
    first = shared.enter()
    assert shared.leave(first) is None
    assert shared.enter().channel == first.channel


def test_after_a_failure_the_next_call_has_another_channel():
    shared = lanes()
    failing = shared.enter()
    shared.failed(failing)
    assert shared.leave(failing) == 0
    assert shared.enter().channel == 1


def test_a_call_is_made_again_where_somebody_answered_before():
    shared = lanes()
    lane = shared.enter()
    assert not shared.failed(lane), "nobody was ever there"
    lane = shared.enter()
    shared.answered(lane)
    assert shared.failed(lane), "somebody was, and may be again"
    assert not shared.failed(shared.enter()), "nobody is"


def test_a_failed_channel_is_closed_with_the_last_call_on_it():
    shared = lanes()
    failing, still_running = shared.enter(), shared.enter()
    shared.failed(failing)
    assert shared.leave(failing) is None
    after = shared.enter()
    shared.failed(still_running)
    assert shared.leave(still_running) == 0
    assert shared.leave(after) is None, "a late failure of the old one is no failure of the new one"


def test_a_closed_client_closes_the_channel_that_is_there():
    shared = lanes()
    assert shared.close() is None
    shared.enter()
    assert shared.close() == 0
