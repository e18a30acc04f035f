"""The renewal of a credential of this process: when attempts are due, and what is used meanwhile."""

import pytest

from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.credential_renewal import (
    BACKOFF_S,
    UNCHANGED,
    Attempting,
    CredentialRenewal,
    Failing,
    Obtained,
)
from milo_kube.moment import Moment

WALL, STEADY = 1_800_000_000.0, 5_000.0
GAP_S = 5.0
DOWN = CredentialError("down")


def after(seconds: float, *, wall_s: float = 0.0) -> Moment:
    """Return the time after so many seconds; the wall clock was also set forward by `wall_s`."""
    return Moment(WALL + seconds + wall_s, STEADY + seconds)


def token(text: str, life_s: float | None = None, *, at: float = 0.0) -> Credential:
    return Credential(token=Secret(text), expires_at=None if life_s is None else WALL + at + life_s)


def renewal(credential: Credential | None = None, *, gap_s: float = GAP_S) -> CredentialRenewal:
    made = CredentialRenewal(lambda: gap_s)
    if credential is not None:
        made.begin(after(0))
        made.succeeded(credential, after(0))
    return made


def fail(made: CredentialRenewal, seconds: float) -> None:
    made.begin(after(seconds))
    made.failed(DOWN, after(seconds))


def test_first_attempt_is_due_at_once() -> None:
    made = renewal()
    assert (made.held, made.valid(after(0)), made.failure, made.attempts_in(after(0))) == (None, None, None, 0.0)
    assert made.want(after(0))
    assert made.is_due(after(0))


@pytest.mark.parametrize(("life_s", "renewed_s"), [(3600.0, 2400.0), (20.0, 10.0), (6.0, 5.0), (0.5, 5.0)])
def test_credential_is_renewed_before_its_expiry(life_s: float, renewed_s: float) -> None:
    made = renewal(token("a", life_s))
    assert made.attempts_in(after(0)) == pytest.approx(renewed_s)
    assert made.attempts_in(after(renewed_s)) <= 1e-6


def test_credential_without_expiry_is_kept() -> None:
    made = renewal(token("a"))
    assert made.attempts_in(after(1e9)) == float("inf")
    assert made.valid(after(1e9)) == token("a")
    assert not made.is_due(after(1e9))


def test_held_credential_is_used_while_an_attempt_is_in_progress_or_fails() -> None:
    made = renewal(token("a", 600))
    made.begin(after(400))
    assert isinstance(made.state, Attempting)
    assert made.valid(after(500)) == token("a")
    assert made.attempts_in(after(500)) == float("inf")
    assert made.want(after(500))
    made.failed(DOWN, after(500))
    assert (made.valid(after(599)), made.failure) == (token("a"), DOWN)
    assert made.valid(after(600)) is None
    assert made.held is not None


def test_failed_attempts_are_repeated_with_a_backoff_until_one_succeeds() -> None:
    made, at, waits = renewal(token("a", 600)), 400.0, []
    for _ in range(6):
        fail(made, at)
        waits.append(made.attempts_in(after(at)))
        at += waits[-1]
    assert waits == [5.0, 10.0, 20.0, 40.0, BACKOFF_S[1], BACKOFF_S[1]]
    made.begin(after(at))
    made.succeeded(token("b", 600, at=at), after(at))
    assert (made.failure, made.valid(after(at))) == (None, token("b"))
    fail(made, at + 400)
    assert made.attempts_in(after(at + 400)) == 5.0


def test_request_makes_an_attempt_due_unless_the_last_one_began_a_moment_ago() -> None:
    made = renewal(token("a"))
    assert not made.want(after(GAP_S - 0.1))
    assert made.want(after(GAP_S))
    assert made.attempts_in(after(GAP_S)) == 0.0
    assert not made.is_due(after(GAP_S))  # what is held is still good
    fail(made, 100)
    fail(made, 200)
    assert made.attempts_in(after(206)) == pytest.approx(4)
    assert made.want(after(206))
    assert made.attempts_in(after(206)) == 0.0


def test_same_credential_again_is_not_requested_in_a_loop() -> None:
    same = token("a", 600)
    made = renewal(same)
    made.begin(after(400))
    made.succeeded(same, after(400))
    assert isinstance(made.state, Obtained)
    assert made.attempts_in(after(400)) == pytest.approx(UNCHANGED * 200)
    made.begin(after(420))
    made.succeeded(token("a", 600, at=400), after(420))  # its expiry is later
    assert made.attempts_in(after(420)) == pytest.approx(580 * 2 / 3)
    endless = renewal(token("a"))
    endless.begin(after(10))
    endless.succeeded(token("a"), after(10))
    assert endless.attempts_in(after(10)) == float("inf")


def test_step_of_the_wall_clock_renews_but_ends_nothing() -> None:
    made = renewal(token("a", 600))
    forward = after(10, wall_s=3600)
    assert made.attempts_in(forward) <= 0.0
    assert made.is_due(forward)
    assert made.valid(forward) == token("a")
    assert made.valid(after(601, wall_s=3600)) is None
    back = after(601, wall_s=-3600)
    assert made.attempts_in(back) <= 0.0
    assert made.valid(back) == token("a")  # a server that disagrees answers 401


def test_clock_that_stood_still_renews_but_ends_nothing() -> None:
    made = renewal(token("a", 600))
    suspended = Moment(WALL + 3600, STEADY + 10)
    assert made.is_due(suspended)
    assert made.valid(suspended) == token("a")


def test_failure_without_a_credential_is_kept() -> None:
    made = renewal()
    fail(made, 0)
    assert made.state == Failing(None, STEADY, STEADY + 5.0, 1, DOWN)
    assert (made.held, made.valid(after(1)), made.failure) == (None, None, DOWN)
    assert not made.want(after(1))
    made.begin(after(6))
    assert made.failure is DOWN
