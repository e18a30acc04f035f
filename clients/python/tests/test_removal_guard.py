"""Tests of the guard against mass removal of published objects."""

from __future__ import annotations

import pytest

from milo_discovery import Cluster, DisengageReason
from milo_discovery.options import FilterOptions
from milo_discovery.removals import (
    CONTESTED_S,
    ENDS,
    RECENT_S,
    SECOND_LOOK_S,
    Removal,
    Removals,
    filter_matches,
    filter_text,
)

ELSEWHERE = {
    DisengageReason.UNSPECIFIED,
    DisengageReason.REVOKED,
    DisengageReason.MOVED,
    DisengageReason.OWNERSHIP_LOST,
}
"""Reasons that lie in the subscriber or in the daemon."""


def missing(count: int, writing: int = 1) -> list[Removal]:
    return [Removal(f"p-{number}", f"p-{number}", str(number), f"{writing}-{number}") for number in range(count)]


def test_each_disengage_reason_is_classified_as_caused_by_the_cluster_or_not():
    assert set(DisengageReason) == ENDS | ELSEWHERE
    assert not ENDS & ELSEWHERE


@pytest.mark.parametrize(
    ("options", "matches"),
    [
        ({}, True),
        ({"label_selector": "tier in (gold, silver), !old"}, True),
        ({"label_selector": "tier=bronze"}, False),
        ({"organizations": ["acme"], "sources": ["eu"]}, True),
        ({"organizations": ["other"]}, False),
        ({"sources": ["us"], "label_selector": "tier=gold"}, False),
    ],
)
def test_filter_selects_clusters_by_labels_organization_and_source(options: FilterOptions, *, matches: bool):
    cluster = Cluster(name="eu#alpha", uid="1", labels={"tier": "gold"}, organization="acme", source="eu")
    assert filter_matches(options, cluster) is matches


def test_filters_that_select_the_same_have_one_text():
    """Found by a reader: after a space or a repeated option, a publisher took its objects for those of another run."""
    assert filter_text({"label_selector": " tier==gold, env in (prod,dev),env notin (x), !old ,size>2"}) == (
        "-l !old,env in (dev,prod),env!=x,size>2,tier=gold"
    )
    options = FilterOptions(organizations=["b", "a", "b"], sources=["eu", "eu"])
    assert filter_text(options) == "--organization a --organization b --source eu"
    assert filter_text({"label_selector": " "}) == ""
    assert filter_text({"label_selector": "a b"}) == "-l a b", "the daemon refuses it"


def review(
    removals: Removals,
    missing: list[Removal],
    published: int | range,
    now: float,
    *,
    others: int = 0,
    are_all_known: bool = True,
) -> list[Removal]:
    """Review the objects that are published, by their numbers in `missing`, with the last ones as others."""
    names = named(published)
    return removals.review(missing, names, now, others=names[len(names) - others :], are_all_known=are_all_known)


def named(numbers: int | range) -> list[str]:
    return [f"p-{number}" for number in (range(numbers) if isinstance(numbers, int) else numbers)]


def test_removal_is_confirmed_by_a_second_check():
    removals = Removals()
    assert review(removals, missing(1), 10, 0.0) == []
    assert removals.next_look_at(0.0) == SECOND_LOOK_S
    assert review(removals, missing(1), 10, SECOND_LOOK_S) == missing(1)
    assert removals.problem == ""
    assert removals.next_look_at(SECOND_LOOK_S) is None


def test_removal_of_a_cluster_that_came_back_between_two_checks_needs_two_new_checks():
    removals = Removals()
    review(removals, missing(1), 10, 0.0)
    removals.engaged("p-0", "0")
    assert review(removals, missing(1), 10, SECOND_LOOK_S) == []
    assert review(removals, missing(1), 10, 2 * SECOND_LOOK_S) == missing(1)


def test_removal_not_confirmed_by_the_second_check_needs_two_new_checks():
    removals = Removals()
    review(removals, missing(1), 10, 0.0)
    review(removals, [], 10, SECOND_LOOK_S)
    assert review(removals, missing(1), 10, SECOND_LOOK_S + 1) == []


