"""The setting `disengage_unreachable_after`: which unreachable clusters are disengaged."""

import pytest
from msgspec import structs

from milo_discoveryd.connectivity.reachability import (
    ProbeFailed,
    ProbeOutcome,
    ProbePolicy,
    ProbeReached,
    ProbeSchedule,
)
from milo_kube.moment import Moment
from tests.unit.connectivity.test_reachability import GONE, POLICY, SICK

GIVING_UP = structs.replace(POLICY, host_rate_per_s=100.0, rate_per_s=1000.0, give_up_after_s=600.0)


class ClusterFleet:
    """Clusters, some of which fail their probes; by default, each cluster has a host of its own."""

    def __init__(self, policy: ProbePolicy = GIVING_UP, *, well: int = 0) -> None:
        self.schedule = ProbeSchedule(policy, lambda: 0.5)
        self.now = 0.0
        self.away: dict[str, ProbeOutcome] = {}
        self.hanging: set[str] = set()
        """Clusters whose probes do not end."""
        self.given_up: dict[str, float] = {}
        for number in range(well):
            self.engage(f"well-{number}")

    def engage(self, name: str, host: str = "", away: ProbeOutcome | None = None, tenant: str = "") -> None:
        self.schedule.watch(name, host or name, 1, self.now, tenant)
        if away is not None:
            self.away[name] = away

    def run(self, until: float) -> None:
        while True:
            for probe in self.schedule.due(self.now):
                if probe.name in self.hanging:
                    continue
                outcome = self.away.get(probe.name, ProbeReached())
                for verdict in filter(None, self.schedule.record(probe, outcome, Moment(1000.0 + self.now, self.now))):
                    if verdict.disengages:
                        self.given_up.setdefault(verdict.name, self.now)
            after = self.schedule.next_at
            if after is None or after > until:
                self.now = until
                return
            self.now = max(self.now, after)


def test_unreachable_cluster_is_disengaged_after_configured_time() -> None:
    fleet = ClusterFleet(well=9)
    fleet.engage("alpha", away=SICK)
    fleet.run(1200.0)
    assert fleet.given_up == {"alpha": pytest.approx(60.0 + 600.0, abs=60.0)}


def test_unreachable_cluster_is_never_disengaged_by_default() -> None:
    fleet = ClusterFleet(POLICY, well=9)
    fleet.engage("alpha", away=SICK)
    fleet.run(20_000.0)
    assert fleet.given_up == {}


def test_reachable_result_restarts_disengage_timer() -> None:
    fleet = ClusterFleet(well=9)
    fleet.engage("alpha", away=SICK)
    fleet.run(600.0)
    del fleet.away["alpha"]
    fleet.run(700.0)
    fleet.away["alpha"] = SICK
    fleet.run(1200.0)
    assert fleet.given_up == {}
    fleet.run(1600.0)
    assert set(fleet.given_up) == {"alpha"}


@pytest.mark.untraced
def test_shared_host_outage_disengages_no_cluster() -> None:
    fleet = ClusterFleet(well=40)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, host="shared", away=GONE)
    fleet.run(20_000.0)
    assert fleet.given_up == {}


def test_disengage_timer_restarts_for_cluster_still_unreachable_after_host_recovery() -> None:
    fleet = ClusterFleet(well=40)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, host="shared", away=GONE)
    fleet.run(3000.0)
    fleet.away = {"alpha": SICK}
    fleet.run(3500.0)
    assert fleet.given_up == {}
    fleet.run(4000.0)
    assert set(fleet.given_up) == {"alpha"}
    assert fleet.given_up["alpha"] >= 3600.0


@pytest.mark.parametrize("away", [SICK, ProbeFailed("timeout", "no answer")], ids=["5xx", "timeout"])
def test_no_cluster_is_disengaged_while_those_at_its_host_fail_each_for_itself(away: ProbeOutcome) -> None:
    fleet = ClusterFleet(well=40)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, host="shared", away=away)
    fleet.run(3000.0)
    assert fleet.given_up == {}
    del fleet.away["beta"]
    fleet.run(3500.0)
    assert fleet.given_up == {}, "the outage of the host does not count"
    fleet.run(4000.0)
    assert set(fleet.given_up) == {"alpha", "gamma"}


def test_cluster_that_failed_before_the_others_at_its_host_is_not_disengaged_during_their_outage() -> None:
    fleet = ClusterFleet(well=40)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, host="shared", away=SICK if name == "alpha" else None)
    fleet.run(300.0)
    fleet.away |= dict.fromkeys(("beta", "gamma"), SICK)
    fleet.run(3000.0)
    assert fleet.given_up == {}


