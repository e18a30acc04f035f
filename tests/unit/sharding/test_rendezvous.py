import json
from math import inf
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.sharding import rendezvous

VECTORS = json.loads(Path(__file__).with_name("rendezvous_vectors.json").read_text())
FIVE = {f"operator-{number}": 1.0 for number in range(5)}


@pytest.mark.parametrize("vector", VECTORS["owners"], ids=lambda vector: vector["key"])
def test_rendezvous_owner_matches_published_vectors(vector: dict[str, str]) -> None:
    assert rendezvous.owner(vector["key"], VECTORS["members"]) == vector["owner"]


@pytest.mark.parametrize("vector", VECTORS["scores"], ids=lambda vector: f"{vector['key']} {vector['member']}")
def test_rendezvous_score_matches_published_vectors(vector: dict[str, str | float]) -> None:
    key, member = str(vector["key"]), str(vector["member"])
    assert rendezvous.uniform(key, member) == vector["uniform"]
    assert rendezvous.score(key, member, float(vector["weight"])) == pytest.approx(float(vector["score"]), rel=1e-12)


def test_rendezvous_owner_without_members_is_none() -> None:
    assert rendezvous.owner("key", {}) is None


def test_rendezvous_hash_that_rounds_to_one_scores_negative_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "blake2b", lambda _: SimpleNamespace(digest=lambda: b"\xff" * 64))
    # As -1 / 0.0 in languages whose division follows IEEE 754.
    assert rendezvous.score("k", "a", 1.0) == -inf
    assert rendezvous.owner("k", {"a": 1.0}) == "a"


def owners(members: dict[str, float], keys: int = 1000) -> list[str | None]:
    return [rendezvous.owner(f"project-{number}", members) for number in range(keys)]


@pytest.mark.untraced
def test_rendezvous_balances_1000_clusters_over_five_members() -> None:
    imbalances = []
    for group in range(20):
        names = {f"operator-{group}-{number}": 1.0 for number in range(5)}
        found = owners(names)
        counts = [found.count(name) for name in names]
        imbalances.append(max(counts) / mean(counts))
    assert mean(imbalances) <= 1.10
    found = owners(FIVE)
    assert max(found.count(name) for name in FIVE) / 200 <= 1.10


def test_rendezvous_moves_keys_only_to_an_added_member() -> None:
    before, after = owners(FIVE), owners({**FIVE, "operator-5": 1.0})
    moved = [now for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {"operator-5"}
    assert len(moved) <= 1.1 * 1000 / 6


def test_rendezvous_owners_are_proportional_to_weights() -> None:
    found = owners({"small": 1.0, "large": 3.0}, keys=4000)
    assert found.count("large") / 4000 == pytest.approx(0.75, abs=0.03)


@given(st.text(), st.dictionaries(st.text(), st.floats(0.01, 100), min_size=1), st.text())
def test_rendezvous_moves_only_keys_of_a_removed_member(key: str, members: dict[str, float], removed: str) -> None:
    before = rendezvous.owner(key, members)
    others = {name: weight for name, weight in members.items() if name != removed}
    assert before == removed or rendezvous.owner(key, others) == before