@pytest.mark.parametrize(
    ("lacks", "published", "is_held"),
    [(1, 1, True), (1, 2, False), (2, 2, True), (2, 3, True), (10, 30, False), (11, 30, True), (11, 55, False)],
)
def test_mass_removal_is_held(lacks: int, published: int, is_held: bool):
    removals = Removals()
    review(removals, missing(lacks), published, 0.0)
    confirmed = review(removals, missing(lacks), published, SECOND_LOOK_S)
    assert (confirmed == [], bool(removals.problem)) == (is_held, is_held)
    assert removals.is_foreign is (is_held and lacks == published)


def test_held_mass_removal_is_canceled_when_the_clusters_are_engaged_again():
    removals = Removals()
    review(removals, missing(8), 10, 0.0)
    assert removals.next_look_at(0.0) == SECOND_LOOK_S
    review(removals, [], 10, 1.0)
    assert (removals.problem, removals.next_look_at(1.0)) == ("", None)


def removed_three_of_seven() -> Removals:
    removals = Removals()
    review(removals, missing(3), 7, 0.0)
    assert review(removals, missing(3), 7, SECOND_LOOK_S) == missing(3)
    return removals


def test_second_portion_of_missing_clusters_is_held_together_with_those_that_were_removed_before():
    """Found by a simulation: a view that came to lack five of seven clusters lacked three first, then half of four."""
    removals, rest = removed_three_of_seven(), missing(5)[3:]
    for now in (SECOND_LOOK_S + 1, 2 * SECOND_LOOK_S + 1, 2 * RECENT_S):
        assert review(removals, rest, range(3, 7), now) == []
        assert removals.problem.startswith("the daemon's view lacks 5 of 7 clusters")
        assert not removals.is_foreign
    assert review(removals, missing(7)[3:], range(3, 7), 2 * RECENT_S) == []
    assert removals.is_foreign
    review(removals, [], range(3, 7), 2 * RECENT_S + 1)
    assert removals.problem == ""


def test_removed_objects_count_as_missing_for_a_while():
    removals, rest, later = removed_three_of_seven(), missing(5)[3:], SECOND_LOOK_S + RECENT_S + 1
    assert review(removals, rest, range(3, 7), later) == []
    assert review(removals, rest, range(3, 7), later + SECOND_LOOK_S) == rest


def test_removed_objects_whose_clusters_are_missing_or_engaged_again_are_counted_once():
    removals = removed_three_of_seven()
    removals.engaged("p-0", "0")
    review(removals, missing(5)[1:], 8, SECOND_LOOK_S + 1)
    assert removals.problem == ""
    review(removals, missing(6)[1:], 8, SECOND_LOOK_S + 2)
    assert "lacks 5 of 8" in removals.problem


def test_accepted_removals_do_not_count_as_missing_afterwards():
    removals, rest = Removals(accepts=True), missing(5)[3:]
    review(removals, missing(3), 3, 0.0)
    assert review(removals, missing(3), 3, SECOND_LOOK_S) == missing(3)
    review(removals, [], 0, SECOND_LOOK_S + 1)
    review(removals, rest, range(3, 7), SECOND_LOOK_S + 2)
    assert review(removals, rest, range(3, 7), 2 * SECOND_LOOK_S + 2) == rest


def test_accepted_removals_need_a_second_check_and_are_accepted_once():
    removals = Removals(accepts=True)
    assert review(removals, missing(3), 3, 0.0) == []
    assert not removals.is_foreign
    assert review(removals, missing(3), 3, SECOND_LOOK_S) == missing(3)
    review(removals, [], 0, SECOND_LOOK_S + 1)
    review(removals, missing(3), 3, SECOND_LOOK_S + 2)
    assert removals.is_foreign


