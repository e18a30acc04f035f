"""The probe schedule: which cluster is probed when, and what the results mean."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.connectivity.reachability import (
    ConnectivityChange,
    Probe,
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
)
from milo_discoveryd.model.cluster import Reachability
from milo_kube.moment import Moment
from milo_kube.reflect.backoff import Backoff

POLICY = ProbePolicy(
    interval_s=60.0,
    rate_per_s=50.0,
    host_rate_per_s=10.0,
    at_once=8,
    unreachable_after_s=30.0,
    host_down_after=3,
    host_backoff=Backoff(first_s=1.0, cap_s=8.0),
)
GONE = ProbeFailed("connect", "refused", is_of_host=True)
SICK = ProbeFailed("5xx", "500")
REACHABLE, UNREACHABLE = Reachability.REACHABLE, Reachability.UNREACHABLE


class ScheduleDriver:
    """A schedule with a manual clock and scripted results."""

    def __init__(self, policy: ProbePolicy = POLICY) -> None:
        self.schedule = ProbeSchedule(policy, lambda: 0.5)
        self.now = 100.0
        self.state: dict[str, Reachability] = {}
        self.probed: list[tuple[float, str]] = []

    def engage(self, *names: str, host: str = "h") -> None:
        for name in names:
            self.schedule.watch(name, host, 1, self.now)

    def due(self) -> list[Probe]:
        found = self.schedule.due(self.now)
        self.probed += [(self.now, probe.name) for probe in found]
        return found

    def tell(self, probe: Probe, outcome: ProbeOutcome) -> list[str]:
        verdicts = [*filter(None, self.schedule.record(probe, outcome, Moment(1000.0 + self.now, self.now)))]
        for verdict in verdicts:
            self.state[verdict.name] = verdict.connectivity.state
        return [f"{verdict.name} {verdict.connectivity.state.value}" for verdict in verdicts]

    def run(self, seconds: float, outcome: ProbeOutcome) -> list[str]:
        """Run for `seconds`; every probe has this outcome. Return the changes."""
        return self._run(seconds, lambda _: outcome)

    def run_each(self, seconds: float, **outcomes: ProbeOutcome) -> list[str]:
        """Run for `seconds`, with an outcome for the probes of each cluster. Return the changes."""
        return self._run(seconds, outcomes.__getitem__)

    def _run(self, seconds: float, answer: Callable[[str], ProbeOutcome]) -> list[str]:
        until = self.now + seconds
        changes: list[str] = []
        while True:
            for probe in self.due():
                changes += self.tell(probe, answer(probe.name))
            after = self.schedule.next_at
            if after is None or after > until:
                self.now = until
                return changes
            self.now = max(self.now, after)


def test_engaged_cluster_is_probed_and_reachable() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    (probe,) = driver.due()
    assert driver.tell(probe, ProbeReached()) == ["alpha REACHABLE"]


def test_probe_repeats_each_interval_and_unchanged_results_are_not_reported() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    assert driver.run(250.0, ProbeReached()) == ["alpha REACHABLE"]
    assert [at for at, _ in driver.probed] == [100.0, 160.0, 220.0, 280.0, 340.0]


def test_http_error_counts_as_reachable() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    (probe,) = driver.due()
    (verdict,) = filter(None, driver.schedule.record(probe, ProbeReached("Unauthorized"), Moment(5.0, driver.now)))
    assert (verdict.connectivity.state, verdict.connectivity.message) == (REACHABLE, "Unauthorized")
    assert verdict.connectivity.since == 5.0


def test_short_probe_failure_is_not_reported() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    driver.run(10.0, ProbeReached())
    assert driver.run(61.0, SICK) == []
    assert driver.run(60.0, ProbeReached()) == []


def test_long_probe_failure_and_recovery_are_each_reported_once() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    assert driver.run(200.0, SICK) == ["alpha UNREACHABLE"]
    assert driver.run(60.0, ProbeReached()) == ["alpha REACHABLE"]


def test_probes_of_one_host_stay_within_its_rate_limit() -> None:
    driver = ScheduleDriver()
    driver.engage(*(f"p-{number}" for number in range(1000)))
    driver.run(100.0, ProbeReached())
    assert len(driver.state) == 1000
    per_second = [sum(at <= second < at + 1.0 for at, _ in driver.probed) for second in range(101, 200)]
    assert max(per_second) <= 21
    driver.probed.clear()
    driver.run(200.0, ProbeReached())
    assert len(driver.probed) == pytest.approx(2000, rel=0.1)


def test_probes_of_all_hosts_share_a_rate_limit() -> None:
    driver = ScheduleDriver()
    for number in range(1000):
        driver.engage(f"p-{number}", host=f"h-{number}")
    driver.run(10.0, ProbeReached())
    assert 450 <= len(driver.probed) <= 560


def test_probes_in_flight_are_limited() -> None:
    driver = ScheduleDriver()
    for number in range(100):
        driver.engage(f"p-{number}", host=f"h-{number}")
    first = driver.due()
    assert len(first) == POLICY.at_once
    assert driver.schedule.next_at is None
    driver.tell(first[0], ProbeReached())
    assert len(driver.due()) == 1


def test_unreachable_host_is_probed_through_one_cluster() -> None:
    driver = ScheduleDriver()
    driver.engage(*(f"p-{number}" for number in range(1000)))
    driver.run(200.0, ProbeReached())
    driver.probed.clear()
    changes = driver.run(300.0, GONE)
    assert len(driver.probed) < 60
    assert sorted(changes) == sorted(f"p-{number} UNREACHABLE" for number in range(1000))


def test_clusters_of_recovered_host_are_reachable_again() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha", "beta", "gamma")
    driver.run(200.0, ProbeReached())
    driver.run(300.0, GONE)
    assert set(driver.state.values()) == {UNREACHABLE}
    changes = driver.run(20.0, ProbeReached())
    assert sorted(changes) == ["alpha REACHABLE", "beta REACHABLE", "gamma REACHABLE"]


def test_cluster_unreachable_before_host_outage_stays_unreachable_after_host_recovers() -> None:
    driver = ScheduleDriver()
    driver.engage("sick", "well")
    driver.run_each(200.0, sick=SICK, well=ProbeReached())
    assert driver.state == {"sick": UNREACHABLE, "well": REACHABLE}
    driver.run(300.0, GONE)
    assert driver.state == {"sick": UNREACHABLE, "well": UNREACHABLE}
    driver.run_each(60.0, sick=SICK, well=ProbeReached())
    assert driver.state == {"sick": UNREACHABLE, "well": REACHABLE}


def test_late_probe_result_of_disengaged_cluster_is_ignored() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha", "beta")
    alpha, beta = driver.due()
    driver.schedule.forget("alpha")
    driver.schedule.forget("nobody")
    assert driver.tell(alpha, ProbeReached()) == []
    driver.tell(beta, ProbeReached())
    driver.run(100.0, ProbeReached())
    assert {name for _, name in driver.probed[2:]} == {"beta"}


def test_probe_of_disengaged_cluster_is_skipped_and_its_slot_used_by_the_next_probe() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha", "beta", "gamma")
    driver.schedule.forget("alpha")
    driver.run(1.0, ProbeReached())
    assert [name for _, name in driver.probed] == ["beta", "gamma"]


@pytest.mark.parametrize("is_sent", [True, False])
def test_unreachable_host_is_probed_again_after_its_probed_cluster_is_removed(is_sent: bool) -> None:
    driver = ScheduleDriver()
    driver.engage("alpha", "beta", "gamma")
    driver.run(2.0, GONE)
    while not (scouts := driver.due()):
        driver.now += 0.1
    [scout] = scouts
    if is_sent:
        driver.schedule.forget(scout.name)
        driver.tell(scout, GONE)
    else:
        driver.schedule.drop(scout)
    driver.probed.clear()
    driver.run(30.0, ProbeReached())
    assert {name for _, name in driver.probed} == {"alpha", "beta", "gamma"} - {scout.name}


def test_unreachable_host_has_one_probe_at_a_time_while_those_end_that_were_sent_before() -> None:
    driver = ScheduleDriver()
    driver.engage(*(f"p-{number}" for number in range(20)))
    before = driver.due()
    for probe in [*before[:3], before[-1]]:
        driver.tell(probe, GONE)
    driver.now += 20.0
    assert len(driver.due()) == 1
    for probe in before[3:-1]:
        driver.tell(probe, GONE)
    driver.now += 20.0
    assert driver.due() == []


def test_tenant_whose_last_host_is_gone_leaves_its_turn() -> None:
    driver = ScheduleDriver(msgspec.structs.replace(POLICY, rate_per_s=1.0, host_rate_per_s=1.0))
    for tenant in "ab":
        for number in range(2):
            driver.schedule.watch(f"{tenant}-{number}", f"{tenant}-{number}", 1, driver.now, tenant)
    assert [probe.name for probe in driver.due()] == ["a-0", "b-0"]
    driver.schedule.forget("b-1")
    driver.now += 2.0
    assert [probe.name for probe in driver.due()] == ["a-1"]


def test_tenants_with_hosts_of_their_own_take_turns() -> None:
    """One with 9,000 hosts delayed the first probes of others' clusters for minutes."""
    driver = ScheduleDriver(msgspec.structs.replace(POLICY, rate_per_s=50.0, at_once=250))
    for number in range(9000):
        driver.schedule.watch(f"evil-{number}", f"host-{number}", 1, driver.now, "evil")
    for _ in range(20):
        driver.now += 0.1
        for probe in driver.due():
            driver.tell(probe, GONE)
    engaged_at = driver.now
    for number in range(5):
        driver.schedule.watch(f"good-{number}", f"good-{number}", 1, driver.now, f"tenant-{number}")
    driver.run(3.0, GONE)
    first = {name: at - engaged_at for at, name in reversed(driver.probed) if name.startswith("good")}
    assert len(first) == 5
    assert max(first.values()) <= 2.0


