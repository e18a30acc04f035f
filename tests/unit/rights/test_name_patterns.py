"""Patterns for cluster names."""

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.rights.name_patterns import NamePatterns, name_patterns


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("acme", "acme", True),
        ("acme", "acme2", False),
        ("acme-*", "acme-shop", True),
        ("acme-*", "acme-", True),
        ("acme-*", "not-acme-shop", False),
        ("*-prod", "shop-prod", True),
        ("*-prod", "shop-prod-2", False),
        ("a*a", "a", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a*bb*bc", "abbc", False),
        ("*", "", True),
        ("shop-*", "shop-eu#other", False),
        ("*", "shop-eu#other", False),
        ("shop-*#*", "shop-eu#other", True),
        ("shop-*#*", "shop-1", False),
        ("*#shop-*", "eu#shop-1", True),
        ("*#shop-*", "shop-eu#other", False),
        ("eu#shop-*", "eu#shop-1", True),
        ("eu#shop-*", "eu-2#shop-1", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
    ],
)
def test_name_pattern_star_matches_any_characters(pattern: str, name: str, covered: bool) -> None:
    assert name_patterns([pattern]).matches(name) is covered


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_name_pattern_matches_as_fnmatch_does(pattern: str, name: str) -> None:
    assert name_patterns([pattern]).matches(name) is fnmatchcase(name, pattern)


def test_name_pattern_with_many_stars_is_matched_in_a_short_time() -> None:
    assert not name_patterns(["*a" * 120 + "*b"]).matches("a" * 253)


def test_many_patterns_are_matched_in_a_short_time() -> None:
    """Found by an attacker: each of a hundred patterns took its time of each name that a tenant chose."""
    patterns = name_patterns(f"shop-{number}-*" for number in range(100))
    began = time.process_time()
    assert not any(patterns.matches(f"shop-{number}") for number in range(40_000))
    assert time.process_time() - began < 0.4, "want less than 10 us for each name"


def test_name_patterns_match_a_name_if_any_pattern_matches_it() -> None:
    some = name_patterns(["a", "b-*"])
    assert [some.matches(name) for name in ("a", "b-1", "b", "c")] == [True, True, False, False]
    assert str(some) == "a, b-*"


def test_empty_name_patterns_match_everything() -> None:
    assert NamePatterns().matches("whatever")
    assert not NamePatterns()
