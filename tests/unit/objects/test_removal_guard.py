"""The removal guard: when a list that lacks much of the fleet is applied."""

import pytest

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.removal_guard import (
    ConfirmAtRate,
    ConfirmEach,
    HeldRemovals,
    ListJudgement,
    RemovalDecision,
    RemovalGuard,
)
from milo_discoveryd.objects.store import ObjectStore
from tests.unit.fleet.fleets import ready

LIMITS = RemovalLimits(count=10, share=0.2, verify_after_s=30.0, per_second=50.0)


def judge(
    guard: RemovalGuard, missing: int, engaged: int, *, now: float = 0.0, went_back: bool = False, still_held: int = 0
) -> RemovalDecision:
    judgement = guard.judge(
        names(missing), established(engaged), versions_went_back=went_back, now=now, still_held=still_held
    )
    return decision(judgement, missing)


def established(count: int) -> ObjectStore:
    store = ObjectStore()
    store.apply_listed((ready(name, uid=uid), 0) for name, uid in names(count))
    return store


def names(count: int) -> list[tuple[str, str]]:
    return [(f"name-{number}", f"uid-{number}") for number in range(count)]


def decision(judgement: ListJudgement, missing: int) -> RemovalDecision:
    (group,) = judgement.removals
    assert group.objects == names(missing)
    assert not judgement.is_foreign
    return group.decision


@pytest.mark.parametrize(
    ("missing", "engaged"),
    [(0, 0), (0, 100), (1, 1), (1, 2), (10, 20), (10, 100), (20, 100), (200, 1000)],
)
def test_few_removals_are_confirmed_individually(missing: int, engaged: int) -> None:
    guard = RemovalGuard(LIMITS)
    assert judge(guard, missing, engaged) == ConfirmEach()
    assert guard.held is None


@pytest.mark.parametrize(("missing", "engaged"), [(2, 2), (2, 3), (6, 11), (11, 21), (21, 100), (201, 1000)])
def test_mass_removal_is_held(missing: int, engaged: int) -> None:
    guard = RemovalGuard(LIMITS)
    ruling = judge(guard, missing, engaged, now=5.0)
    assert isinstance(ruling, HeldRemovals)
    assert guard.held == ruling
    assert (ruling.since, guard.relist_at) == (5.0, 35.0)
    assert f"lacks {missing} of {engaged} engaged clusters" in ruling.message


def test_second_list_before_the_verify_after_delay_releases_no_removals() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    ruling = judge(guard, 100, 100, now=29.0)
    assert isinstance(ruling, HeldRemovals)
    assert (ruling.since, guard.relist_at) == (0.0, 30.0)


def test_second_list_releases_removals_at_limited_rate() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    assert judge(guard, 90, 100, now=30.0) == ConfirmAtRate(50.0)
    assert guard.held is None


def test_list_that_still_lacks_few_clusters_does_not_end_the_hold() -> None:
    """Each list of a directory that is being filled, or of a server that loads its store, has a few more objects."""
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    ruling = judge(guard, 3, 100, now=1.0)
    assert isinstance(ruling, HeldRemovals)
    assert (ruling.since, guard.relist_at) == (0.0, 30.0)
    assert judge(guard, 3, 100, now=30.0) == ConfirmEach()
    assert guard.held is None


def test_complete_list_ends_the_hold() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    assert judge(guard, 0, 100, now=1.0) == ConfirmEach()
    assert judge(guard, 3, 100, now=2.0) == ConfirmEach()


@pytest.mark.parametrize("missing", [1, 100])
def test_removals_by_list_of_restored_server_are_never_released(missing: int) -> None:
    guard = RemovalGuard(LIMITS)
    first = judge(guard, missing, 100, went_back=True)
    assert isinstance(first, HeldRemovals)
    assert guard.relist_at is None
    assert "versions went back" in first.message
    for later in (30.0, 3000.0):
        assert judge(guard, 0, 100, now=later, still_held=missing) == ConfirmEach()
        assert guard.held is not None
        assert (guard.held.since, guard.relist_at) == (0.0, None)


def test_few_removals_by_a_later_list_of_a_restored_server_are_confirmed_individually() -> None:
    guard = RemovalGuard(LIMITS)
    first = judge(guard, 3, 100, went_back=True)
    assert judge(guard, 2, 97, now=30.0, still_held=3) == ConfirmEach()
    assert guard.held == first


