from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from milo_discovery._lease_lock import LeaseLock, LeaseTiming

TIMING = LeaseTiming()
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Server:
    """A fake API server with one Lease: a write needs the current resourceVersion."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self._version = 0

    def write(self, before: Any, spec: dict[str, Any]) -> dict[str, Any] | None:
        if (before and before["metadata"]) != (self.lease and self.lease["metadata"]):
            return None
        self._version += 1
        self.lease = {"metadata": {"uid": "1", "resourceVersion": str(self._version)}, "spec": spec}
        return self.lease


def take(lock: LeaseLock, server: Server, now: float) -> bool:
    """Read the Lease, and write it if the lock is free. Return whether the candidate wrote it."""
    lock.observe(server.lease, now)
    spec = lock.claim(now, NOON + timedelta(seconds=now))
    written = None if spec is None else server.write(lock.lease, spec)
    if written is not None:
        lock.written(written, now)
    return written is not None


def candidates() -> tuple[Server, LeaseLock, LeaseLock]:
    return Server(), LeaseLock("a", TIMING), LeaseLock("b", TIMING)


def test_first_candidate_takes_a_free_lease_lock() -> None:
    server, a, b = candidates()
    assert take(a, server, 0.0)
    assert not take(b, server, 0.0)
    assert server.lease is not None
    assert server.lease["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T12:00:00.000000Z",
        "renewTime": "2026-01-01T12:00:00.000000Z",
        "leaseTransitions": 0,
    }
    assert (a.is_held, b.is_held, b.holder) == (True, False, "a")


def test_lease_renewal_keeps_acquire_time() -> None:
    server, a, _ = candidates()
    take(a, server, 0.0)
    assert take(a, server, 2.0)
    assert server.lease is not None
    assert server.lease["spec"]["acquireTime"] == "2026-01-01T12:00:00.000000Z"
    assert server.lease["spec"]["renewTime"] == "2026-01-01T12:00:02.000000Z"
    assert a.stops_at() == 12.0


def test_lease_lock_can_be_taken_after_lease_is_unchanged_for_its_duration() -> None:
    server, a, b = candidates()
    take(a, server, 0.0)
    assert not take(b, server, 10.0)  # first observation
    assert not take(b, server, 24.9)
    assert take(b, server, 25.0)
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1
    a.observe(server.lease, 25.0)
    assert not a.is_held


def test_candidate_waits_for_the_lease_duration_of_the_holder() -> None:
    server, _, b = candidates()
    take(LeaseLock("slow", LeaseTiming(lease_duration=60.0)), server, 0.0)
    take(b, server, 0.0)
    assert not take(b, server, 59.0)
    assert take(b, server, 60.0)


def test_holder_with_a_fractional_lease_duration_stops_before_the_lease_expires() -> None:
    server, _, b = candidates()
    holder = LeaseLock("holder", LeaseTiming(lease_duration=1.9, renew_deadline=1.5, retry_period=0.5))
    take(holder, server, 0.0)
    take(b, server, 0.0)
    assert not take(b, server, holder.stops_at())


def test_lease_renewal_restarts_the_wait_of_other_candidates() -> None:
    server, a, b = candidates()
    take(a, server, 0.0)
    take(b, server, 0.0)
    take(a, server, 10.0)
    assert not take(b, server, 16.0)


def test_released_lease_lock_is_free_at_once() -> None:
    server, a, b = candidates()
    take(a, server, 0.0)
    take(b, server, 0.0)
    released = a.release(NOON)
    assert released is not None
    server.write(a.lease, released)
    assert not a.is_held
    assert take(b, server, 0.1)
    assert a.release(NOON) is None


def test_lease_lock_whose_write_got_no_response_is_released_once_it_was_observed() -> None:
    server, a, _ = candidates()
    a.observe(None, 0.0)
    spec = a.claim(0.0, NOON)
    assert spec is not None
    server.write(None, spec)
    assert (a.is_uncertain, a.is_held) == (True, False)
    assert a.release(NOON) is None, "the Lease is not known to be written"
    a.observe(server.lease, 1.0)
    released = a.release(NOON)
    assert released is not None
    assert (released["holderIdentity"], a.is_uncertain) == ("", False)
    assert a.release(NOON) is None


def test_lease_lock_that_another_candidate_wrote_is_not_released() -> None:
    server, a, b = candidates()
    a.observe(None, 0.0)
    assert a.claim(0.0, NOON) is not None
    assert take(b, server, 0.0)
    a.observe(server.lease, 1.0)
    assert (a.is_uncertain, a.release(NOON)) == (False, None)


def test_lease_without_a_holder_can_be_taken() -> None:
    server, a, _ = candidates()
    server.write(None, {})
    assert take(a, server, 0.0)


def test_deleted_lease_can_be_taken_by_another_candidate() -> None:
    server, a, b = candidates()
    take(a, server, 0.0)
    server.lease = None
    a.observe(None, 1.0)
    assert not a.is_held
    assert take(b, server, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease_duration": 0.5},
        {"retry_period": 0.0},
        {"renew_deadline": 15.0},
        {"retry_period": 10.0},
    ],
)
def test_inconsistent_lease_timing_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lease_duration"):
        LeaseTiming(**wrong)


def test_empty_lease_identity_is_rejected() -> None:
    with pytest.raises(ValueError, match="identity"):
        LeaseLock("", TIMING)


class Election(RuleBasedStateMachine):
    """Candidates with slow and lost requests and responses. Their clocks differ, but advance at the same rate."""

    NAMES = ("a", "b", "c")

    @initialize(offsets=st.tuples(*[st.floats(0, 1000)] * 3))
    def start(self, offsets: tuple[float, ...]) -> None:
        self.now = 0.0
        self.server = Server()
        self.offsets = dict(zip(self.NAMES, offsets, strict=True))
        self.locks = {name: LeaseLock(name, TIMING) for name in self.NAMES}

    def clock(self, name: str) -> float:
        return self.now + self.offsets[name]

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        name=st.sampled_from(NAMES),
        before_s=st.floats(0, 3),
        after_s=st.floats(0, 3),
        outcome=st.sampled_from(["answered", "lost before", "lost after"]),
    )
    def attempt(self, name: str, before_s: float, after_s: float, outcome: str) -> None:
        lock = self.locks[name]
        lock.observe(self.server.lease, self.clock(name))
        began_at = self.clock(name)
        spec = lock.claim(began_at, NOON)
        self.now += before_s
        if spec is None or outcome == "lost before":
            return
        written = self.server.write(lock.lease, spec)
        self.now += after_s
        if written is not None and outcome == "answered":
            lock.written(written, began_at)

    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        lock = self.locks[name]
        before = lock.lease
        if (spec := lock.release(NOON)) is not None:
            self.server.write(before, spec)

    @invariant()
    def at_most_one_works(self) -> None:
        if hasattr(self, "locks"):
            working = [name for name, lock in self.locks.items() if lock.is_held and self.clock(name) < lock.stops_at()]
            assert len(working) <= 1, working


TestElection = Election.TestCase


def test_holder_holds_the_lock_until_its_renew_deadline_and_not_after_another_candidate_took_it() -> None:
    server, a, b = candidates()
    assert not a.holds_at(0.0)
    assert take(a, server, 0.0)
    assert (a.holds_at(TIMING.renew_deadline - 0.1), a.holds_at(TIMING.renew_deadline)) == (True, False)
    assert not take(b, server, 0.0)
    assert take(b, server, TIMING.lease_duration)
    a.observe(server.lease, TIMING.lease_duration)
    assert not a.holds_at(0.0)