def test_outage_of_a_host_counts_at_once_for_a_cluster_that_failed_before() -> None:
    fleet = ClusterFleet(structs.replace(GIVING_UP, give_up_after_s=590.0), well=40)
    fleet.engage("alpha", host="shared", away=SICK)
    fleet.engage("epsilon", host="shared")
    fleet.run(52.0)
    for name in ("beta", "gamma", "delta"):
        fleet.engage(name, host="shared")
    fleet.run(640.0)
    fleet.away |= dict.fromkeys(("beta", "gamma", "delta", "epsilon"), GONE)
    fleet.run(3000.0)
    assert fleet.given_up == {}


def test_cluster_that_is_the_last_at_its_host_is_disengaged() -> None:
    fleet = ClusterFleet(well=9)
    for name in ("alpha", "beta"):
        fleet.engage(name, host="shared", away=SICK if name == "alpha" else None)
    fleet.run(300.0)
    fleet.schedule.forget("beta")
    fleet.run(1200.0)
    assert set(fleet.given_up) == {"alpha"}


def test_cluster_that_was_removed_is_none_that_answers_at_its_host() -> None:
    fleet = ClusterFleet(well=40)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, host="shared", away=None if name == "gamma" else SICK)
    fleet.run(300.0)
    fleet.schedule.forget("gamma")
    fleet.run(3000.0)
    assert fleet.given_up == {}


def test_cluster_is_disengaged_only_after_another_at_its_host_was_reached_while_it_fails() -> None:
    fleet = ClusterFleet(structs.replace(GIVING_UP, unreachable_after_s=0.0, give_up_after_s=1.0), well=9)
    fleet.engage("beta", host="shared")
    fleet.run(50.0)
    fleet.engage("alpha", host="shared", away=SICK)
    fleet.hanging = {"beta"}
    fleet.run(3000.0)
    assert fleet.given_up == {}


def test_unreachable_cluster_with_its_own_host_is_disengaged() -> None:
    fleet = ClusterFleet(well=9)
    fleet.engage("alpha", away=GONE)
    fleet.run(1200.0)
    assert set(fleet.given_up) == {"alpha"}


@pytest.mark.parametrize(
    ("away", "well", "given_up"),
    [
        (1, 0, False),  # the only cluster: the daemon itself may be cut off
        (1, 1, True),
        (2, 1, False),  # more than half of the clusters
        (10, 10, True),
        (11, 20, False),  # more than ten, and more than a fifth
        (20, 80, True),
        (21, 79, False),
        (100, 0, False),
    ],
)
def test_no_cluster_is_disengaged_while_too_many_are_unreachable(away: int, well: int, given_up: bool) -> None:
    fleet = ClusterFleet(well=well)
    for number in range(away):
        fleet.engage(f"away-{number}", away=SICK)
    fleet.run(3000.0)
    assert len(fleet.given_up) == (away if given_up else 0)


def test_disengagement_timer_restarts_once_few_clusters_are_unreachable() -> None:
    fleet = ClusterFleet(well=2)
    for name in ("alpha", "beta", "gamma"):
        fleet.engage(name, away=SICK)
    fleet.run(3000.0)
    assert fleet.given_up == {}
    fleet.schedule.forget("gamma")
    del fleet.away["beta"]
    fleet.run(3500.0)
    assert fleet.given_up == {}
    fleet.run(3800.0)
    assert set(fleet.given_up) == {"alpha"}


def test_dropped_probe_is_not_scheduled_again() -> None:
    fleet = ClusterFleet()
    fleet.engage("alpha")
    (probe,) = fleet.schedule.due(0.0)
    fleet.schedule.drop(probe)
    assert fleet.schedule.next_at is None


def test_disengage_timer_excludes_time_in_which_many_clusters_are_unreachable() -> None:
    fleet = ClusterFleet(well=8)
    for number in range(12):
        fleet.engage(f"away-{number}", away=SICK)
    fleet.run(2000.0)
    assert fleet.given_up == {}
    for number in range(3):
        del fleet.away[f"away-{number}"]
    fleet.run(2500.0)
    assert fleet.given_up == {}
    fleet.run(3000.0)
    assert len(fleet.given_up) == 9


def test_many_unreachable_clusters_of_one_tenant_hold_those_of_no_other() -> None:
    fleet = ClusterFleet(well=20)
    for number in range(100):
        fleet.engage(f"evil-{number}", away=GONE, tenant="evil")
    fleet.engage("alpha", away=GONE, tenant="acme")
    fleet.run(1200.0)
    assert set(fleet.given_up) == {"alpha"}


@pytest.mark.parametrize("others", [2, 10, 30])
def test_no_cluster_of_a_fleet_that_is_mostly_of_one_tenant_is_disengaged_if_all_are_unreachable(others: int) -> None:
    fleet = ClusterFleet()
    for number in range(100):
        fleet.engage(f"most-{number}", away=GONE, tenant="most")
    for number in range(others):
        fleet.engage(f"other-{number}", away=GONE, tenant=f"other {number % 3}")
    fleet.run(3000.0)
    assert fleet.given_up == {}
