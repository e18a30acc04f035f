"""Tests of the comparison of two event histories."""

from typing import Any

import pytest

from tests.end_to_end.real.parity import ON_PURPOSE, Comparison, comparable
from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.steps import Scenario

ENGAGED = "ENGAGED at https://127.0.0.1/alpha"
DIFFERENT_ON_PURPOSE = next(iter(ON_PURPOSE))


@pytest.mark.parametrize(
    ("scenario", "daemon", "provider", "verdict"),
    [
        ("any", [ENGAGED], [ENGAGED], "agree"),
        ("any", [ENGAGED, "DISENGAGED", ENGAGED], [ENGAGED], "agree in the end"),
        ("any", [ENGAGED, "DISENGAGED"], [], "agree in the end"),
        ("any", [ENGAGED], [], "DIFFER"),
        ("any", [ENGAGED], ["ENGAGED at https://127.0.0.1/beta"], "DIFFER"),
        (DIFFERENT_ON_PURPOSE, [ENGAGED, "DISENGAGED"], [ENGAGED], "differ on purpose"),
        (DIFFERENT_ON_PURPOSE, [ENGAGED], [ENGAGED], "agree"),
    ],
)
def test_parity_verdict_compares_the_events_of_daemon_and_provider(
    scenario: str, daemon: list[str], provider: list[str], verdict: str
) -> None:
    events_by_cluster = [{"alpha": has_event} if has_event else {} for has_event in (daemon, provider)]
    compared = Comparison(scenario, "project", *events_by_cluster)
    assert compared.verdict == verdict
    assert compared.is_explained == (verdict != "DIFFER")


@pytest.mark.parametrize(
    "more",
    [
        {"settings": {"not_ready_grace": "1s"}},
        {"steps": [{"daemon": "restart"}]},
        {"steps": [{"subscribe": {"as": "another"}}]},
    ],
)
def test_parity_skips_scenarios_with_features_that_the_provider_lacks(more: dict[str, Any]) -> None:
    plain = {"name": "one", "steps": [{"create": {"name": "alpha"}}], "settings": {"label_selector": "a=b"}}
    ours, theirs = reading.scenario({**plain, **more}), reading.scenario(plain)
    assert isinstance(ours, Scenario)
    assert isinstance(theirs, Scenario)
    assert list(comparable([ours, theirs])) == [theirs]
