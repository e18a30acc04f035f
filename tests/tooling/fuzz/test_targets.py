"""Every target accepts its seeds, earlier findings, and seeds mutated by Hypothesis."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tooling.fuzz.seeds import CORPUS, SEEDS, begun_with
from tests.tooling.fuzz.targets import TARGETS


def test_fuzz_corpus_matches_the_targets() -> None:
    assert set(SEEDS) == set(TARGETS)
    assert {path.name for path in CORPUS.glob("*")} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_targets_accept_their_corpus(name: str) -> None:
    for data in begun_with(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_targets_accept_mutated_seeds(name: str) -> None:
    seeds = st.sampled_from(SEEDS[name])
    changes = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4), st.integers(0, 4)), max_size=5)

    @settings(max_examples=60)
    @given(seeds, changes)
    def take(seed: bytes, changes: list[tuple[int, bytes, int]]) -> None:
        for place, put, gone in changes:
            at = place % (len(seed) + 1)
            seed = seed[:at] + put + seed[at + gone :]
        TARGETS[name](seed)

    take()
