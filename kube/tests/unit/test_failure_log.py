"""Tests of rate-limited logs of repeated handler failures."""

from __future__ import annotations

from milo_kube.failure_log import FailureLog


def failure(kind: type[Exception] = ValueError) -> Exception:
    return kind()


def test_repeated_failures_are_counted_and_summarized_once_per_interval():
    failures = FailureLog(interval=10)
    assert failures.is_new("a", failure(), 0)
    assert not any(failures.is_new(name, failure(), 1) for name in "aabc")
    assert failures.summaries(9) == []
    assert failures.summaries(10) == [(4, 3, "")]
    assert not failures.is_new("a", failure(), 11)
    assert failures.summaries(20) == [(1, 1, "")]


def test_failure_that_did_not_occur_for_an_interval_is_logged_as_new():
    failures = FailureLog(interval=10)
    failures.is_new("a", failure(), 0)
    assert failures.summaries(10) == []
    assert not failures
    assert failures.is_new("a", failure(), 11)


def test_first_failure_of_each_exception_type_is_logged_as_new():
    failures = FailureLog(interval=10)
    assert failures.is_new("a", failure(ValueError), 0)
    assert failures.is_new("a", failure(KeyError), 0)
    assert not failures.is_new("a", failure(KeyError), 0)


def test_number_of_tracked_exception_types_is_bounded():
    failures = FailureLog(interval=10)
    new = [failures.is_new("a", failure(type(f"E{n}", (Exception,), {})), 0) for n in range(100)]
    assert new.count(True) == 65


def test_failures_of_one_cluster_leave_room_for_those_of_others():
    """An API server that gave a new reason each time hid the failures of all other clusters."""
    failures = FailureLog(interval=10, max_kinds=32)
    new = [failures.is_new("a", failure(), 0, key=("a", n), what=f"a: {n}") for n in range(100)]
    assert new.count(True) == 3
    assert failures.is_new("b", failure(), 0, key=("b", 1))
    assert not failures.is_new("b", failure(), 0, key=("b", 1), what="b: 1")
    assert failures.summaries(10) == [(97, 1, "a: 99"), (1, 1, "b: 1")]
    assert failures.is_new("", failure(), 11, key="review 1")
    assert failures.is_new("", failure(), 11, key="review 2")


def test_final_failure_summary_does_not_wait_for_the_interval():
    failures = FailureLog(interval=10)
    failures.is_new("a", failure(), 0)
    failures.is_new("a", failure(), 0)
    assert failures.summaries(1, final=True) == [(1, 1, "")]
