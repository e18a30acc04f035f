"""Clusters that become not ready: grace, limit, and the hold if many become not ready at once."""

import time
from collections.abc import Container, Iterable, Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.engagement.not_ready import SETTLE_S, NotReadyClusters
from milo_discoveryd.model.removal_limits import RemovalLimits

LIMITS = RemovalLimits(count=10, share=0.2, verify_after_s=30.0, per_second=50.0)


def names(count: int, first: int = 0) -> list[str]:
    return [f"c{number}" for number in range(first, first + count)]


class Engaged:
    """Engaged clusters, with the time of each disengagement."""

    def __init__(self, count: int, *, grace_s: float = 0.0, limits: RemovalLimits | None = LIMITS) -> None:
        self.clusters = NotReadyClusters(grace_s, limits)
        self.engaged = set(names(count))
        self.disengaged_at: dict[str, float] = {}

    def not_ready(self, which: Iterable[str], now: float, tenant: str = "") -> None:
        for name in which:
            if self.clusters.begin_wait(name, now, tenant):
                self._disengage(name, now)

    def ready(self, name: str) -> None:
        self.clusters.forget(name)
        self.engaged.add(name)

    def tick(self, now: float) -> None:
        for _ in self.steps(now):
            pass

    def steps(self, now: float, unknown: Container[str] = ()) -> Iterator[None]:
        for name in self.clusters.take_overdue(len(self.engaged), now, unknown.__contains__):
            if name is not None:
                self._disengage(name, now)
            yield

    def run(self, until: float) -> None:
        while (due := self.clusters.due_at) is not None and due <= until:
            self.tick(due)

    def _disengage(self, name: str, now: float) -> None:
        self.clusters.ended(name)
        self.engaged.remove(name)
        self.disengaged_at[name] = now


def test_few_not_ready_clusters_are_disengaged_at_once_without_a_hold() -> None:
    fleet = Engaged(1000)
    fleet.not_ready(names(10), 0.0)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at) == (10, None)


def test_not_ready_clusters_beyond_the_count_limit_are_disengaged_after_a_delay() -> None:
    fleet = Engaged(1000)
    fleet.not_ready(names(200), 5.0)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at) == (10, 5.0 + SETTLE_S)
    fleet.tick(5.0 + SETTLE_S)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at, fleet.clusters.held) == (200, None, None)


@pytest.mark.parametrize(("engaged", "not_ready"), [(5000, 5000), (5000, 1001), (11, 11), (20, 11)])
def test_mass_disengagement_of_not_ready_clusters_is_held(engaged: int, not_ready: int) -> None:
    fleet = Engaged(engaged)
    fleet.not_ready(names(not_ready), 0.0)
    fleet.tick(SETTLE_S)
    assert len(fleet.disengaged_at) == 10
    held = fleet.clusters.held
    assert held is not None
    assert (held.since, held.until, fleet.clusters.held_count) == (SETTLE_S, SETTLE_S + 30.0, not_ready - 10)
    assert f"{not_ready} of {engaged} engaged clusters" in held.message


def test_held_clusters_that_become_ready_again_are_never_disengaged() -> None:
    fleet = Engaged(5000)
    fleet.not_ready(names(5000), 0.0)
    fleet.run(20.0)
    for name in names(5000):
        fleet.ready(name)
    assert (fleet.clusters.held, fleet.clusters.due_at) == (None, None)
    fleet.run(1000.0)
    assert len(fleet.disengaged_at) == 10


def test_held_clusters_are_disengaged_at_limited_rate_after_the_hold() -> None:
    fleet = Engaged(5000)
    fleet.not_ready(names(5000), 0.0)
    fleet.run(SETTLE_S + 30.0)
    assert (len(fleet.disengaged_at), fleet.clusters.held) == (11, None)
    fleet.run(SETTLE_S + 30.0 + 10.0)
    assert len(fleet.disengaged_at) == 11 + 500
    fleet.run(1000.0)
    assert len(fleet.disengaged_at) == 5000
    assert max(fleet.disengaged_at.values()) == pytest.approx(SETTLE_S + 30.0 + 4989 / 50.0)


def test_cluster_that_becomes_not_ready_during_a_hold_is_held_as_well() -> None:
    fleet = Engaged(100)
    fleet.not_ready(names(50), 0.0)
    fleet.run(10.0)
    fleet.not_ready(["c70"], 20.0)
    fleet.run(20.0 + SETTLE_S)
    assert fleet.clusters.until("c70") == SETTLE_S + 30.0


