"""The records, transitions, counts and messages that a caller may see."""

import msgspec
import pytest

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.model.observation import NotReady, ObjectFields, Outside, Ready
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope
from milo_discoveryd.server.calls import visibility
from milo_discoveryd.server.calls.visibility import VisibleCounts
from milo_kube.label_selector import parse
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.unit.fleet.fleets import at, malformed, not_ready, outside, ready, target
from tests.unit.fleet.fleets import engagements as new_clusters

PROD = ClusterScope(parse("env=prod"))
SHOPS = ClusterScope(names=name_patterns(["shop-*"]))


@pytest.fixture
def engagements() -> Engagements:
    made = new_clusters()
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


def visible(engagements: Engagements, scope: ClusterScope) -> set[str]:
    return {name for name, record in engagements.items() if visibility.visible_record(name, record, scope) is not None}


def test_full_scope_sees_every_record_and_empty_scope_sees_none(engagements: Engagements) -> None:
    assert visible(engagements, ALL_CLUSTERS) == {name for name, _ in engagements.items()}
    assert visible(engagements, NO_CLUSTERS) == set()


def test_label_scope_sees_records_by_labels(engagements: Engagements) -> None:
    assert visible(engagements, PROD) == {"shop-1", "shop-gone", "other"}


def test_name_scope_sees_records_by_name(engagements: Engagements) -> None:
    assert visible(engagements, SHOPS) == {"shop-1", "shop-2", "shop-gone", "shop-never"}


def test_unknown_cluster_name_is_not_visible(engagements: Engagements) -> None:
    for scope in (ALL_CLUSTERS, PROD, SHOPS, NO_CLUSTERS):
        assert visibility.visible_record("shop-99", engagements["shop-99"], scope) is None


def test_replaced_object_is_not_visible_by_former_labels(engagements: Engagements) -> None:
    engagements.commit([not_ready("shop-1", "5", uid="u2")], at(2))
    assert "shop-1" not in visible(engagements, PROD)
    assert "shop-1" in visible(engagements, SHOPS)


def test_transitions_of_earlier_incarnations_are_hidden_from_limited_scopes(engagements: Engagements) -> None:
    engagements.commit([ready("shop-1", "5", uid="u2", labels={"env": "prod"})], at(2))
    record = engagements["shop-1"]
    assert record is not None
    assert len(list(visibility.visible_transitions(record, ALL_CLUSTERS))) == 3
    assert len(list(visibility.visible_transitions(record, PROD))) == 1


def test_record_of_an_object_that_was_never_engaged_has_no_visible_transitions(engagements: Engagements) -> None:
    record = engagements["shop-never"]
    assert record is not None
    assert list(visibility.visible_transitions(record, SHOPS)) == []


def test_source_counts_include_only_visible_records(engagements: Engagements) -> None:
    engagements.commit([outside("shop-2", "5")], at(2))
    assert visibility.total_counts(engagements) == VisibleCounts(
        engaged=2, not_ready=1, outside_selector=1, malformed=1
    )
    assert visibility.visible_counts(engagements.items(), ALL_CLUSTERS) == visibility.total_counts(engagements)
    assert visibility.visible_counts(engagements.items(), PROD) == VisibleCounts(
        engaged=2, not_ready=0, outside_selector=0, malformed=0
    )
    assert visibility.visible_counts(engagements.items(), SHOPS) == VisibleCounts(
        engaged=1, not_ready=1, outside_selector=1, malformed=0
    )
    assert visibility.visible_counts(engagements.items(), NO_CLUSTERS) == VisibleCounts(
        engaged=0, not_ready=0, outside_selector=0, malformed=0
    )


def test_source_message_is_visible_only_with_full_scope() -> None:
    status = ViewStatus(ViewState.STALE, 1.0, "RemovalsHeld", "the source's list lacks 3 of 9", 0.5)
    assert visibility.visible_source(status, ALL_CLUSTERS) is status
    assert visibility.visible_source(status, PROD) == ViewStatus(ViewState.STALE, 1.0, "RemovalsHeld", "", 0.5)


def test_not_ready_object_is_visible_by_its_current_labels(engagements: Engagements) -> None:
    """The labels of the last engagement no longer matter."""
    dev = ClusterScope(parse("env=dev"))
    for version in ("5", "6"):
        fields = ObjectFields("shop-1", "", (("env", "dev"),))
        engagements.commit([NotReady("shop-1", "u1", version, f"message {version}", fields=fields)], at(2))
        assert "shop-1" not in visible(engagements, PROD)
        assert "shop-1" in visible(engagements, dev)
    engagements.commit([ready("shop-1", "7", labels={"env": "prod"})], at(3))
    assert "shop-1" in visible(engagements, PROD)
    assert "shop-1" not in visible(engagements, dev)


def test_object_outside_the_selector_is_not_visible_by_its_former_labels(engagements: Engagements) -> None:
    fields = ObjectFields("shop-1", "", (("env", "dev"),))
    engagements.commit([Outside("shop-1", "u1", "5", "not selected", fields)], at(2))
    assert "shop-1" not in visible(engagements, PROD)


def test_malformed_object_that_is_not_engaged_is_visible_by_name_only(engagements: Engagements) -> None:
    engagements.commit([not_ready("shop-1", "5"), malformed("shop-1", "6")], at(2))
    assert "shop-1" not in visible(engagements, PROD)
    assert "shop-1" in visible(engagements, SHOPS)


def test_cluster_whose_uid_differs_from_that_of_its_object_is_visible_by_its_labels() -> None:
    """In mode `project-control-plane`, the UID of the project is not that of the watched object."""
    engagements = new_clusters()
    seen = ready("shop-1", uid="project-uid", labels={"env": "prod"})
    engagements.commit([msgspec.structs.replace(seen, uid="object-uid")], at(0))
    assert visible(engagements, PROD) == {"shop-1"}
    record = engagements["shop-1"]
    assert record is not None
    assert len(list(visibility.visible_transitions(record, PROD))) == 1
    engagements.commit([malformed("shop-1", "5", uid="another object")], at(1))
    assert visible(engagements, PROD) == set()


def test_configured_clusters_are_visible_by_their_labels() -> None:
    """In mode `single`, clusters have no watched object at all."""
    engagements = new_clusters()
    targets = [target("shop-1", "", labels={"env": "prod"}), target("other", "", labels={"env": "dev"})]
    engagements.commit([Ready(each.uid, "", each) for each in targets], at(0))
    assert visible(engagements, PROD) == visible(engagements, SHOPS) == {"shop-1"}


def test_counts_include_clusters_disengaged_as_unreachable() -> None:
    engagements = new_clusters()
    (engaged,) = engagements.commit([ready("a")], at(0))
    engagements.disengage_unreachable("a", engaged.cluster.incarnation, "not reached", at(1))
    assert visibility.total_counts(engagements) == VisibleCounts(unreachable=1)


def test_problem_of_a_deletion_is_visible_only_to_callers_that_may_see_every_cluster() -> None:
    problem = "reading bank-1 from it failed"
    assert visibility.visible_problem(problem, ALL_CLUSTERS) == problem
    assert visibility.visible_problem(problem, PROD) == ""
