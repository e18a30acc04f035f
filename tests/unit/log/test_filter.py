"""Filters, and the views made of them."""

import pytest

from milo_discoveryd.log.filter import EVERYTHING, RECORDS_PER_STEP, Filter, without_sources
from milo_discoveryd.rights.scope import ClusterScope, scoped
from milo_kube.label_selector import parse
from tests.unit.fleet.fleets import cluster

APOLLO = cluster("apollo", organization="nasa", labels={"env": "prod"})


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (EVERYTHING, True),
        (Filter(names=frozenset({"apollo", "gemini"})), True),
        (Filter(names=frozenset({"gemini"})), False),
        (Filter(organizations=frozenset({"nasa"})), True),
        (Filter(organizations=frozenset({"esa"})), False),
        (Filter(parse("env=prod")), True),
        (Filter(parse("env!=prod")), False),
        (Filter(parse("env=prod"), frozenset({"apollo"}), frozenset({"nasa"})), True),
        (Filter(parse("env=prod"), frozenset({"apollo"}), frozenset({"esa"})), False),
    ],
)
def test_filter_requires_all_conditions(wanted: Filter, matches: bool) -> None:
    assert wanted.matches(APOLLO) is matches


def test_step_compares_fewer_records_with_the_requirements_of_filter_and_rights_together() -> None:
    few, many = parse("a"), parse(",".join(f"a!={number}" for number in range(19)))
    assert Filter(few).records_per_step == EVERYTHING.records_per_step == RECORDS_PER_STEP
    assert Filter(many).records_per_step == 105
    view = scoped(Filter(many), ClusterScope(few))
    assert without_sources(view, frozenset({"eu"})).records_per_step == 100


def test_empty_filter_matches_everything() -> None:
    assert EVERYTHING.is_everything
    assert Filter(parse("")).fingerprint == EVERYTHING.fingerprint == "all"
    assert not Filter(names=frozenset({"a"})).is_everything


def test_equal_filters_have_the_same_fingerprint_in_every_process() -> None:
    one = Filter(parse("a=1,b"), frozenset({"x", "y"}))
    other = Filter(parse("b, a in (1)"), frozenset({"y", "x"}))
    assert one.fingerprint == other.fingerprint == "1674ca829e012c3c"


def test_different_filters_have_different_fingerprints() -> None:
    filters = [
        EVERYTHING,
        Filter(parse("a")),
        Filter(parse("!a")),
        Filter(names=frozenset({"a"})),
        Filter(organizations=frozenset({"a"})),
        Filter(names=frozenset({"a", "b"})),
        Filter(names=frozenset({"a,b"})),
    ]
    assert len({wanted.fingerprint for wanted in filters}) == len(filters)


def test_filter_by_source_matches_only_clusters_of_the_source() -> None:
    wanted = Filter(sources=frozenset({"eu"}))
    assert wanted.matches(cluster("eu#a", source="eu"))
    assert not wanted.matches(cluster("us#a", source="us"))
    assert not wanted.matches(cluster("a"))
    assert not wanted.is_everything
    assert wanted.fingerprint != Filter(sources=frozenset({"us"})).fingerprint


def test_view_that_excludes_a_source_matches_no_cluster_of_the_source() -> None:
    view = without_sources(EVERYTHING, frozenset({"eu"}))
    assert not view.matches(cluster("eu#a", source="eu"))
    assert view.matches(cluster("us#a", source="us"))
    assert view.shows(cluster("us#a", source="us"))
    assert not view.is_everything
    assert not view.confirms_releases
    assert view.fingerprint != EVERYTHING.fingerprint
    assert without_sources(EVERYTHING, frozenset()) is EVERYTHING


def test_unfiltered_view_shows_all_that_its_reader_may_see() -> None:
    wanted = Filter(names=frozenset("a"), sources=frozenset({"eu"}), confirms_releases=True)
    for view in (wanted, without_sources(wanted, frozenset({"us"}))):
        assert view.unfiltered == Filter(confirms_releases=True)
