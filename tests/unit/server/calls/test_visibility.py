"""What a caller is told of names and numbers."""

import pytest

from milo_discoveryd.model.selector import parse
from milo_discoveryd.model.source import SourceState, SourceStatus
from milo_discoveryd.reflect.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope
from milo_discoveryd.server.calls import visibility
from milo_discoveryd.server.calls.visibility import Counts
from tests.unit.registry.fleets import at, malformed, not_ready, outside, readable_log, ready

PROD = ClusterScope(parse("env=prod"))
SHOPS = ClusterScope(names=name_patterns(["shop-*"]))


@pytest.fixture
def registry() -> Registry:
    made = Registry(readable_log())
    made.commit(
        [
            ready("shop-1", labels={"env": "prod"}),
            ready("shop-2", labels={"env": "dev"}),
            ready("shop-gone", labels={"env": "prod"}),
            not_ready("shop-never"),
            malformed("other-malformed"),
            ready("other", labels={"env": "prod"}),
        ],
        at(0),
    )
    made.commit([ConfirmedDeletion("shop-gone", "u1")], at(1))
    return made


def visible(registry: Registry, scope: ClusterScope) -> set[str]:
    return {name for name, record in registry.items() if visibility.seen(name, record, scope) is not None}


def test_who_may_see_everything_sees_every_name(registry: Registry) -> None:
    assert visible(registry, ALL_CLUSTERS) == {name for name, _ in registry.items()}
    assert visible(registry, NO_CLUSTERS) == set()


def test_by_labels_is_seen_what_has_or_had_them(registry: Registry) -> None:
    assert visible(registry, PROD) == {"shop-1", "shop-gone", "other"}


def test_by_name_is_seen_whatever_has_it(registry: Registry) -> None:
    assert visible(registry, SHOPS) == {"shop-1", "shop-2", "shop-gone", "shop-never"}


def test_a_name_that_nobody_has_is_not_seen(registry: Registry) -> None:
    for scope in (ALL_CLUSTERS, PROD, SHOPS, NO_CLUSTERS):
        assert visibility.seen("shop-99", registry["shop-99"], scope) is None


def test_of_another_object_under_the_name_nothing_is_known(registry: Registry) -> None:
    registry.commit([not_ready("shop-1", "5", uid="u2")], at(2))
    assert "shop-1" not in visible(registry, PROD)
    assert "shop-1" in visible(registry, SHOPS)


def test_what_happened_before_its_incarnation_is_not_told(registry: Registry) -> None:
    registry.commit([ready("shop-1", "5", uid="u2", labels={"env": "prod"})], at(2))
    record = registry["shop-1"]
    assert record is not None
    assert len(list(visibility.transitions(record, ALL_CLUSTERS))) == 3
    assert len(list(visibility.transitions(record, PROD))) == 1


def test_of_what_only_its_name_is_known_no_history_is_told(registry: Registry) -> None:
    record = registry["shop-never"]
    assert record is not None
    assert list(visibility.transitions(record, SHOPS)) == []


def test_numbers_are_of_what_is_seen(registry: Registry) -> None:
    registry.commit([outside("shop-2", "5")], at(2))
    assert visibility.counts(registry) == Counts(engaged=2, not_ready=1, outside=1, malformed=1)
    assert visibility.visible_counts(registry.items(), ALL_CLUSTERS) == visibility.counts(registry)
    assert visibility.visible_counts(registry.items(), PROD) == Counts(engaged=2, not_ready=0, outside=0, malformed=0)
    assert visibility.visible_counts(registry.items(), SHOPS) == Counts(engaged=1, not_ready=1, outside=1, malformed=0)
    assert visibility.visible_counts(registry.items(), NO_CLUSTERS) == Counts(
        engaged=0, not_ready=0, outside=0, malformed=0
    )


def test_numbers_of_parts_add_up() -> None:
    assert Counts(engaged=1, malformed=2) + Counts(engaged=3, outside=4) == Counts(engaged=4, outside=4, malformed=2)


def test_of_the_source_only_who_sees_everything_is_told_in_words() -> None:
    status = SourceStatus(SourceState.STALE, 1.0, "RemovalsHeld", "its list lacks 3 of 9", 0.5)
    assert visibility.source(status, ALL_CLUSTERS) is status
    assert visibility.source(status, PROD) == SourceStatus(SourceState.STALE, 1.0, "RemovalsHeld", "", 0.5)
