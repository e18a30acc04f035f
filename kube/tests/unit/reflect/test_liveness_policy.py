"""Liveness probes of a silent API server."""

from milo_kube.reflect.liveness_policy import LivenessCheck, LivenessPolicy, LivenessTracker


def silent_from(began: float = 0.0) -> LivenessTracker:
    tracker = LivenessTracker(LivenessPolicy())
    tracker.waiting_since = began
    return tracker


def due_check(tracker: LivenessTracker, now: float) -> LivenessCheck:
    check = tracker.take_due(now)
    assert check is not None, f"nothing to do at {now}"
    return check


def test_liveness_is_not_probed_while_no_data_is_awaited() -> None:
    tracker = LivenessTracker(LivenessPolicy())
    assert tracker.take_due(1000.0) is None
    assert tracker.next_at(1000.0) == 1015.0


def test_liveness_is_probed_every_fifteen_seconds_of_silence() -> None:
    tracker = silent_from(100.0)
    assert tracker.next_at(107.0) == 115.0
    assert tracker.take_due(114.9) is None
    assert tracker.take_due(115.0) == LivenessCheck(100.0)
    assert tracker.take_due(115.0) is None
    assert tracker.next_at(120.0) == 130.0
    assert tracker.take_due(130.0) == LivenessCheck(100.0)


def test_liveness_detects_stopped_server_within_a_minute() -> None:
    liveness = LivenessPolicy()
    for stopped_at in (0.0, 0.1, 7.0, 14.9, 15.1, 29.0):
        tracker, now, given_up_at = silent_from(), 0.0, None
        while given_up_at is None:
            now = tracker.next_at(now)
            is_silent = now >= stopped_at
            answered_at = now + liveness.timeout_s if is_silent else now
            if tracker.result(due_check(tracker, now), is_silent=is_silent):
                given_up_at = answered_at
        assert 35.0 <= given_up_at - stopped_at <= 50.0


def test_received_data_restarts_liveness_period() -> None:
    tracker = silent_from()
    assert not tracker.result(due_check(tracker, 15.0), is_silent=True)
    assert not tracker.result(due_check(tracker, 30.0), is_silent=True)
    tracker.waiting_since = None
    tracker.waiting_since = 31.0
    assert tracker.take_due(45.0) is None
    assert not tracker.result(due_check(tracker, 46.0), is_silent=True)


def test_probe_answer_restarts_liveness_period() -> None:
    tracker = silent_from()
    for now, is_silent in ((15.0, True), (30.0, True), (45.0, False), (60.0, True), (75.0, True)):
        assert not tracker.result(due_check(tracker, now), is_silent=is_silent)
    assert tracker.result(due_check(tracker, 90.0), is_silent=True)


def test_late_probe_result_does_not_affect_next_wait() -> None:
    tracker = LivenessTracker(LivenessPolicy(misses=1))
    tracker.waiting_since = 0.0
    check = due_check(tracker, 15.0)
    tracker.waiting_since = None
    assert not tracker.result(check, is_silent=True)
    tracker.waiting_since = 16.0
    assert not tracker.result(check, is_silent=True)