def test_removals_stay_accepted_while_others_are_left_about_which_nothing_is_known():
    removals = Removals(accepts=True)
    review(removals, [], 3, 0.0, are_all_known=False)
    assert review(removals, missing(3), 3, 1.0) == []
    assert review(removals, missing(3), 3, SECOND_LOOK_S + 1) == missing(3)


def deleted_once() -> Removals:
    removals = Removals()
    review(removals, missing(1), 10, 0.0)
    assert review(removals, missing(1), 10, SECOND_LOOK_S) == missing(1)
    return removals


def test_confirmed_removal_of_an_object_that_still_exists_remains_confirmed():
    assert review(deleted_once(), missing(1), 10, SECOND_LOOK_S + 1) == missing(1)


def test_object_recreated_by_another_process_is_not_deleted():
    removals = deleted_once()
    for now in (SECOND_LOOK_S + 1, 2 * SECOND_LOOK_S + 1, 2 * SECOND_LOOK_S + CONTESTED_S):
        assert review(removals, missing(1, writing=2), 10, now) == []
        assert removals.problem.startswith("deleted objects were written again (p-0), because")
    assert review(removals, [], 10, 3 * CONTESTED_S) == []
    assert removals.problem == ""


def test_object_recreated_by_the_same_process_is_deleted_again():
    removals = deleted_once()
    removals.engaged("p-0", missing(1)[0].cluster_uid)
    later = SECOND_LOOK_S + 1
    assert review(removals, missing(1, writing=2), 10, later) == []
    assert review(removals, missing(1, writing=2), 10, later + SECOND_LOOK_S) == missing(1, writing=2)


def test_object_recreated_long_after_its_deletion_is_deleted_again():
    removals, later = deleted_once(), SECOND_LOOK_S + CONTESTED_S + 1
    assert review(removals, missing(1, writing=2), 10, later) == []
    assert review(removals, missing(1, writing=2), 10, later + SECOND_LOOK_S) == missing(1, writing=2)


def test_removals_of_long_ago_take_no_memory():
    """Found by a reader: one entry stayed for each cluster that ended while the publisher had no stream."""
    removals = deleted_once()
    review(removals, [], 9, SECOND_LOOK_S + CONTESTED_S + 1)
    removals.created("p-10")
    removals.note_lacking(False)
    removals.created("p-11")
    assert vars(removals) == vars(Removals())


def test_object_recreated_by_another_process_does_not_delay_other_removals():
    removals, others = deleted_once(), missing(2)[1:]
    now = SECOND_LOOK_S + 1
    review(removals, [*missing(1, writing=2), *others], 10, now)
    assert review(removals, [*missing(1, writing=2), *others], 10, now + SECOND_LOOK_S) == others


def test_object_recreated_by_another_process_is_deleted_if_removals_are_accepted():
    removals = deleted_once()
    removals.accepts = True
    review(removals, missing(1, writing=2), 10, SECOND_LOOK_S + 1)
    assert review(removals, missing(1, writing=2), 10, 2 * SECOND_LOOK_S + 1) == missing(1, writing=2)


def test_new_run_removes_nothing_at_first_since_a_former_one_may_have_removed_others():
    """Found by a reader: two portions of a mass were removed by two processes."""
    removals, began_at = Removals(began_at=100.0), 100.0
    assert review(removals, missing(3), 7, began_at) == []
    assert removals.next_look_at(began_at) == began_at + RECENT_S
    assert review(removals, missing(3), 7, began_at + RECENT_S - 1) == []
    assert removals.is_new(began_at + RECENT_S - 1)
    assert not removals.is_new(began_at + RECENT_S)
    assert review(removals, missing(3), 7, began_at + RECENT_S) == missing(3)


def test_new_run_removes_at_once_what_an_administrator_accepts():
    removals = Removals(accepts=True, began_at=0.0)
    review(removals, missing(7), 7, 0.0)
    assert not removals.is_new(0.0)
    assert review(removals, missing(7), 7, SECOND_LOOK_S) == missing(7)


