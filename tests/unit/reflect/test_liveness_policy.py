"""When a server that says nothing is asked whether it is there, and when it is given up."""

from milo_kube.reflect.liveness_policy import LivenessCheck, LivenessPolicy, LivenessTracker


def silent_from(began: float = 0.0) -> LivenessTracker:
    vigil = LivenessTracker(LivenessPolicy())
    vigil.start_wait(began)
    return vigil


def looked(vigil: LivenessTracker, now: float) -> LivenessCheck:
    look = vigil.take_due(now)
    assert look is not None, f"nothing to do at {now}"
    return look


def test_liveness_is_not_probed_without_pending_wait() -> None:
    vigil = LivenessTracker(LivenessPolicy())
    assert vigil.take_due(1000.0) is None
    assert vigil.next_at(1000.0) == 1015.0


def test_liveness_is_probed_after_fifteen_seconds_of_silence_and_every_fifteen() -> None:
    vigil = silent_from(100.0)
    assert vigil.next_at(107.0) == 115.0
    assert vigil.take_due(114.9) is None
    assert vigil.take_due(115.0) == LivenessCheck(1)
    assert vigil.take_due(115.0) is None
    assert vigil.next_at(120.0) == 130.0
    assert vigil.take_due(130.0) == LivenessCheck(1)


def test_liveness_detects_stopped_server_within_a_minute() -> None:
    liveness = LivenessPolicy()
    for stopped_at in (0.0, 0.1, 7.0, 14.9, 15.1, 29.0):
        vigil, now, given_up_at = silent_from(), 0.0, None
        while given_up_at is None:
            now = vigil.next_at(now)
            is_silent = now >= stopped_at
            answered_at = now + liveness.timeout_s if is_silent else now
            if vigil.result(looked(vigil, now), is_silent=is_silent):
                given_up_at = answered_at
        assert 35.0 <= given_up_at - stopped_at <= 50.0


def test_data_restarts_liveness_period() -> None:
    vigil = silent_from()
    assert not vigil.result(looked(vigil, 15.0), is_silent=True)
    assert not vigil.result(looked(vigil, 30.0), is_silent=True)
    vigil.end_wait()
    vigil.start_wait(31.0)
    assert vigil.take_due(45.0) is None
    assert not vigil.result(looked(vigil, 46.0), is_silent=True)


def test_probe_answer_restarts_liveness_period() -> None:
    vigil = silent_from()
    for now, is_silent in ((15.0, True), (30.0, True), (45.0, False), (60.0, True), (75.0, True)):
        assert not vigil.result(looked(vigil, now), is_silent=is_silent)
    assert vigil.result(looked(vigil, 90.0), is_silent=True)


def test_late_probe_result_does_not_affect_next_wait() -> None:
    vigil = LivenessTracker(LivenessPolicy(misses=1))
    vigil.start_wait(0.0)
    look = looked(vigil, 15.0)
    vigil.end_wait()
    assert not vigil.result(look, is_silent=True)
    vigil.start_wait(16.0)
    assert not vigil.result(look, is_silent=True)
