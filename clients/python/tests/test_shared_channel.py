"""Tests of the channel that unary calls share: when it is reused, replaced and closed."""

from __future__ import annotations

from itertools import count

from milo_discovery import PermissionDenied, Unavailable
from milo_discovery._shared_channel import SharedChannel

CONNECTION_LOSS = Unavailable("connect failed", code="UNAVAILABLE")


def shared_channel() -> SharedChannel[int]:
    return SharedChannel(iter(count()).__next__)


def test_successive_calls_reuse_a_working_channel():
    shared = shared_channel()
    first = shared.acquire()
    assert shared.release(first) is None
    assert shared.acquire().channel == first.channel


def test_call_after_a_connection_loss_gets_a_new_channel():
    shared = shared_channel()
    lost = shared.acquire()
    shared.should_retry(lost, CONNECTION_LOSS)
    assert shared.release(lost) == 0
    assert shared.acquire().channel == 1


def test_call_is_retried_if_the_channel_worked_before():
    shared = shared_channel()
    connection = shared.acquire()
    assert not shared.should_retry(connection, CONNECTION_LOSS), (
        "a call is not retried if no call has succeeded on its channel"
    )
    connection = shared.acquire()
    connection.has_succeeded = True
    assert shared.should_retry(connection, CONNECTION_LOSS)
    assert not shared.should_retry(shared.acquire(), CONNECTION_LOSS), "no call has succeeded on the new channel"


def test_call_with_error_response_is_not_retried():
    shared = shared_channel()
    connection = shared.acquire()
    connection.has_succeeded = True
    assert not shared.should_retry(connection, PermissionDenied("no", code="PERMISSION_DENIED"))
    assert not shared.should_retry(connection, Unavailable("not synced", code="UNAVAILABLE", reason="NOT_SYNCED"))
    assert shared.release(connection) is None, "the channel is kept after an error response"


def test_failed_channel_is_closed_after_its_last_call():
    shared = shared_channel()
    lost, in_flight = shared.acquire(), shared.acquire()
    shared.should_retry(lost, CONNECTION_LOSS)
    assert shared.release(lost) is None
    after = shared.acquire()
    shared.should_retry(in_flight, CONNECTION_LOSS)
    assert shared.release(in_flight) == 0
    assert shared.release(after) is None, "a late failure of the old channel does not affect the new one"


def test_close_of_shared_channel_returns_the_current_channel_and_failed_ones_with_calls_in_flight():
    shared = shared_channel()
    assert shared.close() == []
    hung, failed = shared.acquire(), shared.acquire()
    shared.should_retry(failed, CONNECTION_LOSS)
    shared.release(failed)
    shared.acquire()
    assert sorted(shared.close()) == [0, 1]
    assert shared.close() == []
    assert shared.release(hung) == 0
