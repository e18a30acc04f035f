"""The probe schedule: which cluster is probed when, and what the results mean."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.connectivity.reachability import (
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
        verdicts = self.schedule.record(probe, outcome, Moment(1000.0 + self.now, self.now))
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
    (verdict,) = driver.schedule.record(probe, ProbeReached("Unauthorized"), Moment(5.0, driver.now))
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