@pytest.mark.parametrize("at", [0.5, 20.0, 31.5])
def test_burst_of_one_tenant_holds_no_cluster_of_others(at: float) -> None:
    fleet = Engaged(5000)
    fleet.not_ready(names(3000), 0.0, "bursting")
    fleet.run(at)
    fleet.not_ready(names(5, 3000), at, "shop")
    fleet.not_ready(names(5, 4000), at, "bank")
    fleet.run(at + SETTLE_S)
    assert {*names(5, 3000), *names(5, 4000)} <= fleet.disengaged_at.keys()
    assert fleet.clusters.until("c2999") is not None


def test_hold_ends_only_with_the_last_cluster_that_waits() -> None:
    fleet = Engaged(100)
    fleet.not_ready(names(50), 0.0)
    fleet.ready("c10")
    assert fleet.clusters.due_at == SETTLE_S
    fleet.run(10.0)
    fleet.ready("c11")
    assert fleet.clusters.held is not None


def test_tenants_take_turns_after_a_hold_of_all() -> None:
    fleet = Engaged(5000)
    fleet.not_ready(names(3000), 0.0, "bursting")
    for number in range(3000, 5000):
        fleet.not_ready(names(1, number), 0.5, f"tenant-{number}")
    fleet.run(SETTLE_S + 30.0 + 2001 / 50.0)
    assert {*names(2000, 3000)} <= fleet.disengaged_at.keys()
    fleet.run(1000.0)
    assert len(fleet.disengaged_at) == 5000


def test_mass_disengagement_of_not_ready_clusters_that_builds_up_over_seconds_is_held() -> None:
    """50 of 5,000 clusters per second do not exceed the limit in any second, but in the time of a hold."""
    fleet = Engaged(5000)
    for second in range(30):
        fleet.not_ready(names(50, 50 * second), float(second))
        fleet.run(second + 0.5)
    assert fleet.clusters.held is not None
    assert len(fleet.disengaged_at) <= 1000


def test_clusters_that_become_ready_again_do_not_count_toward_not_ready_limit() -> None:
    """Clusters that flap one after another are not held as a mass."""
    fleet = Engaged(100)
    for second in range(100):
        name = f"c{second}"
        fleet.not_ready([name], second * 0.5)
        fleet.ready(name)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at) == (100, None)


def test_clusters_that_become_not_ready_over_minutes_are_not_held() -> None:
    fleet = Engaged(100)
    for second in range(60):
        fleet.not_ready([f"c{second}"], second * 4.0)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at) == (60, None)


def test_not_ready_limit_applies_to_clusters_whose_grace_period_ended() -> None:
    fleet = Engaged(100, grace_s=60.0)
    fleet.not_ready(names(100), 0.0)
    fleet.run(60.0)
    assert len(fleet.disengaged_at) == 10
    fleet.run(60.0 + SETTLE_S)
    assert fleet.clusters.held is not None
    fleet.run(1000.0)
    assert len(fleet.disengaged_at) == 100


def test_not_ready_clusters_are_disengaged_at_once_if_no_limits_are_configured() -> None:
    fleet = Engaged(5000, limits=None)
    fleet.not_ready(names(5000), 0.0)
    assert (len(fleet.disengaged_at), fleet.clusters.due_at) == (5000, None)


def test_not_ready_clusters_are_disengaged_when_grace_period_ends_if_no_limits_are_configured() -> None:
    fleet = Engaged(50, grace_s=60.0, limits=None)
    fleet.not_ready(names(50), 0.0)
    assert fleet.clusters.due_at == 60.0
    fleet.tick(60.0)
    assert len(fleet.disengaged_at) == 50


def test_not_ready_hold_is_paused_while_the_source_is_lost() -> None:
    fleet = Engaged(100)
    fleet.not_ready(names(100), 0.0)
    fleet.tick(SETTLE_S)
    fleet.clusters.pause(11.0)
    fleet.clusters.resume(61.0)
    assert fleet.clusters.due_at == SETTLE_S + 30.0 + 50.0
    assert fleet.clusters.held is not None
    assert fleet.clusters.held.until == SETTLE_S + 80.0


def test_count_of_not_ready_clusters_is_paused_while_the_source_is_lost() -> None:
    fleet = Engaged(1000)
    fleet.not_ready(names(200), 5.0)
    fleet.clusters.pause(5.5)
    fleet.clusters.resume(65.5)
    assert fleet.clusters.until("c10") == 65.0 + SETTLE_S
    assert (fleet.clusters.held, fleet.clusters.due_at) == (None, 65.0 + SETTLE_S)