OUTAGE = msgspec.structs.replace(
    POLICY, rate_per_s=1000.0, host_rate_per_s=1000.0, at_once=100, unreachable_after_s=0.0
)


class StepwiseDriver:
    """A host with probes in flight, whose changes are taken one by one, in the order of the outcomes."""

    def __init__(self, clusters: int = 10) -> None:
        self.schedule = ProbeSchedule(OUTAGE, lambda: 0.5)
        self.now = 100.0
        self.names = [f"p-{number:03}" for number in range(clusters)]
        for name in self.names:
            self.engage(name)
        self.now += 1.0
        self.in_flight = deque(self.schedule.due(self.now))
        self.outcomes = deque[Iterator[ConnectivityChange | None]]()
        self.state: dict[str, Reachability] = {}

    def engage(self, name: str, incarnation: int = 1) -> None:
        self.schedule.watch(name, "h", incarnation, self.now)

    def end_next(self, *outcomes: ProbeOutcome) -> None:
        for outcome in outcomes:
            self.now += 0.01
            probe = self.in_flight.popleft()
            self.outcomes.append(self.schedule.record(probe, outcome, Moment(self.now, self.now)))

    def take(self, steps: int = 10_000) -> list[str]:
        """Take this many steps at most. Return the clusters that changed."""
        changes = [*filter(None, islice(chain.from_iterable(self.outcomes), steps))]
        self.state |= {change.name: change.connectivity.state for change in changes}
        return [change.name for change in changes]


