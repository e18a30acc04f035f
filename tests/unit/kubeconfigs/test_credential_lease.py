"""Leases: when to renew a credential, and whether it may still be issued."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.credential_lease import (
    BACKOFF_S,
    FIRST_RENEWAL,
    LEAST_RENEWAL_S,
    MAX_RENEWAL_S,
    REFRESH,
    RENEWAL,
    CredentialLease,
    Empty,
    Expired,
    Fresh,
    Renewing,
    Retrying,
    margin_s,
    refresh_at,
    useful_s,
)
from milo_kube.moment import Moment
from tests.unit.kubeconfigs.issued import minted

DOWN = BackendError("it is down")


def at(steady: float, *, wall: float | None = None) -> Moment:
    """Return a moment whose wall clock is 1000 s ahead of the steady clock, unless `wall` is given."""
    return Moment(steady + 1000 if wall is None else wall, steady)


def lease(draw: Callable[[], float] = lambda: 0.5) -> CredentialLease:
    return CredentialLease(draw)


def fresh(token: str = "t1", *, life_s: float = 100.0) -> CredentialLease:
    """Return a lease that received its first credential at 0."""
    made = lease()
    made.begin()
    made.succeeded(minted(token, 1000, life_s), at(0))
    return made


def token(found: IssuedCredential | None) -> str | None:
    return None if found is None or found.credential.token is None else found.credential.token.reveal()


def test_credential_lease_without_a_credential_is_empty_and_not_due() -> None:
    empty = lease()
    assert empty.state == Empty()
    assert (empty.valid(at(0)), empty.useful(at(0)), empty.due_at, empty.failure) == (None, None, None, None)
    assert not empty.check(at(0))


def test_credential_lease_renewal_time_has_jitter() -> None:
    for draw, (first, later) in {0.0: (10, 36), 0.5: (26, 39), 1.0: (42, 42)}.items():
        made = lease(lambda draw=draw: draw)  # type: ignore[misc]
        made.begin()
        made.succeeded(minted("t1", 1000), at(0))
        assert made.due_at == pytest.approx(first)
        made.begin()
        made.succeeded(minted("t2", 1050), at(50))
        assert made.due_at == pytest.approx(50 + later)
    assert FIRST_RENEWAL[0] < RENEWAL[0] < RENEWAL[1] == FIRST_RENEWAL[1] < REFRESH[0]


def test_credential_lease_renews_credential_received_past_its_renewal_time_at_once() -> None:
    made = lease()
    made.begin()
    made.succeeded(minted("t1", 920), at(0))
    assert made.due_at == pytest.approx(0.2)


def test_renewal_interval_of_long_lived_credential_is_bounded() -> None:
    made = fresh(life_s=1e7)
    assert made.due_at is not None
    assert made.due_at <= MAX_RENEWAL_S * 1.1


def test_credential_lease_issues_current_credential_during_renewal() -> None:
    made = fresh()
    assert made.check(at(50))
    assert token(made.begin()) == "t1"
    assert made.is_renewing
    assert made.due_at is None
    assert not made.check(at(60))
    assert token(made.useful(at(60))) == "t1"
    made.succeeded(minted("t2", 1060), at(60))
    assert token(made.useful(at(60))) == "t2"


def test_credential_lease_issues_credential_with_enough_lifetime_left() -> None:
    made = fresh(life_s=600)
    assert token(made.useful(at(419))) == "t1"
    assert made.useful(at(421)) is None
    assert token(made.valid(at(589))) == "t1"
    assert made.valid(at(590)) is None


@pytest.mark.parametrize(("life_s", "useful", "margin"), [(3600, 1080, 10), (600, 180, 10), (160, 60, 8), (20, 8, 1)])
def test_credential_lease_minimum_remaining_time_depends_on_lifetime(
    life_s: float, useful: float, margin: float
) -> None:
    assert (useful_s(life_s), margin_s(life_s)) == (useful, margin)
    assert useful < (1 - RENEWAL[1]) * life_s


def test_credential_lease_retries_with_exponential_backoff() -> None:
    made = fresh(life_s=1000)
    waits = []
    now = 500.0
    for _ in range(8):
        made.begin()
        made.failed(DOWN, at(now))
        assert isinstance(made.state, Retrying)
        assert made.due_at is not None
        waits.append(made.due_at - now)
        now = made.due_at
    assert waits == pytest.approx([0.375, 0.75, 1.5, 3, 6, 11.25, 11.25, 11.25])
    assert waits[-1] <= BACKOFF_S[1]
    assert made.failure is DOWN
    made.begin()
    assert made.failure is DOWN
    made.succeeded(minted("t2", now + 1000), at(now))
    assert made.failure is None


def test_credential_lease_retry_interval_depends_on_lifetime() -> None:
    for life_s, waited_s in ((4000, 11.25), (200, 3.75), (10, 0.375)):
        made = fresh(life_s=life_s)
        for _ in range(8):
            made.begin()
            made.failed(DOWN, at(life_s / 2))
        assert made.due_at == pytest.approx(life_s / 2 + waited_s)


@pytest.mark.parametrize("life_s", [10, 20, 60, 200, 600, 3600])
def test_credential_lease_issues_credentials_throughout_outage_of_half_a_lifetime(life_s: float) -> None:
    """The outage begins at the latest time at which a renewal is due."""
    made = fresh(life_s=life_s)
    now = RENEWAL[1] * life_s
    back_at = now + life_s / 2
    while now < back_at:
        made.begin()
        made.failed(DOWN, at(now))
        assert made.due_at is not None
        now = made.due_at
    assert made.valid(at(now)) is not None


def test_credential_lease_respects_retry_after_within_limits() -> None:
    for asked, waited in ((5.0, 5.375), (1e9, BACKOFF_S[1] + 0.375), (None, 0.375)):
        made = fresh()
        made.begin()
        made.failed(DOWN, at(50), asked)
        assert made.due_at == pytest.approx(50 + waited)


def test_credential_lease_issues_last_credential_until_expiry() -> None:
    made = fresh()
    made.begin()
    made.failed(DOWN, at(80))
    assert token(made.valid(at(94))) == "t1"
    assert made.valid(at(96)) is None
    assert made.check(at(100))
    assert isinstance(made.state, Expired)
    assert (made.valid(at(100)), made.begin()) == (None, None)
    made.failed(DOWN, at(101))
    assert isinstance(made.state, Expired)
    assert not made.check(at(101))


def test_credential_of_a_lease_may_expire_during_its_renewal() -> None:
    made = fresh()
    made.begin()
    assert (made.valid(at(100)), token(made.held), lease().held) == (None, "t1", None)
    assert isinstance(made.state, Renewing)
    made.failed(DOWN, at(101))
    assert isinstance(made.state, Expired)


def test_credential_leases_are_ordered_by_expiry_of_their_credentials() -> None:
    sooner, later = fresh(life_s=50), fresh(life_s=60)
    assert sorted([later, sooner, lease()], key=lambda made: made.ends_at)[1:] == [sooner, later]


def test_credential_lease_replaces_unexpectedly_expired_credential_at_once() -> None:
    made = fresh()
    assert made.check(at(1, wall=5000))  # the host was suspended, or the clock was set
    assert made.state == Empty()


def test_clock_set_back_does_not_extend_credential_lease() -> None:
    made = fresh()
    assert made.valid(at(99, wall=200)) is None
    assert made.valid(at(94, wall=200)) is not None


def test_credential_received_before_the_clock_was_set_back_is_renewed_and_issued_until_then() -> None:
    """Found by an attacker: a certificate that is not valid before next year was issued for hours."""
    made = fresh()
    assert not made.check(at(1, wall=999))
    assert made.check(at(1, wall=500))
    made.begin()
    assert token(made.valid(at(1, wall=500))) == "t1"
    made.succeeded(minted("t1", 500, 100.0), at(1, wall=500))
    assert not made.check(at(1, wall=500)), "the issuer has the same credential: it is not requested all the time"


def test_credential_lease_retries_with_backoff_if_issuer_returns_the_same_credential() -> None:
    made = fresh()
    for now, due_in in ((50, 5), (90, 1), (99.9, 0.2)):
        made.begin()
        made.succeeded(minted("t1", 1000), at(now))
        assert isinstance(made.state, Fresh)
        assert made.due_at == pytest.approx(now + due_in)
    assert made.valid(at(96)) is None


def test_credentials_of_a_cluster_are_renewed_at_intervals_whatever_lifetimes_they_state() -> None:
    """Found by an attacker: tenants wrote tokens valid for 0.4 s, each of which was sent to all streams."""
    made = CredentialLease(lambda: 0.5, least_renewal_s=LEAST_RENEWAL_S)
    now = 0.0
    for number, due_in in enumerate((0.2, 20, 20, 20)):
        made.begin()
        made.succeeded(minted(f"t{number}", now + 1000, 0.4), at(now))
        assert made.due_at == pytest.approx(now + due_in)
        now += due_in
        assert made.check(at(now))
    made.begin()
    made.succeeded(minted("old", 0, 1000 + now + 1), at(now))
    assert made.due_at == pytest.approx(now + 20)
    assert not made.check(at(now + 2))
    assert (made.held, "expired 19.0 s before" in str(made.failure)) == (None, True)


@pytest.mark.parametrize("life_s", [60, 600, 3600])
def test_interval_of_renewals_changes_nothing_for_credentials_valid_for_a_minute_or_more(life_s: float) -> None:
    for draw in (0.0, 0.5, 1.0):
        paced, free = (
            CredentialLease(lambda draw=draw: draw, least_renewal_s=LEAST_RENEWAL_S),
            lease(lambda draw=draw: draw),
        )  # type: ignore[misc]
        for number in range(3):
            for each in (paced, free):
                each.begin()
                each.succeeded(minted(f"t{number}", 1000 + number, life_s), at(number))
            assert paced.due_at == free.due_at


def test_credential_lease_rejects_concurrent_renewals() -> None:
    made = lease()
    made.begin()
    with pytest.raises(AssertionError):
        made.begin()


@given(st.floats(0, 1, exclude_max=True), st.floats(1, 1e8), st.floats(0, 0.999))
def test_kubeconfig_refresh_time_is_before_expiry(draw: float, life_s: float, part: float) -> None:
    given = minted("t1", 1000, life_s)
    now = 1000 + part * life_s
    asked = refresh_at(given, now, lambda: draw)
    assert now <= asked < given.expires_at


def test_refresh_times_of_a_shared_credential_spread_over_a_tenth_of_its_lifetime() -> None:
    random = Random(1)
    given = minted("t1", 0, 600)
    times = [refresh_at(given, 10, random.random) for _ in range(10_000)]
    assert 300 <= min(times) < 303
    assert 357 < max(times) <= 360


class LeaseMachine(RuleBasedStateMachine):
    """A lease under any order of successes, failures, waits and clock changes."""

    def __init__(self) -> None:
        super().__init__()
        self.random = Random(1)
        self.lease = CredentialLease(self.random.random)
        self.steady = 0.0
        self.ahead = 1000.0
        self.count = 0

    @property
    def now(self) -> Moment:
        return Moment(self.steady + self.ahead, self.steady)

    @rule(seconds=st.floats(0, 500))
    def advance_time(self, seconds: float) -> None:
        self.steady += seconds
        self.lease.check(self.now)

    @rule(seconds=st.floats(-5000, 5000))
    def set_clock(self, seconds: float) -> None:
        self.ahead += seconds

    @precondition(lambda self: not self.lease.is_renewing)
    @rule()
    def begin_renewal(self) -> None:
        self.lease.begin()

    @precondition(lambda self: self.lease.is_renewing)
    @rule(life_s=st.floats(1, 1000), age=st.floats(0, 0.9))
    def succeed(self, life_s: float, age: float) -> None:
        self.count += 1
        self.lease.succeeded(minted(f"t{self.count}", self.now.wall - age * life_s, life_s), self.now)
        assert self.lease.valid(self.now) is not None or age * life_s > 0

    @precondition(lambda self: self.lease.is_renewing)
    @rule()
    def fail(self) -> None:
        self.lease.failed(DOWN, self.now)

    @invariant()
    def expired_credential_is_not_issued(self) -> None:
        valid = self.lease.valid(self.now)
        assert valid is None or valid.expires_at > self.now.wall

    @invariant()
    def useful_credential_is_valid(self) -> None:
        useful = self.lease.useful(self.now)
        assert useful is None or useful == self.lease.valid(self.now)

    @invariant()
    def renewal_is_running_or_scheduled(self) -> None:
        state = self.lease.state
        assert isinstance(state, Empty) or self.lease.is_renewing != (self.lease.due_at is not None)


TestLease = LeaseMachine.TestCase
