"""Scopes, and filters limited to a scope."""

import pytest

from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope, ScopedFilter, scoped
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import cluster

PROD = ClusterScope(parse("env=prod"))
ACME = ClusterScope(organizations=frozenset({"acme"}))
SHOPS = ClusterScope(names=name_patterns(["shop-*"]))
A_PROD = cluster("shop-1", labels={"env": "prod"}, organization="acme")
A_DEV = cluster("a", labels={"env": "dev"}, organization="nasa")


def test_scope_matches_when_all_its_conditions_match() -> None:
    everything = ClusterScope(parse("env=prod"), frozenset({"acme"}), name_patterns(["shop-*"]))
    assert everything.matches(A_PROD)
    for scope in (PROD, ACME, SHOPS):
        assert scope.matches(A_PROD)
        assert not scope.matches(A_DEV)


def test_scope_all_matches_every_cluster_and_scope_none_matches_no_cluster() -> None:
    assert ALL_CLUSTERS.matches(A_DEV)
    assert ALL_CLUSTERS.is_everything
    assert not NO_CLUSTERS.matches(A_DEV)
    assert not NO_CLUSTERS.is_everything
    assert not any(scope.is_everything for scope in (PROD, ACME, SHOPS))


def test_scope_with_conditions_other_than_names_covers_no_cluster_by_its_name() -> None:
    assert SHOPS.covers_by_name("shop-2")
    assert not SHOPS.covers_by_name("a")
    assert ALL_CLUSTERS.covers_by_name("a")
    assert not any(scope.covers_by_name("shop-2") for scope in (PROD, ACME, NO_CLUSTERS))


def test_scoped_filter_with_full_scope_is_the_unchanged_filter() -> None:
    asked = Filter(names=frozenset({"a"}))
    assert scoped(asked, ALL_CLUSTERS) is asked
    assert scoped(EVERYTHING, ALL_CLUSTERS).is_everything
    assert not scoped(EVERYTHING, PROD).is_everything


def test_scoped_filter_matches_clusters_that_match_filter_and_scope() -> None:
    shown = scoped(Filter(names=frozenset({"shop-1", "a"})), PROD)
    assert shown.matches(A_PROD)
    assert not shown.matches(A_DEV)
    assert not scoped(Filter(names=frozenset({"b"})), PROD).matches(A_PROD)


def test_scoped_filter_shows_only_clusters_within_scope() -> None:
    shown = ScopedFilter(Filter(names=frozenset({"b"})), PROD)
    assert shown.shows(A_PROD)
    assert not shown.shows(A_DEV)
    assert not shown.shows(None)


def test_scoped_filter_fingerprint_differs_by_scope_and_filter() -> None:
    shown = [
        scoped(asked, scope).fingerprint
        for asked in (EVERYTHING, Filter(parse("env=prod")))
        for scope in (ALL_CLUSTERS, NO_CLUSTERS, PROD, ACME, SHOPS)
    ]
    assert len(set(shown)) == len(shown)
    assert ClusterScope(parse("a,b")).fingerprint == ClusterScope(parse("b,a")).fingerprint


def test_scope_string_lists_its_conditions() -> None:
    assert str(ALL_CLUSTERS) == "all"
    assert str(NO_CLUSTERS) == "none"
    scope = ClusterScope(parse("env=prod"), frozenset({"nasa", "acme"}), name_patterns(["shop-*", "a"]))
    assert str(scope) == "names a, shop-*; organizations acme, nasa; labels env in (prod)"


def test_scope_of_sources_covers_their_clusters() -> None:
    scope = ClusterScope(sources=frozenset({"shop"}))
    assert [scope.covers(Target(name=name, uid="u", place=("https://a.test",))) for name in ("shop#a", "blog#a")] == [
        True,
        False,
    ]
    assert (scope.covers_by_name("shop#a"), scope.covers_by_name("blog#a")) == (True, False)


def test_empty_scope_covers_nothing() -> None:
    assert not ClusterScope(is_empty=True).covers(Target(name="a", uid="u", place=("https://a.test",)))


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        (ClusterScope(), {"", "eu", "us"}),
        (NO_CLUSTERS, set()),
        (ClusterScope(sources=frozenset({"eu"})), {"eu"}),
        (ClusterScope(names=name_patterns(["eu#shop"])), {"", "eu"}),
        (ClusterScope(names=name_patterns(["e*", "u*p"])), {""}),
        (ClusterScope(names=name_patterns(["e*#*", "u*#p"])), {"", "eu", "us"}),
        (ClusterScope(names=name_patterns(["eu#s*"])), {"", "eu"}),
        (ClusterScope(organizations=frozenset({"acme"})), {"", "eu", "us"}),
    ],
)
def test_scope_covers_each_source_that_may_have_a_cluster_in_scope(scope: ClusterScope, covered: set[str]) -> None:
    assert {source for source in ("", "eu", "us") if scope.covers_source(source)} == covered
