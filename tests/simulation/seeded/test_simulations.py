"""Seeded simulations with random faults: nothing is lost, and nothing is disengaged by mistake."""

from itertools import count

import pytest

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.fleet.source import ClusterSource
from tests.simulation.seeded.__main__ import KINDS, Report
from tests.simulation.seeded.api import ETCD_FREEZES
from tests.simulation.seeded.request_faults import REQUEST_FAULTS
from tests.simulation.seeded.simulation_run import simulate
from tests.simulation.seeded.tokens import TOKEN_FAULTS, WITHDRAWN
from tests.simulation.seeded.watch_faults import WATCH_FAULTS

AT_ONCE = 250
EVERY_FAULT = {
    *(f"{fault.row} {fault.name}" for fault in (*REQUEST_FAULTS, *TOKEN_FAULTS)),
    *(f"{row} {name}" for row, name, _ in WATCH_FAULTS),
    " ".join(WITHDRAWN),
    " ".join(ETCD_FREEZES),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        metafunc.parametrize("first", range(0, metafunc.config.getoption("simulations"), AT_ONCE))


def test_simulation_loses_nothing_and_disengages_nothing_by_mistake(first: int) -> None:
    report = Report(KINDS["daemon"])
    for seed in range(first, first + AT_ONCE):
        outcome = simulate(seed)
        assert outcome.breaches == [], f"see ./dev simulate --seed {seed}"
        report.add(outcome)
    assert report.faults.keys() >= EVERY_FAULT
    assert report.validated["events"] > 10 * AT_ONCE, "too few events were sent"
    assert report.validated["handed"] > 5 * AT_ONCE
    assert report.recovery_s(0.99) <= 35.0
    assert report.recovery_s(1.0) <= 45.0


@pytest.mark.parametrize("seed", [907_829, 908_190, 910_544, 2_400_586, 2_402_628])
def test_seed_that_found_a_defect_passes(seed: int) -> None:
    """907829 found a false alarm of the validator: a cluster was deleted before the backup, while etcd was frozen."""
    assert simulate(seed).breaches == []


@pytest.mark.parametrize(
    ("of", "method"),
    [(ClusterSource, "apply"), (ClusterSource, "resolve"), (ClusterSource, "tick"), (Engagements, "_end")],
)
def test_unexpected_exception_is_detected(of: type, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on after it, and logs it."""
    original, calls = getattr(of, method), 0

    def failing(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError
        return original(*args)

    monkeypatch.setattr(of, method, failing)
    runs = (simulate(seed).breaches for seed in count())
    breaches = next(breaches for breaches in runs if calls >= 2)
    assert any("ZeroDivisionError" in breach for breach in breaches)


def test_simulation_is_reproducible_by_seed() -> None:
    assert simulate(7).history == simulate(7).history
    assert simulate(7).history != simulate(8).history
