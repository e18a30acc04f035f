"""A hostile tenant beside an honest one: the daemon stays prompt for the honest one, and keeps nothing of the other.

`./dev simulate --hostile` runs other seeds, with up to 20,000 hostile objects.
"""

import pytest

from tests.simulation.hostile.generators import GENERATORS, Generator, Lifetimes
from tests.simulation.hostile.simulation_run import simulate

OBJECTS = 400
TOGETHER = [GENERATORS[first::4] for first in range(4)]


@pytest.mark.parametrize("generators", TOGETHER, ids=lambda kinds: "-".join(kind.__name__ for kind in kinds))
def test_honest_tenant_is_served_promptly_beside_a_hostile_one(generators: tuple[type[Generator], ...]) -> None:
    outcome = simulate(1, OBJECTS, generators)
    assert outcome.breaches == [], "see ./dev simulate --hostile"
    assert outcome.changes > 150
    assert outcome.mints > 300


def test_simulation_detects_credentials_that_are_minted_in_the_order_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("milo_discoveryd.kubeconfigs.mint_queue.MintQueue._next_round", lambda *_: 1)
    breaches = simulate(1, 1000, [Lifetimes]).breaches
    assert any(breach.startswith("latency: a kubeconfig") for breach in breaches)