def test_disengagement_of_held_not_ready_clusters_is_paused_while_the_source_is_lost() -> None:
    fleet = Engaged(100)
    fleet.not_ready(names(100), 0.0)
    fleet.run(31.0)
    before = fleet.clusters.due_at
    assert before is not None
    fleet.clusters.pause(31.0)
    fleet.clusters.resume(41.0)
    assert fleet.clusters.due_at == pytest.approx(before + 10.0)


def test_not_ready_hold_that_began_after_source_loss_is_not_extended() -> None:
    fleet = Engaged(100)
    fleet.not_ready(names(100), 50.0)
    fleet.tick(50.0 + SETTLE_S)
    fleet.clusters.pause(20.0)
    fleet.clusters.resume(52.0)
    assert fleet.clusters.due_at == 50.0 + SETTLE_S + 30.0


def test_later_grace_period_ends_before_an_earlier_one_that_was_extended() -> None:
    fleet = Engaged(3, grace_s=60.0)
    fleet.not_ready(["c0"], 0.0)
    fleet.not_ready(["c1"], 30.0)
    fleet.clusters.pause(10.0)
    fleet.clusters.resume(50.0)
    assert fleet.clusters.due_at == 90.0
    fleet.run(90.0)
    assert [*fleet.disengaged_at] == ["c1"]


def test_not_ready_cluster_is_not_overdue_before_its_deadline() -> None:
    fleet = Engaged(100)
    assert [*fleet.clusters.take_overdue(100, 0.0)] == []
    fleet.not_ready(names(100), 0.0)
    assert [*fleet.clusters.take_overdue(90, SETTLE_S - 0.1)] == []


@pytest.mark.parametrize(("grace_s", "again_at"), [(60.0, 120.0), (0.0, SETTLE_S + 30.0)])
def test_overdue_cluster_that_may_be_ready_again_waits_again_and_delays_no_other(
    grace_s: float, again_at: float
) -> None:
    fleet, unknown = Engaged(1000, grace_s=grace_s), {"c9" if grace_s else "c11"}
    fleet.not_ready(names(13), 0.0)
    while (due := fleet.clusters.due_at) is not None and due <= grace_s + SETTLE_S:
        for _ in fleet.steps(due, unknown):
            pass
    assert set(fleet.disengaged_at) == set(names(13)) - unknown
    assert fleet.clusters.due_at == again_at
    fleet.tick(again_at)
    fleet.tick(again_at + SETTLE_S)
    assert set(fleet.disengaged_at) == set(names(13))


def test_overdue_cluster_that_may_be_ready_again_waits_for_another_grace_period_also_without_limits() -> None:
    fleet = Engaged(3, grace_s=60.0, limits=None)
    fleet.not_ready(["c0"], 0.0)
    assert [*fleet.clusters.take_overdue(3, 60.0, lambda _: True)] == [None]
    assert fleet.clusters.until("c0") == 120.0


def test_overdue_cluster_that_may_be_ready_again_is_not_due_at_once_without_grace_period_and_limits() -> None:
    fleet = Engaged(3, limits=None)
    fleet.clusters.postpone("c0", 5.0)
    assert [*fleet.clusters.take_overdue(3, 5.0, lambda _: True)] == [None]
    assert fleet.clusters.due_at == 5.0 + SETTLE_S


def test_wait_of_a_cluster_that_may_be_ready_again_is_paused_while_the_source_is_lost() -> None:
    fleet = Engaged(100)
    fleet.clusters.postpone("c0", 5.0)
    assert [*fleet.clusters.take_overdue(100, 5.0, lambda _: True)] == [None]
    fleet.clusters.pause(15.0)
    fleet.clusters.resume(75.0)
    assert fleet.clusters.due_at == 5.0 + 30.0 + 60.0


@pytest.mark.parametrize("is_unknown", [True, False])
def test_caller_can_stop_after_each_overdue_cluster_also_if_it_waits_on(is_unknown: bool) -> None:
    fleet = Engaged(100, grace_s=60.0)
    fleet.not_ready(names(30), 0.0)
    for number in range(30):
        assert fleet.clusters.due_at == 60.0
        assert fleet.clusters.until(f"c{number}") == 60.0
        next(fleet.steps(60.0, fleet.engaged if is_unknown else ()))
        assert fleet.clusters.until(f"c{number}") != 60.0
    assert fleet.clusters.due_at == (120.0 if is_unknown else 60.0 + SETTLE_S)
    assert len(fleet.disengaged_at) == (0 if is_unknown else 10)


