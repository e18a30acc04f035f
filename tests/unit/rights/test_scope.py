"""Which clusters a scope covers, and what is seen through it."""

from milo_discoveryd.model.selector import parse
from milo_discoveryd.registry.filter import EVERYTHING, Filter
from milo_discoveryd.rights.patterns import names
from milo_discoveryd.rights.scope import ALL, NONE, Scope, Within, within
from tests.unit.registry.fleets import cluster

PROD = Scope(parse("env=prod"))
ACME = Scope(organizations=frozenset({"acme"}))
SHOPS = Scope(names=names(["shop-*"]))
A_PROD = cluster("shop-1", labels={"env": "prod"}, organization="acme")
A_DEV = cluster("a", labels={"env": "dev"}, organization="nasa")


def test_all_that_is_set_must_match() -> None:
    everything = Scope(parse("env=prod"), frozenset({"acme"}), names(["shop-*"]))
    assert everything.matches(A_PROD)
    for scope in (PROD, ACME, SHOPS):
        assert scope.matches(A_PROD)
        assert not scope.matches(A_DEV)


def test_all_covers_everything_and_none_nothing() -> None:
    assert ALL.matches(A_DEV)
    assert ALL.is_everything
    assert not NONE.matches(A_DEV)
    assert not NONE.is_everything
    assert not any(scope.is_everything for scope in (PROD, ACME, SHOPS))


def test_of_what_has_only_a_name_it_covers_what_it_would_cover_whatever_else_it_has() -> None:
    assert SHOPS.covers_by_name("shop-2")
    assert not SHOPS.covers_by_name("a")
    assert ALL.covers_by_name("a")
    assert not any(scope.covers_by_name("shop-2") for scope in (PROD, ACME, NONE))


def test_who_may_see_everything_is_shown_what_he_asks_for() -> None:
    asked = Filter(names=frozenset({"a"}))
    assert within(asked, ALL) is asked
    assert within(EVERYTHING, ALL).is_everything
    assert not within(EVERYTHING, PROD).is_everything


def test_somebody_is_shown_what_he_asks_for_as_far_as_he_may_see_it() -> None:
    shown = within(Filter(names=frozenset({"shop-1", "a"})), PROD)
    assert shown.matches(A_PROD)
    assert not shown.matches(A_DEV)
    assert not within(Filter(names=frozenset({"b"})), PROD).matches(A_PROD)


def test_what_he_did_not_ask_for_may_be_shown_and_what_he_may_not_see_is_not() -> None:
    shown = Within(Filter(names=frozenset({"b"})), PROD)
    assert shown.shows(A_PROD)
    assert not shown.shows(A_DEV)
    assert not shown.shows(None)


def test_the_fingerprint_tells_scopes_and_what_is_asked_apart() -> None:
    shown = [
        within(asked, scope).fingerprint
        for asked in (EVERYTHING, Filter(parse("env=prod")))
        for scope in (ALL, NONE, PROD, ACME, SHOPS)
    ]
    assert len(set(shown)) == len(shown)
    assert Scope(parse("a,b")).fingerprint == Scope(parse("b,a")).fingerprint


def test_it_says_what_it_covers() -> None:
    assert str(ALL) == "all"
    assert str(NONE) == "none"
    scope = Scope(parse("env=prod"), frozenset({"nasa", "acme"}), names(["shop-*", "a"]))
    assert str(scope) == "names a, shop-*; organizations acme, nasa; labels env in (prod)"
