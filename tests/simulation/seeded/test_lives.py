"""Thousands of lives, each judged: whatever goes wrong, everybody is told the truth and nothing else."""

import pytest

from tests.simulation.seeded.life import live
from tests.simulation.seeded.report import Report
from tests.simulation.seeded.sufferings import SUFFERINGS
from tests.simulation.seeded.tokens import TOKEN_TROUBLES, WITHDRAWN
from tests.simulation.seeded.troubles import TROUBLES

AT_ONCE = 500
EVERY_FAULT = {
    *(f"{each.row} {each.name}" for each in (*TROUBLES, *TOKEN_TROUBLES)),
    *(f"{row} {name}" for row, name, _ in SUFFERINGS),
    " ".join(WITHDRAWN),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        metafunc.parametrize("first", range(0, metafunc.config.getoption("simulations"), AT_ONCE))


def test_simulation_loses_nothing_and_disengages_nothing_by_mistake(first: int) -> None:
    report = Report(first, first + AT_ONCE - 1)
    for seed in range(report.first, report.last + 1):
        outcome = live(seed)
        assert outcome.breaches == [], f"see ./dev deterministic --seed {seed}"
        report.add(outcome)
    assert report.injected.keys() >= EVERY_FAULT
    assert report.events > 10 * AT_ONCE, "it was not for nothing"
    assert report.handed > 5 * AT_ONCE
    assert report.recovery_s(0.99) <= 35.0
    assert report.recovery_s(1.0) <= 45.0


def test_simulation_is_reproducible_by_seed() -> None:
    assert live(7).history == live(7).history
    assert live(7).history != live(8).history
