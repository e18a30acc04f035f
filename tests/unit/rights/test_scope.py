"""Which clusters a scope covers, and what is seen through it."""

from milo_discoveryd.model.selector import parse
from milo_discoveryd.registry.filter import EVERYTHING, Filter
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope, ScopedFilter, scoped
from tests.unit.registry.fleets import cluster

PROD = ClusterScope(parse("env=prod"))
ACME = ClusterScope(organizations=frozenset({"acme"}))
SHOPS = ClusterScope(names=name_patterns(["shop-*"]))
A_PROD = cluster("shop-1", labels={"env": "prod"}, organization="acme")
A_DEV = cluster("a", labels={"env": "dev"}, organization="nasa")


def test_all_that_is_set_must_match() -> None:
    everything = ClusterScope(parse("env=prod"), frozenset({"acme"}), name_patterns(["shop-*"]))
    assert everything.matches(A_PROD)
    for scope in (PROD, ACME, SHOPS):
        assert scope.matches(A_PROD)
        assert not scope.matches(A_DEV)


def test_all_covers_everything_and_none_nothing() -> None:
    assert ALL_CLUSTERS.matches(A_DEV)
    assert ALL_CLUSTERS.is_everything
    assert not NO_CLUSTERS.matches(A_DEV)
    assert not NO_CLUSTERS.is_everything
    assert not any(scope.is_everything for scope in (PROD, ACME, SHOPS))


def test_of_what_has_only_a_name_it_covers_what_it_would_cover_whatever_else_it_has() -> None:
    assert SHOPS.covers_by_name("shop-2")
    assert not SHOPS.covers_by_name("a")
    assert ALL_CLUSTERS.covers_by_name("a")
    assert not any(scope.covers_by_name("shop-2") for scope in (PROD, ACME, NO_CLUSTERS))


def test_who_may_see_everything_is_shown_what_he_asks_for() -> None:
    asked = Filter(names=frozenset({"a"}))
    assert scoped(asked, ALL_CLUSTERS) is asked
    assert scoped(EVERYTHING, ALL_CLUSTERS).is_everything
    assert not scoped(EVERYTHING, PROD).is_everything


def test_somebody_is_shown_what_he_asks_for_as_far_as_he_may_see_it() -> None:
    shown = scoped(Filter(names=frozenset({"shop-1", "a"})), PROD)
    assert shown.matches(A_PROD)
    assert not shown.matches(A_DEV)
    assert not scoped(Filter(names=frozenset({"b"})), PROD).matches(A_PROD)


def test_what_he_did_not_ask_for_may_be_shown_and_what_he_may_not_see_is_not() -> None:
    shown = ScopedFilter(Filter(names=frozenset({"b"})), PROD)
    assert shown.shows(A_PROD)
    assert not shown.shows(A_DEV)
    assert not shown.shows(None)


def test_the_fingerprint_tells_scopes_and_what_is_asked_apart() -> None:
    shown = [
        scoped(asked, scope).fingerprint
        for asked in (EVERYTHING, Filter(parse("env=prod")))
        for scope in (ALL_CLUSTERS, NO_CLUSTERS, PROD, ACME, SHOPS)
    ]
    assert len(set(shown)) == len(shown)
    assert ClusterScope(parse("a,b")).fingerprint == ClusterScope(parse("b,a")).fingerprint


def test_it_says_what_it_covers() -> None:
    assert str(ALL_CLUSTERS) == "all"
    assert str(NO_CLUSTERS) == "none"
    scope = ClusterScope(parse("env=prod"), frozenset({"nasa", "acme"}), name_patterns(["shop-*", "a"]))
    assert str(scope) == "names a, shop-*; organizations acme, nasa; labels env in (prod)"