def test_each_outage_is_applied_once_to_the_clusters_of_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 probes that timed out together each changed all 100,000 clusters of their host, for 12 seconds."""
    applied: list[str] = []
    apply = ProbeSchedule._connectivity_change

    def count(schedule: ProbeSchedule, name: str, *args: Any, **kwargs: Any) -> ConnectivityChange | None:
        applied.append(name)
        return apply(schedule, name, *args, **kwargs)

    monkeypatch.setattr(ProbeSchedule, "_connectivity_change", count)
    driver = StepwiseDriver(clusters=500)
    while driver.in_flight:
        driver.end_next(GONE)
        for _ in driver.outcomes.pop():
            pass
    assert set(applied) == set(driver.names)
    assert len(applied) <= 2 * 500 + 100


def test_answer_ends_the_outage_that_is_being_applied() -> None:
    driver = StepwiseDriver()
    driver.end_next(GONE, GONE, GONE)
    driver.take(8)
    assert UNREACHABLE in driver.state.values()
    assert len(driver.state) < 10
    driver.end_next(ProbeReached())
    driver.take()
    assert len(driver.state) < 10
    driver.end_next(*[ProbeReached()] * 6)
    driver.take()
    assert driver.state == dict.fromkeys(driver.names, REACHABLE) | {"p-000": UNREACHABLE, "p-001": UNREACHABLE}, (
        "two failed before their host was down, and must themselves be probed successfully"
    )


def test_answer_in_the_last_step_of_an_outage_is_applied_to_its_clusters() -> None:
    driver = StepwiseDriver()
    driver.end_next(GONE, GONE, GONE)
    driver.take(13)
    driver.end_next(ProbeReached())
    driver.take()
    assert [name for name, state in driver.state.items() if state is REACHABLE] == driver.names[2:]


def test_outage_ends_the_recovery_that_is_being_applied() -> None:
    driver = StepwiseDriver(clusters=20)
    driver.end_next(GONE, GONE, GONE)
    driver.take()
    driver.end_next(ProbeReached())
    driver.take(6)
    driver.end_next(GONE, GONE, GONE)
    driver.take()
    assert driver.state == dict.fromkeys(driver.names, UNREACHABLE)


def test_outage_that_is_being_applied_changes_no_cluster_with_a_later_outcome_or_another_endpoint() -> None:
    driver = StepwiseDriver()
    driver.end_next(GONE, GONE, GONE)
    driver.schedule.forget("p-009")
    driver.engage("p-008", incarnation=2)
    driver.engage("p-010")
    driver.end_next(ProbeFailed("dns", "no such host", is_of_host=True))
    messages = [change.connectivity.message for change in chain.from_iterable(driver.outcomes) if change]
    assert messages.count("dns: no such host") == 1
    assert len(messages) == 8


def test_outage_that_goes_on_is_applied_to_the_last_cluster() -> None:
    driver = StepwiseDriver(clusters=50)
    driver.end_next(GONE, GONE, GONE)
    driver.in_flight = deque([driver.in_flight.pop()])  # the others do not end
    for _ in range(30):
        driver.end_next(GONE)
        driver.take(4)
        driver.now += 100.0
        driver.in_flight += driver.schedule.due(driver.now)
    assert driver.state == dict.fromkeys(driver.names, UNREACHABLE)


@given(st.lists(st.sampled_from(["ok", "sick", "gone", "take", "wait", "engage", "forget"]), max_size=80))
def test_changes_taken_step_by_step_end_in_the_last_state(steps: list[str]) -> None:
    driver = StepwiseDriver()
    for number, step in enumerate(steps):
        match step:
            case "take":
                driver.take(2)
            case "wait":
                driver.now += 20.0
                driver.in_flight += driver.schedule.due(driver.now)
            case "engage":
                driver.engage(driver.names[number % 10], incarnation=number)
            case "forget":
                driver.schedule.forget(driver.names[number % 10])
            case _ if driver.in_flight:
                driver.end_next({"ok": ProbeReached(), "sick": SICK, "gone": GONE}[step])
            case _:
                pass
    driver.take()
    for name, watched in driver.schedule._watched.items():
        if watched.state is not Reachability.UNKNOWN:
            assert driver.state[name] is watched.state
    for _ in range(20):
        driver.end_next(*[ProbeReached()] * len(driver.in_flight))
        driver.now += 20.0
        driver.in_flight += driver.schedule.due(driver.now)
    driver.take()
    assert {driver.state[name] for name in driver.schedule._watched} <= {REACHABLE}


def test_probe_result_of_earlier_incarnation_is_ignored() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    (before,) = driver.due()
    driver.schedule.watch("alpha", "h", 2, driver.now)
    assert driver.tell(before, ProbeReached()) == []
    (after,) = driver.due()
    assert after == Probe("alpha", 2, after.watch)


def test_result_of_in_flight_probe_is_ignored_after_endpoint_change() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    (before,) = driver.due()
    driver.schedule.watch("alpha", "elsewhere", 1, driver.now)
    (after,) = driver.due()
    assert driver.tell(before, ProbeReached()) == []
    assert driver.tell(after, ProbeReached()) == ["alpha REACHABLE"]


def test_probe_schedule_without_clusters_does_not_report_connectivity() -> None:
    assert ScheduleDriver().schedule.known_changes() == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.sampled_from(["watch", "forget", "ok", "sick", "gone", "drop", "wait"])
        ),
        max_size=60,
    )
)
def test_every_watched_cluster_is_eventually_probed_again(steps: list[tuple[str, str]]) -> None:
    driver = ScheduleDriver()
    watched: set[str] = set()
    for name, step in steps:
        match step:
            case "watch":
                driver.engage(name, host="h1" if name < "d" else "h2")
                watched.add(name)
            case "forget":
                driver.schedule.forget(name)
                watched.discard(name)
            case "drop":
                for probe in driver.due():
                    driver.schedule.drop(probe)
                    watched.discard(probe.name)
            case "wait":
                driver.now += 20.0
            case _:
                outcome: ProbeOutcome = {"ok": ProbeReached(), "sick": SICK, "gone": GONE}[step]
                for probe in driver.due():
                    driver.tell(probe, outcome)
    driver.probed.clear()
    driver.run(200.0, ProbeReached())
    assert {name for _, name in driver.probed} == watched


def test_late_probe_result_of_forgotten_host_is_ignored() -> None:
    driver = ScheduleDriver()
    driver.engage("alpha")
    (alpha,) = driver.due()
    driver.schedule.forget("alpha")
    assert driver.tell(alpha, ProbeReached()) == []
    assert driver.schedule.next_at is None or driver.due() == []