def test_mass_removal_by_a_restored_server_is_held() -> None:
    guard = RemovalGuard(LIMITS)
    first = judge(guard, 3, 100, went_back=True)
    assert judge(guard, 90, 97, now=30.0, still_held=3) == first
    assert judge(guard, 90, 97, now=3000.0, still_held=3) == first


def test_hold_after_a_restore_ends_when_no_removal_is_held() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 3, 100, went_back=True)
    assert guard.holds_restored
    assert judge(guard, 0, 100, now=30.0) == ConfirmEach()
    assert (guard.held, guard.holds_restored) == (None, False)


def test_later_list_of_restored_server_does_not_count_as_older_once_a_list_was_accepted() -> None:
    guard = RemovalGuard(LIMITS)
    for version, now, ignored in (("50", 0.0, True), ("50", 29.0, True), ("51", 30.0, False)):
        assert guard.is_behind(version, versions_went_back=True)
        assert guard.ignores(version, is_behind=True, now=now) is ignored
    assert not guard.is_behind("52", versions_went_back=True)
    # An earlier version is from a lagging replica of the restored server, or the server was restored again.
    assert guard.is_behind("51", versions_went_back=True)
    assert not guard.is_behind("121", versions_went_back=False)


def test_accepted_removals_are_confirmed_at_limited_rate() -> None:
    guard = RemovalGuard(LIMITS)
    assert not guard.accept(0.0)
    judge(guard, 100, 100, went_back=True)
    assert guard.accept(50.0)
    assert guard.relist_at == 50.0
    assert guard.is_accepting
    assert not guard.is_behind("1", versions_went_back=True)
    assert judge(guard, 100, 100, now=50.0) == ConfirmAtRate(50.0)
    assert (guard.held, guard.is_accepting, guard.holds_restored) == (None, False, False)


def test_accepted_complete_list_ends_the_hold() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    guard.accept(1.0)
    assert judge(guard, 0, 100, now=1.0) == ConfirmEach()
    assert guard.held is None


def test_list_of_another_server_can_be_accepted() -> None:
    guard = RemovalGuard(LIMITS)
    assert foreign(guard, 5, 0.0).is_foreign
    guard.accept(1.0)
    assert decision(foreign(guard, 5, 1.0), 5) == ConfirmAtRate(50.0)


def test_older_list_that_contains_every_cluster_holds_no_removal() -> None:
    guard = RemovalGuard(LIMITS)
    assert judge(guard, 0, 100, went_back=True) == ConfirmEach()
    assert guard.held is None


def test_older_second_list_keeps_all_held_removals() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    ruling = judge(guard, 100, 100, now=30.0, went_back=True)
    assert isinstance(ruling, HeldRemovals)
    assert guard.relist_at is None


def test_refuted_deletion_restarts_verification_of_held_removals() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 100, 100)
    judge(guard, 100, 100, now=30.0)
    held = guard.contradicted(31.0)
    assert guard.held == held
    assert (held.since, guard.relist_at) == (31.0, 61.0)
    assert isinstance(judge(guard, 99, 100, now=60.0), HeldRemovals)
    assert judge(guard, 99, 100, now=61.0) == ConfirmAtRate(50.0)


def test_f21_list_of_another_server_stays_held_and_is_requested_again() -> None:
    guard = RemovalGuard(LIMITS)
    for now in (0.0, 30.0, 60.0):
        assert guard.judge(names(5), established(5), versions_went_back=True, now=now, is_foreign=True).is_foreign
        assert guard.held is not None
        assert (guard.held.since, guard.relist_at) == (0.0, now + 30.0)


def foreign(
    guard: RemovalGuard, engaged: int, now: float, *, is_much_larger: bool = True, is_restored: bool = False
) -> ListJudgement:
    return guard.judge(
        names(engaged),
        established(engaged),
        versions_went_back=False,
        now=now,
        listed_count=100 * engaged if is_much_larger else engaged,
        is_foreign=True,
        is_restored=is_restored,
    )


def test_list_of_another_server_does_not_verify_the_first_list() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 0, 3)
    assert foreign(guard, 3, 31.0).is_foreign
    assert not guard.is_verified