def test_objects_that_another_member_removed_count_as_missing_until_they_exist_again():
    removals, rest = Removals(), missing(5)[3:]
    for removal in missing(3):
        removals.removed_by_another(removal.name, 0.0)
    review(removals, rest, range(3, 7), 0.0)
    assert removals.problem.startswith("the daemon's view lacks 5 of 7 clusters")
    removals.restored("p-0")
    review(removals, rest, range(2, 7), 1.0)
    assert removals.problem.startswith("the daemon's view lacks 4 of 7 clusters")
    removals.restored("p-1")
    removals.restored("p-2")
    review(removals, rest, 7, 2.0)
    assert removals.problem == ""


def test_hold_stays_while_no_missing_cluster_can_be_judged():
    removals, rest = removed_three_of_seven(), missing(5)[3:]
    review(removals, rest, range(3, 7), SECOND_LOOK_S + 1)
    review(removals, [], range(3, 7), 2 * RECENT_S, others=2, are_all_known=False)
    assert removals.problem.startswith("the daemon's view lacks 5 of 7 clusters")
    review(removals, rest, range(3, 7), 2 * RECENT_S + 1)
    assert review(removals, rest, range(3, 7), 2 * RECENT_S + SECOND_LOOK_S + 1) == []
    review(removals, [], range(3, 7), 3 * RECENT_S)
    assert removals.problem == ""


def test_what_was_removed_before_counts_for_what_may_be_a_mass():
    removals, recent = removed_three_of_seven(), SECOND_LOOK_S + RECENT_S
    assert removals.may_be_mass(["p-3", "p-4"], named(range(3, 7)), recent)
    assert not removals.may_be_mass(["p-3", "p-4"], named(range(3, 7)), recent + 1)
    assert not removals.may_be_mass(["p-0", "p-1", "p-2"], named(7), recent), "each is counted once"
    assert not Removals(accepts=True).may_be_mass(["p-3"], ["p-3"], 0.0)


def test_objects_that_were_created_since_others_are_missing_release_no_hold():
    removals = Removals()
    review(removals, missing(5), 6, 0.0)
    assert removals.problem
    new = [f"new-{number}" for number in range(20)]
    for name in new:
        removals.created(name)
    names = [*named(6), *new]
    removals.review(missing(5), names, SECOND_LOOK_S)
    assert removals.problem.startswith("the daemon's view lacks 5 of 6 clusters")
    removals.review(missing(5), [*named(5), *new], SECOND_LOOK_S)
    assert removals.problem.startswith("the daemon's view lacks 5 of 6 clusters"), "the sixth has ended"
    removals.review([], names, SECOND_LOOK_S + 1)
    removals.note_lacking(False)
    assert removals.problem == ""
    assert vars(removals) == vars(Removals())


def test_view_that_lacks_what_was_created_since_others_are_missing_is_not_foreign():
    """Found by a reader: the right daemon was back, and nothing was written, since its clusters did not count."""
    removals = Removals()
    review(removals, missing(5), 6, 0.0)
    for removal in missing(26)[6:]:
        removals.created(removal.name)
    review(removals, missing(26)[6:], 26, SECOND_LOOK_S)
    assert removals.problem.startswith("the daemon's view lacks 20 of 26 clusters")
    assert not removals.is_foreign


def test_object_that_is_missing_for_long_holds_no_removals_in_a_fleet_that_is_replaced():
    """Found by a reader: a cluster that could not be looked up, and one that was removed, were "all 2 clusters"."""
    removals, new = Removals(), named(range(6, 46))
    removals.note_lacking(True)
    review(removals, [], 6, 0.0, others=6)
    for name in new:
        removals.created(name)
    for place in range(9):
        lacked, now = missing(7 + place)[6 + place :], (1 + 2 * place) * SECOND_LOOK_S
        published = ["p-0", *new[place:]]
        removals.review(lacked, published, now, others=["p-0"], are_all_known=False)
        confirmed = removals.review(lacked, published, now + SECOND_LOOK_S, others=["p-0"], are_all_known=False)
        assert (confirmed, removals.problem) == (lacked, "")