@pytest.mark.parametrize("is_unknown", [True, False])
def test_grace_periods_of_a_large_fleet_end_in_linear_time(is_unknown: bool) -> None:
    fleet = Engaged(50_000, grace_s=60.0, limits=None)
    fleet.not_ready(names(50_000), 0.0)
    began = time.process_time()
    while fleet.clusters.due_at == 60.0:
        for _ in islice(fleet.steps(60.0, fleet.engaged if is_unknown else ()), 10):
            pass
    assert time.process_time() - began < 1.0
    assert len(fleet.disengaged_at) == (0 if is_unknown else 50_000)


STEPS = st.lists(
    st.tuples(st.sampled_from(("not ready", "not ready", "ready", "lost")), st.integers(0, 39), st.floats(0.0, 20.0)),
    max_size=60,
)


@given(STEPS, st.sampled_from((0.0, 5.0)), st.sampled_from((0, 1, 5, 10)), st.sampled_from((0.0, 0.2, 1.0)))
def test_not_ready_cluster_is_eventually_disengaged_and_ready_cluster_never(
    steps: list[tuple[str, int, float]], grace_s: float, count: int, share: float
) -> None:
    limits = RemovalLimits(count=count, share=share, verify_after_s=30.0, per_second=50.0)
    fleet, now = Engaged(40, grace_s=grace_s, limits=limits), 0.0
    not_ready: set[str] = set()
    for kind, number, wait_s in steps:
        now += wait_s
        if kind == "lost":
            fleet.clusters.pause(now - wait_s)
            fleet.clusters.resume(now)
            continue
        fleet.run(now)
        name = f"c{number}"
        if kind == "ready":
            fleet.ready(name)
            not_ready.discard(name)
            fleet.disengaged_at.pop(name, None)
        elif name in fleet.engaged:
            fleet.not_ready([name], now)
            not_ready.add(name)
        assert not not_ready - set(names(40))
        assert set(fleet.disengaged_at) <= not_ready
        waiting = {name for name in names(40) if fleet.clusters.until(name) is not None}
        assert waiting == not_ready & fleet.engaged
        assert (fleet.clusters.due_at is None) == (not waiting)
    fleet.run(now + 1000.0)
    assert set(fleet.disengaged_at) == not_ready
    assert (fleet.clusters.held, fleet.clusters.held_count) == (None, 0)


@given(st.integers(11, 2000), st.integers(0, 2000), st.floats(0.0, 0.9))
def test_not_ready_clusters_beyond_the_first_ten_are_held_only_in_a_mass_disengagement(
    engaged: int, not_ready: int, spread_s: float
) -> None:
    fleet = Engaged(engaged)
    which = names(min(not_ready, engaged))
    for place, name in enumerate(which):
        now = spread_s * place / len(which)
        fleet.run(now)
        fleet.not_ready([name], now)
    fleet.run(30.0)
    is_mass = len(which) > 10 and (len(which) > 0.2 * engaged or 2 * len(which) > engaged)
    assert len(fleet.disengaged_at) == (10 if is_mass else len(which))


def test_overdue_cluster_that_is_postponed_is_overdue_later_and_others_are_not() -> None:
    clusters = NotReadyClusters(60.0)
    for name in ("a", "b"):
        clusters.begin_wait(name, 0.0)
    overdue = clusters.take_overdue(2, 60.0)
    assert next(overdue) == "a"
    clusters.postpone("a", 65.0)
    assert [*overdue] == ["b"]
    assert (clusters.until("a"), clusters.due_at) == (65.0, 65.0)
    assert [*clusters.take_overdue(2, 65.0)] == ["a"]


def test_nothing_is_due_while_the_source_is_lost() -> None:
    fleet = Engaged(50, grace_s=60.0)
    fleet.not_ready(names(5), 0.0)
    fleet.clusters.resume(1.0)
    fleet.clusters.pause(20.0)
    fleet.clusters.pause(30.0)
    assert fleet.clusters.due_at is None
    assert [*fleet.clusters.take_overdue(50, 1000.0)] == []
    fleet.clusters.resume(1000.0)
    assert fleet.clusters.due_at == 60.0 + 980.0