def test_list_that_causes_a_hold_does_not_verify_the_first_list() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 0, 3)
    assert isinstance(judge(guard, 3, 3, now=31.0), HeldRemovals)
    assert not guard.is_verified


def test_unverified_first_list_is_superseded_by_two_larger_lists_of_another_server() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 0, 3)
    assert foreign(guard, 3, 2.0).is_foreign
    assert foreign(guard, 3, 20.0).is_foreign, "the second list is not due yet"
    assert decision(foreign(guard, 3, 32.0), 3) == ConfirmAtRate(50.0)
    assert guard.held is None
    assert guard.first_list.verify_at == 62.0, "this is the first list of that server"


@pytest.mark.parametrize(("is_verified", "is_much_larger"), [(True, True), (False, False)])
def test_first_list_is_superseded_by_list_of_another_server_only_if_unverified_and_much_smaller(
    is_verified: bool, is_much_larger: bool
) -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 0, 3)
    if is_verified:
        judge(guard, 0, 3, now=30.0)
    for now in (40.0, 70.0, 100.0):
        assert foreign(guard, 3, now, is_much_larger=is_much_larger).is_foreign


def test_restored_clusters_are_superseded_by_two_lists_of_another_server() -> None:
    guard = RemovalGuard(LIMITS)
    judge(guard, 0, 3)
    judge(guard, 0, 3, now=30.0)
    assert foreign(guard, 3, 40.0, is_restored=True).is_foreign
    assert decision(foreign(guard, 3, 70.0, is_restored=True), 3) == ConfirmAtRate(50.0)
    assert guard.is_verified


def test_f21_list_of_another_server_is_not_recognized_with_one_cluster() -> None:
    assert decision(foreign(RemovalGuard(LIMITS), 1, 0.0), 1) == ConfirmEach()


def test_deletions_reported_by_the_watch_beyond_the_limit_are_held() -> None:
    guard = RemovalGuard(LIMITS)
    assert [guard.deletion_reported(established(20 - number), float(number)) for number in range(10)] == [None] * 10
    held = guard.deletion_reported(established(10), 10.0)
    assert held is not None
    assert held == guard.held
    assert (held.since, guard.relist_at) == (10.0, 40.0)
    assert held.message.startswith("the API server's watch reported the deletion of 11 engaged clusters within 30 s")
    assert guard.deletion_reported(established(10), 11.0) == held


def test_watched_deletions_are_held_only_if_they_exceed_the_share_limit_within_30_seconds() -> None:
    guard = RemovalGuard(LIMITS)
    assert [guard.deletion_reported(established(20), 31.0 * number) for number in range(30)] == [None] * 30
    guard = RemovalGuard(LIMITS)
    assert [guard.deletion_reported(established(1000 - number), 0.0) for number in range(200)] == [None] * 200
    assert guard.deletion_reported(established(800), 0.0) is not None


def test_held_deletions_confirmed_by_a_list_are_released_at_the_limited_rate() -> None:
    guard = RemovalGuard(LIMITS)
    for number in range(30):
        guard.deletion_reported(established(100 - number), 0.0)
    assert isinstance(judge(guard, 60, 80, now=29.0), HeldRemovals)
    assert judge(guard, 60, 80, now=30.0) == ConfirmAtRate(50.0)


def test_first_list_is_verified_by_a_list_after_the_verify_after_delay() -> None:
    guard = RemovalGuard(LIMITS)
    assert guard.first_list.verify_at is None, "the first list is on its way"
    judge(guard, 0, 3, now=2.0)
    assert guard.first_list.verify_at == 32.0
    judge(guard, 0, 3, now=10.0)
    assert not guard.is_verified
    judge(guard, 0, 3, now=32.0)
    assert (guard.is_verified, guard.first_list.verify_at) == (True, None)


def test_verification_of_the_first_list_can_be_brought_forward() -> None:
    guard = RemovalGuard(LIMITS)
    guard.verify_first(0.0)
    judge(guard, 0, 3, now=2.0)
    guard.verify_first(6.0)
    assert guard.first_list.verify_at == 6.0
    assert not guard.is_accepting, "nothing is held"
    judge(guard, 0, 3, now=7.0)
    assert guard.is_verified
