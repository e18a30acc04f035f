"""Who is given up for being unreachable, where that is wanted, and who is not."""

import msgspec
import pytest

from milo_discoveryd.connectivity.schedule import ProbeOutcome, ProbePolicy, ProbeReached, ProbeSchedule
from milo_discoveryd.model.moment import Moment
from tests.unit.connectivity.test_schedule import GONE, POLICY, SICK

GIVING_UP = msgspec.structs.replace(POLICY, host_rate_per_s=100.0, rate_per_s=1000.0, give_up_after_s=600.0)


class World:
    """Clusters on hosts of their own, unless it is said otherwise; those that are away answer with a failure."""

    def __init__(self, policy: ProbePolicy = GIVING_UP, *, well: int = 0) -> None:
        self.schedule = ProbeSchedule(policy, lambda: 0.5)
        self.now = 0.0
        self.away: dict[str, ProbeOutcome] = {}
        self.given_up: dict[str, float] = {}
        for number in range(well):
            self.engage(f"well-{number}")

    def engage(self, name: str, host: str = "", away: ProbeOutcome | None = None) -> None:
        self.schedule.watch(name, host or name, 1, self.now)
        if away is not None:
            self.away[name] = away

    def run(self, until: float) -> None:
        while True:
            for probe in self.schedule.due(self.now):
                outcome = self.away.get(probe.name, ProbeReached())
                for verdict in self.schedule.record(probe, outcome, Moment(1000.0 + self.now, self.now)):
                    if verdict.disengages:
                        self.given_up.setdefault(verdict.name, self.now)
            after = self.schedule.next_at
            if after is None or after > until:
                self.now = until
                return
            self.now = max(self.now, after)


def test_unreachable_cluster_disengages_after_configured_time() -> None:
    world = World(well=9)
    world.engage("alpha", away=SICK)
    world.run(1200.0)
    assert world.given_up == {"alpha": pytest.approx(60.0 + 600.0, abs=60.0)}


def test_unreachable_cluster_never_disengages_by_default() -> None:
    world = World(POLICY, well=9)
    world.engage("alpha", away=SICK)
    world.run(100_000.0)
    assert world.given_up == {}


def test_reachable_result_restarts_disengage_timer() -> None:
    world = World(well=9)
    world.engage("alpha", away=SICK)
    world.run(600.0)
    del world.away["alpha"]
    world.run(700.0)
    world.away["alpha"] = SICK
    world.run(1200.0)
    assert world.given_up == {}
    world.run(1600.0)
    assert set(world.given_up) == {"alpha"}


def test_shared_host_outage_disengages_nothing() -> None:
    world = World(well=40)
    for name in ("alpha", "beta", "gamma"):
        world.engage(name, host="shared", away=GONE)
    world.run(100_000.0)
    assert world.given_up == {}


def test_cluster_unreachable_after_host_recovery_restarts_timer() -> None:
    world = World(well=40)
    for name in ("alpha", "beta", "gamma"):
        world.engage(name, host="shared", away=GONE)
    world.run(3000.0)
    world.away = {"alpha": SICK}
    world.run(3500.0)
    assert world.given_up == {}
    world.run(4000.0)
    assert set(world.given_up) == {"alpha"}
    assert world.given_up["alpha"] >= 3600.0


def test_cluster_with_own_host_disengages() -> None:
    world = World(well=9)
    world.engage("alpha", away=GONE)
    world.run(1200.0)
    assert set(world.given_up) == {"alpha"}


@pytest.mark.parametrize(
    ("away", "well", "given_up"),
    [
        (1, 0, False),  # the only one: nothing shows that it isn't us
        (1, 1, True),
        (2, 1, False),  # more than half
        (10, 10, True),
        (11, 20, False),  # more than ten, and than a fifth
        (20, 80, True),
        (21, 79, False),
        (100, 0, False),
    ],
)
def test_no_cluster_disengages_while_too_many_are_unreachable(away: int, well: int, given_up: bool) -> None:
    world = World(well=well)
    for number in range(away):
        world.engage(f"away-{number}", away=SICK)
    world.run(3000.0)
    assert len(world.given_up) == (away if given_up else 0)


def test_disengagement_timer_restarts_once_few_clusters_are_unreachable() -> None:
    world = World(well=2)
    for name in ("alpha", "beta", "gamma"):
        world.engage(name, away=SICK)
    world.run(3000.0)
    assert world.given_up == {}
    world.schedule.forget("gamma")
    del world.away["beta"]
    world.run(3500.0)
    assert world.given_up == {}
    world.run(3800.0)
    assert set(world.given_up) == {"alpha"}


def test_unneeded_probe_is_the_last() -> None:
    world = World()
    world.engage("alpha")
    (probe,) = world.schedule.due(0.0)
    world.schedule.drop(probe)
    assert world.schedule.next_at is None


def test_time_in_which_many_are_unreachable_does_not_count() -> None:
    world = World(well=8)
    for number in range(12):
        world.engage(f"away-{number}", away=SICK)
    world.run(2000.0)
    assert world.given_up == {}
    for number in range(3):
        del world.away[f"away-{number}"]
    world.run(2500.0)
    assert world.given_up == {}
    world.run(3000.0)
    assert len(world.given_up) == 9
