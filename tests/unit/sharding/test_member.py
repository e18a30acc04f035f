"""One member's decisions, among members that share a fault-free Lease API."""

from collections.abc import Callable
from math import inf

import msgspec
import pytest

from milo_discoveryd.sharding.leases import (
    MAX_MEMBERS,
    MAX_NUMBER,
    PENDING_SIZE,
    Delete,
    Evict,
    GroupState,
    MemberLease,
    Read,
    Request,
    View,
    ViewMember,
    WaitUntil,
    WriteLease,
    WriteView,
)
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.observed_group import ObservedGroup
from milo_discoveryd.sharding.ownership import KeyOwnership
from milo_discoveryd.sharding.timing import TIMING
from tests.unit.sharding.driver import Driver

ALL = {str(number) for number in range(30)}


def settled(*names: str) -> Driver:
    driver = Driver(*names)
    driver.run_until(lambda: set().union(*map(driver.owned, names)) == ALL)
    return driver


def is_settled(driver: Driver, *names: str) -> bool:
    return all(driver.members[name].is_settled for name in names) and set().union(*map(driver.owned, names)) == ALL


def test_pending_clusters_of_a_deleted_lease_have_no_new_owner_for_33_seconds() -> None:
    driver = settled("a", "b")
    driver.pending = {"a": driver.owned("a")}
    driver.members["a"].leave()
    driver.run_until(lambda: driver.api.group.members["a"].pending)
    driver.run(2, "b")
    driver.api.delete("a", driver.now)
    deleted_at = driver.now
    driver.run_until(lambda: driver.owned("b") == ALL, "b")
    assert driver.now - deleted_at >= TIMING.evict_after_s


@pytest.mark.parametrize("changes", [None, {"problem": "malformed"}, {"holder": "", "term": "a#1.1"}])
@pytest.mark.parametrize("former", ["left", "evicted", "present"])
def test_members_keep_what_they_engaged_if_the_lease_of_its_former_owner_is_deleted_or_changed(
    former: str, changes: dict[str, object] | None
) -> None:
    """Found by a reader: they disengaged it for 33 s, although the former owner had released it or was evicted."""
    driver = settled("a", "b", *["c"] * (former != "present"))
    if former == "present":
        driver.add("c", Member("c", "c#1"))
    elif former == "left":
        driver.members["a"].leave()
    else:
        driver.members.pop("a")
    driver.run(60)
    driver.members.pop("a", None)
    owned = {name: driver.owned(name) for name in ("b", "c")}
    assert all(owned.values())
    if changes is None:
        driver.api.delete("a", driver.now)
    else:
        driver.api.change("a", driver.now, **changes)
    for _ in range(120):
        driver.run(0.25)
        assert all(owned[name] <= driver.owned(name) for name in owned)


@pytest.mark.parametrize("is_leaving", [False, True])
def test_clusters_of_a_lease_whose_holder_was_cleared_have_no_new_owner_for_33_seconds(is_leaving: bool) -> None:
    """Found by a reader: it counted as released, while its member, which had not read that yet, owned its clusters."""
    driver = settled("a", "b")
    driver.pending = {"a": driver.owned("a")}
    if is_leaving:
        driver.members["a"].leave()
        driver.run_until(lambda: driver.api.group.members["a"].is_leaving)
    driver.api.change("a", driver.now, holder="")
    cleared_at = driver.now
    while driver.owned("b") != ALL:
        assert driver.now < cleared_at + 60
        driver.run(1, "b")
        if driver.now < cleared_at + 20:
            driver.api.change("a", driver.now, weight=driver.now)
    assert driver.now - cleared_at >= TIMING.evict_after_s
    assert "a" not in driver.api.views[-1].members


def test_pending_clusters_of_a_lease_that_became_malformed_have_no_new_owner_while_its_member_may_run() -> None:
    """Found by the simulation of seed 5004949: a later view no longer has the former owners of the clusters."""
    driver = settled("a", "b")
    driver.pending = {"a": driver.owned("a")}
    driver.add("c", Member("c", "c#1"))
    driver.run_until(lambda: driver.api.group.members["a"].pending)
    pending = driver.api.group.members["a"].pending
    driver.add("d", Member("d", "d#1", weight=0.001))
    driver.run_until(lambda: len(driver.api.views) == 3 and driver.members["c"].is_confirmed)
    driver.run(2)
    driver.api.change("a", driver.now, **FORGED["unreadable"], pending=frozenset(), acknowledged=0)
    changed_at = driver.now
    while not driver.owned("c") & pending:
        driver.run(0.25, "b", "c", "d")
    assert driver.now - changed_at >= TIMING.evict_after_s


def test_successor_lists_the_pending_clusters_of_its_predecessor_while_operators_may_act() -> None:
    driver = settled("a", "b")
    moved = driver.owned("a")
    driver.pending = {"a": moved}
    driver.add("c", Member("c", "c#1"))
    driver.run_until(lambda: driver.api.group.members["a"].pending)
    pending = driver.api.group.members["a"].pending
    driver.pending = {}
    driver.add("a", Member("a", "a#2"))
    driver.run_until(lambda: driver.members["a"].tenure)
    started_at = driver.now
    driver.run(TIMING.fence_after_s)
    assert driver.api.group.members["a"].pending == pending
    driver.run_until(lambda: is_settled(driver, *"abc"))
    assert driver.now - started_at >= TIMING.evict_after_s


@pytest.mark.parametrize("has_acknowledged", [False, True])
def test_successor_that_no_longer_knows_what_is_released_reports_nothing_that_it_knew_before(
    *, has_acknowledged: bool
) -> None:
    """Found by a reader and the simulation of seed 9100598: what it knew was of before its operators had returned."""
    driver = settled("a", "b")
    driver.pending = {"a": driver.owned("a")}
    driver.holds_drain = set() if has_acknowledged else {"a"}
    driver.add("c", Member("c", "c#1"))
    driver.run_until(lambda: len(driver.api.views) == 2 and is_acknowledged(driver, "b", "c"))
    driver.run(2)
    former = driver.api.group.members["a"]
    assert bool(former.pending) is (former.acknowledged == 2) is has_acknowledged
    successor = driver.add("a", Member("a", "a#2"))
    driver.pending, driver.holds_drain = {}, set()
    driver.run_until(lambda: successor.tenure and successor.tenure.drained == 2)
    driver.holds_drain = {"a"}
    assert successor.drained(2, None)
    driver.run(TIMING.evict_after_s + 10)
    lease = driver.api.group.members["a"]
    assert (lease.holder, lease.acknowledged, lease.pending) == ("a#2", former.acknowledged, former.pending)
    assert successor.drained(2)
    driver.run_until(lambda: is_settled(driver, *"abc"))


# Members of weight 0


def test_group_is_settled_without_an_owner_when_all_weights_are_0_and_until_one_returns() -> None:
    driver = settled("a", "b")
    for name in "ab":
        driver.add(name, Member(name, f"{name}#2", weight=0.0))
    driver.run_until(lambda: all(driver.members[name].is_settled for name in "ab"))
    assert not driver.owned("a") | driver.owned("b")
    driver.add("a", Member("a", "a#3"))
    driver.run_until(lambda: is_settled(driver, "a", "b"))
    assert driver.owned("a") == ALL


def test_owner_that_leaves_waits_for_a_newcomer_that_may_not_engage_clusters_yet() -> None:
    driver = settled("a")
    driver.add("b", Member("b", "b#1"))
    driver.run_until(lambda: driver.members["b"].tenure, "b")
    driver.run_until(lambda: "b" in driver.members["a"].state.group.candidates.members, "a")
    driver.members["a"].leave()
    driver.run(TIMING.debounce_s + 1, "a")
    assert driver.owned("a") == ALL
    driver.run_until(lambda: driver.owned("b") == ALL)
    assert all(view.members for view in driver.api.views)


def test_members_that_have_acknowledged_nothing_replace_owners_that_are_all_gone() -> None:
    driver = settled("a")
    driver.holds_drain |= {"b", "c"}
    for name in "bc":
        driver.add(name, Member(name, f"{name}#1"))
    driver.run(TIMING.evict_after_s, "a", "b", "c")
    assert driver.owned("a") == ALL
    driver.run_until(lambda: driver.api.group.view and driver.api.group.view.members.keys() == {"b", "c"}, "b", "c")
    driver.holds_drain.clear()
    driver.run_until(lambda: driver.owned("b") | driver.owned("c") == ALL, "b", "c")


# Cost


@pytest.mark.untraced
def test_settled_member_sends_at_most_one_request_per_5_seconds_on_average() -> None:
    driver = settled("a", "b", "c", "d", "e")
    driver.run(30)
    driver.requests.clear()
    driver.run(600)
    assert len(driver.requests) / 5 <= 600 / 5
    assert {type(request) for _, _, request in driver.requests} == {Read, WriteLease}


# Fence and eviction


def test_member_is_fenced_20_seconds_after_the_start_of_its_last_renewal() -> None:
    driver = settled("a")
    member = driver.members["a"]
    renewed_at = member.fence_at - TIMING.fence_after_s
    assert member.fence_at == renewed_at + 20.0
    assert member.ownership(renewed_at + 19.9) is not None
    assert member.ownership(renewed_at + 20.0) is None
    assert member.is_fenced(renewed_at + 20.0)


def test_claim_lasts_until_the_member_is_fenced() -> None:
    driver = settled("a")
    member = driver.members["a"]
    since = member.claimed_since(driver.now)
    assert since is not None
    driver.run(60)
    assert member.claimed_since(driver.now) == since
    assert member.claimed_since(member.fence_at) is None


def test_member_fence_is_counted_from_the_start_of_a_renewal_and_not_from_its_response() -> None:
    driver = settled("a")
    member, started_at = driver.members["a"], driver.now + 10
    action = member.next(started_at)
    assert isinstance(action, WriteLease)
    _, version = driver.api.apply(action, started_at)
    member.was_written(action, version, started_at, started_at + 7)
    assert member.fence_at == started_at + 20.0


def test_fenced_member_acknowledges_nothing_while_its_handlers_end() -> None:
    driver = settled("a", "b")
    driver.run(21, "b")
    driver.step("a")
    tenure = driver.members["a"].tenure
    assert tenure is not None
    assert tenure.acknowledge_at == driver.now + TIMING.margin_s


def test_eviction_fails_with_a_conflict_if_the_member_has_renewed_its_lease() -> None:
    driver = settled("a", "b")
    driver.run(1)
    evictor = driver.members["b"]
    at = driver.now
    while not isinstance(action := evictor.next(at), Evict):
        if isinstance(action, WaitUntil):
            at = action.until
        elif isinstance(action, Read):
            evictor.was_read(driver.api.group, at, at)
        else:
            _, version = driver.api.apply(action, at)
            evictor.was_written(action, version, at, at)
    driver.now = at
    driver.step("a")
    driver.perform(evictor, action)
    assert evictor.next(at) == Read()
    assert driver.api.group.members["a"].is_held


# Restarts


def test_successor_continues_its_takeover_after_the_response_to_the_lease_write_was_lost() -> None:
    driver = settled("a")
    successor = driver.add("a", Member("a", "a#2"))
    driver.step("a")
    takeover = successor.next(driver.now)
    driver.api.apply(takeover, driver.now)  # type: ignore[arg-type]
    successor.failed(takeover, driver.now)  # type: ignore[arg-type]
    driver.run(3)
    assert successor.tenure is not None
    assert successor.tenure.lease.term == "a#1.1"
    assert successor.tenure.engage_at > driver.now + 25


def test_member_that_returns_at_once_after_its_eviction_enters_a_view_only_once_it_has_acknowledged_one() -> None:
    """Found by a reader: the present view had its name, in another term, so it took clusters over whose source it did
    not follow."""
    driver = settled("a", "b", "c")
    del driver.members["a"], driver.members["c"]
    driver.run_until(lambda: not driver.api.group.members["a"].is_held)
    returned = driver.add("a", Member("a", "a#2"))
    driver.holds_drain = {"a"}
    driver.run(60)
    assert returned.tenure is not None
    assert [*driver.api.views[-1].members] == ["b"]
    driver.holds_drain.clear()
    driver.run(20)
    assert is_settled(driver, "a", "b")


def test_successor_of_a_member_that_left_never_owns_what_that_has_released() -> None:
    """Found by reading: it left at once too, and another member's Lease was cleared: it owned the former share again,
    which the next owners had engaged."""
    driver = Driver("b", "c")
    driver.add("a", Member("a", "a#1", instance="pod"))
    driver.run(60)
    driver.pending["a"] = {min(driver.owned("a"))}
    driver.members["a"].leave()
    driver.run_until(lambda: driver.api.group.members["a"].acknowledged == 2)
    successor = driver.add("a", Member("a", "a#2", instance="pod"))
    driver.holds_drain = {"a"}
    driver.run_until(lambda: successor.tenure)
    successor.leave()
    driver.run(1.5)
    del driver.members["c"]
    driver.api.change("c", driver.now, holder="")
    for _ in range(100):
        driver.run(0.25)
        assert not driver.owned("a") & driver.owned("b")


def taking_over() -> tuple[Driver, Member, GroupState]:
    """Return a group whose third member has joined and awaits all releases, that member, and a list of before the
    others have acknowledged the view."""
    driver = settled("a", "b")
    driver.pending = {name: driver.owned(name) for name in "ab"}
    joined = driver.add("c", Member("c", "c#1"))
    driver.run_until(lambda: driver.api.group.view and "c" in driver.api.group.view.members)
    older, number = driver.api.group, driver.api.group.view.number if driver.api.group.view else 0
    driver.run_until(lambda: all(driver.api.group.members[name].acknowledged == number for name in "abc"))
    driver.run(0.75, "c")
    assert not driver.owned("c")
    return driver, joined, older


def test_older_list_takes_no_pending_cluster_from_a_member_whose_acknowledgment_is_known() -> None:
    """Found by a reader and a simulation: what others had not released had two owners."""
    driver, joined, older = taking_over()
    joined.was_read(older, driver.now, driver.now)
    assert not driver.owned("c")
    driver.pending = {}
    driver.run(5)
    assert driver.owned("c")


def test_successor_begins_with_the_number_of_a_restored_backup_and_what_it_has_not_released_stays_its_own() -> None:
    """Found by a reader: others had seen a later number of its predecessor, and took its Lease for an old one."""
    driver = Driver("b")
    driver.add("a", Member("a", "a#1", instance="pod"))
    driver.run(60)
    backup_at = driver.now
    driver.run(600)
    del driver.members["a"]
    driver.now += 30
    driver.api.restore(backup_at)
    driver.run(1, "b")
    driver.add("a", Member("a", "a#2", instance="pod"))
    driver.run(60)
    slow = min(driver.owned("a"))
    driver.pending = {"a": {slow}}
    driver.members["a"].leave()
    driver.run(15)
    assert slow in driver.api.group.members["a"].pending
    assert slow not in driver.owned("b")


def joining_every(seconds: float, driver: Driver, until: float, name: str = "m") -> float:
    """Let members join, and return the longest time for which a cluster had no owner."""
    unowned, number, at = dict.fromkeys(ALL, 0.0), 0, driver.now
    longest = 0.0
    while driver.now < until:
        if driver.now >= at:
            number, at = number + 1, driver.now + seconds
            driver.add(f"{name}{number}", Member(f"{name}{number}", f"{name}{number}#1"))
        driver.run(0.25)
        owned = set().union(*map(driver.owned, driver.members))
        unowned = {key: 0.0 if key in owned else since + 0.25 for key, since in unowned.items()}
        longest = max(longest, *unowned.values())
    return longest


def test_ever_more_members_that_join_do_not_delay_a_view_without_end() -> None:
    """Found by a reader: a killed member's clusters had no owner as long as others joined every few seconds."""
    driver = settled("a", "b")
    del driver.members["a"]
    assert joining_every(4.0, driver, driver.now + 80.0) <= 61.0


def test_members_that_join_do_not_delay_a_hand_over() -> None:
    driver = settled("a", "b")
    joining_every(4.0, driver, driver.now + 6.0)
    driver.members["a"].leave()
    assert joining_every(4.0, driver, driver.now + 40.0) <= 2.5


def test_members_that_all_hand_over_wait_for_no_more_members_that_join_and_leave_no_cluster_without_an_owner() -> None:
    """Found by an audit: the next view had no members, and no cluster had an owner for up to 20 s."""
    driver = settled("a", "b")
    joining_every(4.0, driver, driver.now + 12.0)
    for name in "ab":
        driver.members[name].leave()
    assert joining_every(4.0, driver, driver.now + 20.0, "n") <= 2.5
    assert all(driver.members[name].has_ended for name in "ab")


@pytest.mark.parametrize("acknowledged", [0, None])
def test_pending_clusters_that_another_program_takes_from_a_lease_are_not_released(acknowledged: int | None) -> None:
    driver, _, _ = taking_over()
    lease = driver.api.group.members["a"]
    changed = lease.acknowledged if acknowledged is None else acknowledged
    driver.api.change("a", driver.now, acknowledged=changed, pending=frozenset())
    driver.run(0.75, "c")
    assert not driver.owned("c") & lease.pending


@pytest.mark.parametrize("instance", ["pod", "next"])
def test_member_that_returns_after_an_unfinished_hand_over_takes_nothing_over_as_if_it_had_not_left(
    instance: str,
) -> None:
    """Found by a reader: it continued the term that the view lacked, entered the next view at once, and its new
    clusters had no owner for 28 s."""
    driver = Driver("b", "c")
    driver.add("a", Member("a", "a#1", instance="pod"))
    driver.run(60)
    slow = min(driver.owned("a"))
    driver.pending = {"a": {slow}}
    driver.members["a"].leave()
    driver.run(20)
    driver.pending = {}
    driver.run(3, "b", "c")
    returned = driver.add("a", Member("a", "a#2", instance=instance))
    unowned = dict.fromkeys(ALL - {slow}, 0.0)
    for _ in range(300):
        driver.run(0.25)
        owned = set().union(*map(driver.owned, "abc"))
        unowned = {key: 0.0 if key in owned else since + 0.25 for key, since in unowned.items()}
        assert max(unowned.values()) <= 2.0
    assert returned.tenure is not None
    assert is_settled(driver, "a", "b", "c")


def test_successor_whose_first_write_was_answered_late_engages_as_soon_as_without_that() -> None:
    """Found by a reader: its own write hid that its predecessor had ended: no owner for 34 s."""
    driver = Driver("b")
    driver.add("a", Member("a", "a#1", instance="pod"))
    driver.run(60)
    owned = driver.owned("a")
    successor = driver.add("a", Member("a", "a#2", instance="pod"))
    driver.step("a")
    takeover = successor.next(driver.now)
    assert isinstance(takeover, WriteLease)
    driver.api.apply(takeover, driver.now)
    successor.failed(takeover, driver.now)
    driver.run(12.5)
    assert driver.owned("a") == owned


def test_members_that_all_return_in_other_terms_own_clusters_again() -> None:
    driver = settled("a", "b")
    for name in ("a", "b"):
        lease = driver.api.group.members[name]
        driver.api.change(name, driver.now, holder="", term="")
        assert lease.is_held
    driver.holds_drain = {"a", "b"}
    driver.run(60)
    assert driver.owned("a") | driver.owned("b") == ALL


@pytest.mark.parametrize("has_other", [False, True])
@pytest.mark.parametrize("ends", [Member.stop, Member.leave, None], ids=["stopped", "left", "killed"])
def test_successor_that_ends_while_its_predecessor_may_own_leaves_the_next_one_to_wait(
    ends: Callable[[Member], None] | None, *, has_other: bool
) -> None:
    """Found by a reader: a process that waited for its predecessor wrote that it had stopped, and the next one engaged
    at once. One that was killed was followed by another in its own pod."""
    driver = settled("a", *["b"] * has_other)
    owned = driver.owned("a")
    running = [*["b"] * has_other, "second"]
    second = driver.add("second", Member("a", "a#2", instance="pod-2"))
    driver.run_until(lambda: second.tenure is not None, *running)
    taken_at = driver.now
    driver.run(2, *running)
    if ends is not None:
        ends(second)
        driver.run(2, *running)
        assert second.has_ended or ends is Member.leave
    driver.members.pop("second")
    driver.add("third", Member("a", "a#3", instance="pod-2"))
    while not driver.owned("third") & owned and not (has_other and owned <= driver.owned("b")):
        driver.run(0.25, *running[:-1], "third")
        assert driver.now < taken_at + 60
    assert driver.now - taken_at >= TIMING.fence_after_s


def test_successor_that_has_waited_for_its_predecessor_is_followed_at_once() -> None:
    driver = settled("a")
    for instance in ("pod-2", "pod-2"):
        successor = driver.add("a", Member("a", f"a#{driver.now}", instance=instance))
        started_at = driver.now
        driver.run_until(lambda: driver.owned("a") == ALL)
    assert driver.now - started_at <= 1.0
    successor.stop()
    driver.run_until(lambda: successor.has_ended)
    driver.add("a", Member("a", "a#4", instance="pod-4"))
    driver.run(1)
    assert driver.owned("a") == ALL


def test_member_whose_lease_was_changed_states_its_instance_once_it_may_engage_clusters() -> None:
    """So another process in its pod, which follows a crash, waits too."""
    driver = Driver()
    member = driver.add("a", Member("a", "a#1", instance="pod-1"))
    driver.run(30)
    driver.api.change("a", driver.now, weight=2.0)
    driver.run_until(lambda: member.state.terms == 2)
    assert member.tenure is not None
    engage_at = member.tenure.engage_at
    while driver.api.group.members["a"].instance != "pod-1":
        assert driver.now < engage_at + 1
        driver.run(0.25)
    assert driver.now >= engage_at


# Leaving


@pytest.mark.parametrize("seconds_since_settled", range(0, 12, 2))
def test_leaving_member_owns_its_clusters_until_other_members_have_read_the_view(seconds_since_settled: int) -> None:
    """Other members read the Leases every 12 seconds while nothing changes, and engage the clusters only after that."""
    driver = settled("a", "b", "c")
    driver.run(30 + seconds_since_settled)
    driver.members["a"].leave()
    left_at, without_owner = driver.now, 0.0
    while not driver.members["a"].has_ended or driver.owned("b") | driver.owned("c") != ALL:
        driver.run(0.25)
        without_owner += 0.0 if driver.owned("a") | driver.owned("b") | driver.owned("c") == ALL else 0.25
        assert not driver.owned("b") & driver.owned("a"), "no cluster has two owners"
    assert without_owner <= 1.5
    assert driver.now - left_at <= TIMING.read_interval_s + 3, "the view changes without the debounce delay"


def test_clusters_that_a_leaving_member_releases_one_by_one_have_an_owner_again_within_a_second() -> None:
    driver = Driver("a", "b", "c")
    driver.run(60)
    leaving, keys = driver.members["a"], driver.owned("a")
    kept = driver.pending["a"] = set(keys)
    leaving.leave()
    released_at: dict[str, float] = {}
    pauses: dict[str, float] = {}
    while len(pauses) < len(keys):
        driver.run(0.25)
        owned = driver.owned("b") | driver.owned("c")
        pauses |= {key: driver.now - at for key, at in released_at.items() if key in owned and key not in pauses}
        if lost := sorted(kept - driver.owned("a")):
            kept.discard(lost[0])
            released_at[lost[0]] = driver.now
    assert max(pauses.values()) <= 1.0


def test_leaving_member_reports_releases_before_other_members_have_read_the_view_without_it() -> None:
    """Found by a simulation: a cluster that had moved before had no owner for up to 12 seconds."""
    driver = settled("a", "b")
    driver.run(30)
    keys = driver.owned("a")
    driver.pending["a"] = set(keys)
    driver.add("c", Member("c", "c#1"))
    driver.run_until(lambda: driver.api.group.members["a"].pending)
    moving = driver.api.group.members["a"].pending
    driver.run_until(lambda: is_acknowledged(driver, *"abc"))
    driver.members["a"].leave()
    driver.run(1, "a")
    assert driver.api.group.view is not None
    assert not is_acknowledged(driver, *"bc")
    released = min(moving)
    driver.pending["a"].discard(released)
    driver.run(1, "a")
    assert driver.api.group.members["a"].pending == moving - {released}


def is_acknowledged(driver: Driver, *names: str) -> bool:
    view = driver.api.group.view
    return view is not None and all(driver.api.group.members[name].acknowledged == view.number for name in names)


def test_clusters_that_move_to_a_new_member_have_an_owner_while_another_member_renews_late() -> None:
    driver = settled("a", "b")
    driver.run(30)
    keys = driver.owned("a")
    driver.add("c", Member("c", "c#1"))
    without_owner_s = 0.0
    for _ in range(14 * 4):
        driver.run(0.25, "a", "c")
        without_owner_s = 0.0 if keys <= driver.owned("a") | driver.owned("c") else without_owner_s + 0.25
        assert without_owner_s <= 1.0
    driver.run_until(lambda: keys & driver.owned("c"))


@pytest.mark.parametrize(
    "changes", [{"acknowledged": 9999}, {"acknowledged": 0}, {"problem": "it cannot be read"}], ids=str
)
def test_leaving_member_never_owns_released_clusters_again(changes: dict[str, object]) -> None:
    driver = settled("a", "b", "c")
    slow = min(driver.owned("c"))
    driver.pending = {"c": {slow}}
    driver.members["c"].leave()
    driver.run_until(lambda: driver.api.group.members["c"].pending)
    driver.run(5)
    assert driver.owned("a") | driver.owned("b") == ALL - {slow}
    driver.api.change("b", driver.now, **changes)
    driver.run(2, "a", "c")
    assert not driver.owned("c") - {slow}


@pytest.mark.untraced
def test_clusters_of_a_killed_member_have_an_owner_within_the_documented_time() -> None:
    """Other members read the last renewal up to 12 s late, evict the member after 33 s, and write a view after 5 s."""
    took = []
    for seconds in range(0, 12, 2):
        driver = settled("a", "b")
        driver.run(20 + seconds)
        driver.add("c", Member("c", "c#1"))
        driver.run_until(lambda driver=driver: driver.owned("c") and is_settled(driver, *"abc"))
        driver.run(30)
        fence_at = driver.members["c"].fence_at
        driver.run_until(lambda driver=driver, at=fence_at: driver.members["c"].fence_at > at)
        killed_at = driver.now
        driver.run_until(lambda driver=driver: driver.owned("a") | driver.owned("b") == ALL, "a", "b")
        took.append(driver.now - killed_at)
    longest = TIMING.evict_after_s + TIMING.read_interval_s + TIMING.debounce_s + 1.0
    assert longest == 51.0
    assert longest - 5.0 < max(took) <= longest


def test_leaving_member_does_not_wait_for_a_member_that_has_already_left() -> None:
    driver = settled("a", "b", "c")
    for name in "ab":
        driver.members[name].leave()
    driver.run_until(lambda: driver.members["a"].has_ended and driver.members["b"].has_ended)
    driver.run_until(lambda: driver.owned("c") == ALL, "c")


def test_last_member_that_leaves_does_not_delete_its_lease() -> None:
    driver = settled("a")
    driver.members["a"].leave()
    driver.run_until(lambda: driver.members["a"].has_ended)
    assert driver.api.group.members["a"].is_stopped
    driver.members["a"].leave()
    driver.members["a"].stop()
    assert driver.members["a"].has_ended


def test_stopped_member_that_never_held_its_lease_ends_at_once() -> None:
    driver = Driver("a")
    driver.step("a")
    driver.members["a"].stop()
    assert driver.members["a"].next(driver.now) == WaitUntil(inf)
    assert driver.members["a"].has_ended


def test_lease_of_a_member_that_left_is_eventually_deleted() -> None:
    driver = settled("a", "b")
    driver.members["a"].leave()
    driver.run_until(lambda: driver.members["a"].has_ended)
    del driver.members["a"]
    driver.run(60)
    driver.add("c", Member("c", "c#1"))
    driver.run(60)
    until = driver.now + TIMING.retention_s
    while driver.now < until:
        driver.now += 4
        driver.run(1)
    driver.run(60)
    assert "a" not in driver.api.group.members
    assert any(isinstance(request, Delete) for _, _, request in driver.requests)


def test_member_whose_renewal_number_another_program_sets_to_the_largest_one_stays_valid() -> None:
    """Found by a reader: the next number is malformed, so the clusters of the member had no owner until a restart."""
    driver = settled("a", "b")
    driver.api.change("a", driver.now, renewal=MAX_NUMBER)
    driver.run(60)
    assert driver.api.group.members["a"].renewal < 100
    assert is_settled(driver, "a", "b")


# Failures


class Refusing(Driver):
    """Its Lease API refuses deletions and evictions of `refused`, as if the role of the members lacked the right."""

    refused = frozenset({"a", "b"})
    refuses_views = False
    stated_s: float | None = None

    def perform(self, member: Member, action: Request) -> None:
        is_refused = isinstance(action, Delete | Evict) and action.lease.member in self.refused
        if is_refused or (isinstance(action, WriteView) and self.refuses_views):
            member.failed(action, self.now, self.stated_s)
        else:
            super().perform(member, action)


def test_refused_eviction_of_a_lease_outside_of_the_view_delays_neither_other_evictions_nor_views() -> None:
    driver = Refusing("c", "d", "e")
    driver.run_until(lambda: is_settled(driver, *driver.members))
    stray = MemberLease(member="a", version="1", holder="unknown", problem="it is malformed")
    driver.api._replace(driver.now, members={"a": stray, **driver.api.group.members})
    driver.run_until(lambda: isinstance(driver.requests[-1][2], Evict))
    del driver.members["d"]
    driver.run_until(lambda: driver.owned("c") | driver.owned("e") == ALL)
    assert driver.api.group.members["a"] == stray


def test_refused_eviction_of_a_member_does_not_delay_that_of_another_member() -> None:
    """Found by a reader: the eviction of the first was repeated, and the clusters of the second had no owner."""
    driver = Refusing("b", "c", "d")
    driver.run_until(lambda: is_settled(driver, *driver.members))
    del driver.members["b"], driver.members["c"]
    driver.run_until(lambda: {*driver.api.group.view.members} == {"b", "d"})


def test_refused_view_does_not_delay_evictions() -> None:
    """A member that was killed was evicted by none: clusters that it had not released had no owner."""
    driver = Refusing("c", "d")
    driver.run_until(lambda: is_settled(driver, *driver.members))
    driver.refuses_views = True
    driver.add("e", Member("e", "e#1"))
    driver.run_until(lambda: "e" in driver.api.group.members and driver.api.group.members["e"].acknowledged)
    del driver.members["c"]
    driver.run_until(lambda: not driver.api.group.members["c"].is_held)
    driver.refuses_views = False
    driver.run_until(lambda: driver.owned("d") | driver.owned("e") == ALL)


def test_refused_deletion_of_an_old_lease_delays_neither_evictions_nor_views() -> None:
    """Found by a reader: once an old Lease was due, clusters of members that were killed had no owner for ever."""
    driver = Refusing()
    timing = msgspec.structs.replace(TIMING, retention_s=60.0)
    for name in ("a", "b", "c", "d"):
        driver.add(name, Member(name, f"{name}#1", timing=timing))
    driver.run_until(lambda: is_settled(driver, *driver.members))
    for name in ("a", "b"):
        driver.members[name].leave()
        driver.run_until(lambda name=name: driver.members[name].has_ended)
        del driver.members[name]
        driver.run_until(lambda: is_settled(driver, *driver.members))
    driver.run_until(lambda: isinstance(driver.requests[-1][2], Delete))
    del driver.members["d"]
    driver.run_until(lambda: driver.owned("c") == ALL)
    assert driver.api.group.members.keys() >= {"a", "b"}


@pytest.mark.parametrize("is_held", [False, True])
def test_time_that_a_server_states_for_a_lease_outside_of_the_view_delays_no_view(*, is_held: bool) -> None:
    """Found by a reader: the next view was written up to 8 s later, and renewals were late."""

    def view_written_after(*, is_refused: bool) -> float:
        driver = Refusing()
        timing = msgspec.structs.replace(TIMING, retention_s=TIMING.evict_after_s)
        for name in ("c", "d"):
            driver.add(name, Member(name, f"{name}#1", timing=timing))
        driver.run_until(lambda: is_settled(driver, *driver.members))
        if is_refused:
            driver.stated_s = 1e9
            stray = MemberLease(member="a", version="1", holder="unknown" if is_held else "", problem="it is malformed")
            driver.api._replace(driver.now, members={"a": stray, **driver.api.group.members})
            driver.run_until(lambda: isinstance(driver.requests[-1][2], Evict if is_held else Delete))
        began_at, former = driver.now, driver.api.group.view
        driver.members["d"].leave()
        driver.run_until(lambda: driver.api.group.view != former)
        return driver.now - began_at

    assert view_written_after(is_refused=True) <= view_written_after(is_refused=False) + TIMING.retry_interval_s


@pytest.mark.parametrize("request_type", [Evict, WriteView])
def test_requests_about_the_group_that_always_conflict_delay_no_others(request_type: type[Request]) -> None:
    class Conflicting(Driver):
        def perform(self, member: Member, action: Request) -> None:
            of_first = not isinstance(action, Evict) or action.lease.member == "b"
            if isinstance(action, request_type) and of_first and member.name == "e":
                member.conflicted(action, self.now)
            else:
                super().perform(member, action)

    driver = Conflicting("b", "c", "d", "e")
    driver.run_until(lambda: is_settled(driver, *driver.members))
    driver.add("f", Member("f", "f#1"))
    driver.run_until(lambda: "f" in driver.api.group.members and driver.api.group.members["f"].acknowledged)
    del driver.members["b"], driver.members["c"], driver.members["d"], driver.members["f"]
    driver.run_until(lambda: not driver.api.group.members["c"].is_held)


def test_lease_that_a_member_created_again_during_its_deletion_is_kept() -> None:
    driver = settled("a", "b")
    member, former = driver.members["a"], driver.api.group.members["b"]
    driver.run_until(lambda: member.state.group.leases.members["b"].version != former.version)
    member.was_written(Delete(former), "", driver.now, driver.now)
    assert "b" in member.state.group.leases.members


def test_deletion_is_not_repeated_while_it_is_in_flight() -> None:
    driver = Driver()
    timing = msgspec.structs.replace(TIMING, retention_s=10.0)
    driver.add("c", Member("c", "c#1", timing=timing))
    driver.run_until(lambda: is_settled(driver, "c"))
    driver.api._replace(driver.now, members={**driver.api.group.members, "a": MemberLease(member="a", version="1")})
    member, deletions = driver.members["c"], []
    for _ in range(200):
        driver.now += 0.25
        while not isinstance(action := member.next(driver.now), WaitUntil):
            if isinstance(action, Delete):
                deletions.append(action)
            else:
                driver.perform(member, action)
    assert len(deletions) == 1
    member.conflicted(deletions[0], driver.now)
    assert member.next(driver.now) != deletions[0], "another member has deleted it, and the next read shows that"
    driver.perform(member, deletions[0])
    assert "a" not in member.state.group.leases.members


def test_failed_lease_request_is_retried_after_a_second() -> None:
    member = Member("a", "a#1")
    assert member.next(5.0) == Read()
    member.failed(Read(), 6.0)
    assert member.next(6.5) == WaitUntil(7.0)
    assert member.next(7.0) == Read()


def test_member_with_failed_request_does_not_sleep_past_its_fence() -> None:
    driver = settled("a")
    member = driver.members["a"]
    member.failed(Read(), member.fence_at - 0.5)
    assert member.next(member.fence_at - 0.4) == WaitUntil(member.fence_at)


def test_member_refuses_a_read_action_as_the_result_of_a_write() -> None:
    driver = settled("a")
    with pytest.raises(AssertionError):
        driver.members["a"].was_written(Read(), "1", driver.now, driver.now)


def test_members_that_start_concurrently_agree_on_one_view() -> None:
    driver = Driver("a", "b")
    driver.run(5.5)
    driver.api.views.clear()
    writes = [(name, request) for _, name, request in driver.requests if isinstance(request, WriteView)]
    assert len(writes) <= 2
    driver.run_until(lambda: is_settled(driver, *"ab"))
    assert driver.members["a"].state.group.latest_view == driver.members["b"].state.group.latest_view


# Leases that other programs wrote


FORGED = {
    "unreadable": {"problem": "Lease b cannot be read", "term": "", "renewal": 0, "weight": 1.0},
    "acknowledged": {"acknowledged": 9999},
    "leaving": {"is_leaving": True},
    "term": {"term": "x"},
}


def forge(driver: Driver, member: str, **changes: object) -> None:
    group = driver.api.group
    forged = msgspec.structs.replace(group.members[member], version=f"forged {driver.now}", **changes)
    driver.api.group = msgspec.structs.replace(group, members={**group.members, member: forged})


@pytest.mark.parametrize("is_cleared", [False, True])
def test_successor_of_a_process_whose_lease_was_deleted_or_cleared_joins_after_33_seconds(is_cleared: bool) -> None:
    driver = Driver("a", "b")
    driver.run(30.0)
    owned = driver.owned("a")
    if is_cleared:
        driver.api.change("a", driver.now, holder="")
    else:
        driver.api.delete("a", driver.now)
    killed_at = driver.now
    driver.add("a", Member("a", "a#2"))
    driver.run_until(lambda: driver.owned("a") & owned or driver.owned("b") & owned)
    assert driver.now - killed_at >= TIMING.evict_after_s
    driver.run_until(lambda: driver.owned("a") == owned)


@pytest.mark.parametrize("changes", [{"is_leaving": True}, {"holder": ""}, None])
def test_successor_whose_lease_is_changed_waits_for_the_handlers_of_its_predecessor(
    changes: dict[str, object] | None,
) -> None:
    """Found by the simulation of seed 701407."""
    driver = settled("a", "b")
    lost = driver.owned("a")
    successor = driver.add("a", Member("a", "a#2"))
    driver.run_until(lambda: successor.tenure is not None)
    taken_at = driver.now
    driver.run(5)
    if changes is None:
        driver.api.delete("a", driver.now)
    else:
        forge(driver, "a", **changes)
    while successor.state.terms < 2:
        driver.run(1)
        assert not driver.owned("b") & lost
    assert driver.now - taken_at >= TIMING.evict_after_s
    driver.run_until(lambda: is_settled(driver, *"ab"))


@pytest.mark.parametrize("changes", [FORGED["unreadable"], FORGED["acknowledged"]], ids=["unreadable", "acknowledged"])
def test_dead_member_with_a_changed_lease_is_evicted(changes: dict[str, object]) -> None:
    driver = settled("a", "b", "c")
    died_at = driver.now
    while driver.owned("a") | driver.owned("c") != ALL:
        if driver.now < died_at + 20:
            forge(driver, "b", **changes)
        driver.run(1, "a", "c")
        assert driver.now < died_at + 70
    if "problem" in changes:
        latest = TIMING.read_interval_s + TIMING.evict_after_s + TIMING.debounce_s
        assert driver.now - died_at < latest, "writes by another program do not count as renewals"


def test_lease_rewritten_unchanged_by_another_program_does_not_end_a_term() -> None:
    driver = settled("a", "b")
    forge(driver, "b")
    driver.run(30)
    assert driver.members["b"].state.terms == 1


def test_lease_write_whose_response_was_lost_does_not_end_a_term() -> None:
    driver = settled("a", "b")
    driver.run(TIMING.renew_interval_s)
    member = driver.members["a"]
    member.drained(1, frozenset({"x"}))
    driver.run(2, "b")
    action = member.next(driver.now)
    assert isinstance(action, WriteLease)
    driver.api.apply(action, driver.now)
    member.failed(action, driver.now)
    driver.run(30)
    assert member.state.terms == 1


def problems(driver: Driver, name: str) -> str:
    return "; ".join(driver.members[name].problems)


def test_member_reports_changed_and_unreadable_leases_and_another_process_with_its_name() -> None:
    driver = settled("a", "b")
    assert problems(driver, "a") == ""
    forge(driver, "b", **FORGED["unreadable"])
    driver.run_until(lambda: driver.members["b"].tenure is None)
    assert "was changed by another program" in problems(driver, "b")
    driver.run_until(lambda: problems(driver, "a") == "Lease b cannot be read")
    driver.run_until(lambda: is_settled(driver, *"ab"))
    assert problems(driver, "a") == problems(driver, "b") == ""
    driver.add("twin", Member("a", "a#2"))
    driver.run_until(lambda: driver.members["a"].tenure is None)
    assert "another process (a#2) holds the Lease of member a" in problems(driver, "a")


def test_restarted_member_reports_no_problem_about_the_lease_of_its_former_process() -> None:
    driver = settled("a", "b")
    restarted = driver.add("a", Member("a", "a#2"))
    driver.step("a")
    assert restarted.state.group.leases.members
    assert restarted.tenure is None
    assert problems(driver, "a") == ""


@pytest.mark.parametrize(
    ("length", "leases", "what"), [(4, 12, "more than 200000 pending"), (650, 200, "more than 13107200 characters")]
)
def test_list_is_not_used_if_too_many_pending_clusters_would_be_kept_of_leases_that_became_malformed(
    length: int, leases: int, what: str
) -> None:
    pending = frozenset(f"{number:0{length}}" for number in range(PENDING_SIZE // length))

    def forged(number: int) -> dict[str, MemberLease]:
        names = [f"{number}-{index}" for index in range(leases)]
        return {name: MemberLease(member=name, holder="x", term="x", pending=pending) for name in names}

    first = GroupState(members=forged(0))
    group = ObservedGroup().read(first, "a", started_at=0.0, now=0.0, timing=TIMING)
    malformed = {
        name: msgspec.structs.replace(lease, pending=frozenset(), problem="x") for name, lease in first.members.items()
    }
    assert group.pending_problem(first) == group.pending_problem(GroupState(members=malformed)) == ""
    assert what in group.pending_problem(GroupState(members={**malformed, **forged(1)}))


def test_only_some_of_many_members_whose_settings_differ_are_named() -> None:
    """Found by an attacker: 1,900 forged Leases made a problem of 300,000 characters."""
    driver = settled("a")
    for number in range(8):
        forged = MemberLease(member=f"m{number}", holder="x", term="x", fleet="other")
        driver.api.group.members[forged.member] = forged
    driver.run_until(lambda: "differ" in problems(driver, "a"))
    assert problems(driver, "a").count("of member m") == 5
    assert "the sources or selectors of 3 more members differ" in problems(driver, "a")


def test_member_reports_other_members_whose_settings_differ_from_its_own() -> None:
    driver = settled("a", "b")
    driver.add("c", Member("c", "c#1", fleet="other"))
    driver.run_until(lambda: is_settled(driver, *"abc"))
    assert "of member c differ from those of a" in problems(driver, "a")
    assert "of member a differ from those of c" in problems(driver, "c")


def test_view_has_at_most_200_members_and_keeps_those_that_it_has() -> None:
    driver = settled("x", "y")
    members = dict(driver.api.group.members)
    for number in range(3_500):
        name = f"forged-{number}"
        members[name] = MemberLease(member=name, version="1", holder=name, term=name, acknowledged=1)
    driver.api.group = msgspec.structs.replace(driver.api.group, members=members)
    driver.run_until(lambda: len(driver.api.views) == 2)
    view = driver.api.group.view
    assert view is not None
    assert len(view.members) == MAX_MEMBERS
    assert {"x", "y"} < set(view.members)
    assert "3302 members more than the 200 that it can have" in problems(driver, "x")


def test_leases_that_did_not_change_are_the_same_objects_after_the_next_read() -> None:
    driver = settled("a", "b")
    driver.api.change("b", driver.now, pending=frozenset({"x"}), renewal=1000)
    driver.run(13)
    before = driver.members["a"].ownership(driver.now)
    assert before is not None
    assert before.pending == (("b", {"x"}),)
    [_, pending] = before.pending[0]
    driver.api.group = msgspec.json.decode(msgspec.json.encode(driver.api.group), type=GroupState)
    driver.run(0.5, "a")
    after = driver.members["a"].ownership(driver.now)
    assert after == before
    assert after is not None
    assert after.pending[0][1] is pending
    assert after.view is before.view


def test_at_most_five_malformed_leases_are_named() -> None:
    driver = settled("a")
    members = dict(driver.api.group.members)
    for name in map(str, range(20)):
        members[name] = MemberLease(member=name, version="1", holder=name, problem=f"Lease {name} is malformed")
    driver.api.group = msgspec.structs.replace(driver.api.group, members=members)
    driver.run(13)
    found = list(driver.members["a"].problems)
    assert found[-1] == "15 more Leases of the shard group are malformed"
    assert len(found) == 6


# Leases that were deleted, or restored from a backup


class Lying(Driver):
    """Its Lease API returns some lists without any Lease."""

    empty = 0
    read = 0

    def perform(self, member: Member, action: Request) -> None:
        self.read += isinstance(action, Read)
        if isinstance(action, Read) and self.empty:
            self.empty -= 1
            member.was_read(GroupState(members={}), self.now, self.now)
        else:
            super().perform(member, action)


@pytest.mark.parametrize("lists", [2, 1000])
def test_lists_without_leases_end_no_ownership(lists: int) -> None:
    """Found by a reader: each member took one such list for the deletion of its Lease."""
    driver = Lying("a", "b")
    driver.run_until(lambda: is_settled(driver, *"ab"))
    owned, views = (driver.owned("a"), driver.owned("b")), len(driver.api.views)
    driver.empty, read = lists, driver.read
    for _ in range(200):
        driver.run(0.25)
        assert (driver.owned("a"), driver.owned("b")) == owned
    assert driver.read - read <= 2 * 52, "the Lease API is not flooded"
    driver.empty = 0
    driver.run_until(lambda: is_settled(driver, *"ab"))
    assert len(driver.api.views) == views
    assert driver.members["a"].state.terms == 1


def test_deletion_of_the_own_lease_is_found_by_a_write_at_once() -> None:
    driver = settled("a", "b")
    member = driver.members["a"]
    assert member.tenure is not None
    driver.run_until(lambda: driver.now == member.state.group.read_at + TIMING.read_interval_s - 0.25)
    assert driver.now < member.tenure.renewed_at + TIMING.renew_interval_s - 0.25, "the read comes first"
    driver.api.delete("a", driver.now)
    driver.run_until(lambda: not driver.owned("a"))
    requests = [(at, type(action)) for at, name, action in driver.requests if name == "a"]
    (began, *_), (ended, *_) = requests[-3], requests[-1]
    assert ([kind for _, kind in requests[-3:]], ended - began) == ([Read, WriteLease, Read], 1.0)
    driver.run_until(lambda: is_settled(driver, *"ab"))


def test_member_whose_lease_was_deleted_joins_again_once_operators_without_a_stream_have_ended() -> None:
    """Found by the simulation of seed 70000622: its former clusters moved, while its operator still counted 20 s."""
    driver = settled("a", "b")
    member = driver.members["a"]
    owned, fence_at = driver.owned("a"), member.fence_at
    driver.run_until(lambda: member.fence_at > fence_at)
    fence_at = member.fence_at
    driver.api.delete("a", driver.now)
    driver.run_until(lambda: member.state.terms == 2 or driver.owned("b") & owned)
    assert driver.now >= fence_at + TIMING.margin_s
    driver.run_until(lambda: is_settled(driver, *"ab"))


def test_member_that_leaves_ends_when_a_write_shows_that_its_lease_was_deleted() -> None:
    driver = settled("a", "b")
    driver.holds_drain = {"a"}
    driver.members["a"].leave()
    driver.run(1)
    driver.api.delete("a", driver.now)
    driver.run_until(lambda: driver.members["a"].has_ended_by_loss)


@pytest.mark.parametrize("changes", [{"view": None, "view_version": ""}, {"number": 0}, {"id": "other"}])
def test_view_restored_to_older_state_ends_ownership(changes: dict[str, object]) -> None:
    driver = settled("a", "b")
    group = driver.api.group
    assert group.view is not None
    if "view" not in changes:
        changes = {"view": msgspec.structs.replace(group.view, **changes)}
    driver.api.group = msgspec.structs.replace(group, **changes)
    driver.run(13)
    assert driver.owned("a") == driver.owned("b") == set()
    restored_at = driver.now
    driver.run_until(lambda: is_settled(driver, *"ab"))
    assert driver.now - restored_at >= 20.0


def test_displaced_process_with_restored_lease_waits_until_lease_of_successor_expires() -> None:
    driver = settled("a", "b")
    backup = msgspec.structs.replace(driver.api.group.members["a"], version="older")
    twin = driver.add("twin", Member("a", "a#2"))
    driver.run_until(lambda: driver.owned("twin"))
    driver.run(TIMING.renew_interval_s)
    assert driver.members["a"].tenure is None
    group = driver.api.group
    driver.api.group = msgspec.structs.replace(group, members={**group.members, "a": backup})
    restored_at = driver.now
    del driver.members["twin"]
    assert not twin.is_fenced(driver.now)
    driver.run_until(lambda: driver.owned("a"))
    assert driver.now - restored_at >= TIMING.evict_after_s


@pytest.mark.parametrize("is_deleted", [False, True])
def test_displaced_process_waits_until_its_successor_has_read_that_the_lease_was_taken(is_deleted: bool) -> None:
    driver = settled("a", "b")
    twin = driver.add("twin", Member("a", "a#2"))
    driver.run_until(lambda: driver.owned("twin"))
    driver.run(TIMING.renew_interval_s)
    assert driver.members["a"].tenure is None
    if is_deleted:
        driver.api.delete("a", driver.now)
    else:
        driver.api.change("a", driver.now, holder="")
    taken_at = driver.now
    assert not twin.is_fenced(driver.now)
    driver.run_until(lambda: driver.owned("a"), "a", "b")
    assert driver.now - taken_at >= TIMING.evict_after_s


def test_own_lease_restored_to_older_state_ends_ownership() -> None:
    driver = settled("a", "b")
    group = driver.api.group
    older = msgspec.structs.replace(group.members["a"], acknowledged=0, version="older")
    driver.api.group = msgspec.structs.replace(group, members={**group.members, "a": older})
    driver.run(13)
    assert driver.owned("a") == set()
    driver.run_until(lambda: is_settled(driver, *"ab"))
    assert driver.members["a"].state.terms == 2


def test_view_older_than_an_acknowledged_view_is_not_followed() -> None:
    driver = settled("a", "b")
    group = driver.api.group
    newer = msgspec.structs.replace(group.members["b"], acknowledged=9, version="900")
    driver.api.group = msgspec.structs.replace(group, members={**group.members, "b": newer})
    driver.add("c", Member("c", "c#1"))
    driver.run(10, "c")
    member = driver.members["c"]
    assert member.ownership(driver.now) is None
    assert len(driver.api.views) == 1
    successor = driver.add("b", Member("b", "b#2"))
    driver.run(10, "b")
    assert successor.tenure is None, "the member waits until the Lease has expired, and takes another term"
    driver.run_until(lambda: successor.tenure is not None)
    assert successor.tenure is not None
    assert successor.tenure.lease.term == "b#2.1"


def test_deleted_view_is_not_recreated_by_a_new_member_while_other_members_acknowledge_it() -> None:
    member = Member("a", "a#1")
    other = MemberLease(member="b", version="7", holder="b#1", term="b#1.1", acknowledged=3)
    member.was_read(GroupState(members={"b": other}), 0.0, 0.0)
    action = member.next(0.0)
    assert isinstance(action, WriteLease)
    member.was_written(action, "8", 0.0, 0.0)
    for now in range(1, 9):
        action = member.next(float(now))
        assert isinstance(action, Read)
        assert member.tenure is not None
        member.was_read(GroupState(members={"b": other, "a": member.tenure.lease}), float(now), float(now))
        assert isinstance(member.next(float(now)), WaitUntil)


def test_member_outside_the_view_owns_nothing() -> None:
    driver = settled("a", "b")
    driver.add("c", Member("c", "c#1"))
    driver.run(2)
    ownership = driver.members["c"].ownership(driver.now)
    assert ownership is not None
    assert {ownership.decide(key).state for key in ALL} == {KeyOwnership.FOREIGN}


def test_restarted_member_is_confirmed_by_a_later_renewal_of_the_other_member() -> None:
    driver = settled("a", "b")
    driver.run(15)
    driver.members["b"].stop()
    driver.run(0.25, "b")
    driver.add("b", Member("b", "b#2"))
    driver.run(2, "b")
    assert not driver.members["b"].is_confirmed
    driver.run(12)
    assert driver.members["b"].is_confirmed


def test_view_member_whose_lease_never_existed_has_no_observed_write() -> None:
    view = View(number=1, id="1", members={"gone": ViewMember("gone.1")})
    member = Member("a", "a#1")
    member.was_read(GroupState(members={}, view=view, view_version="5"), 0.0, 0.0)
    assert member.state.group.writes["gone"].write == ""


def test_lease_version_repeated_after_a_restore_counts_as_a_renewal() -> None:
    driver = settled("a", "b")
    driver.run(1)
    evictor, group, at = driver.members["b"], driver.api.group, driver.now
    renewed = msgspec.structs.replace(group.members["a"], renewal=group.members["a"].renewal + 1)
    group = msgspec.structs.replace(group, members={**group.members, "a": renewed})
    evictor.was_read(group, at + 10, at + 10)
    assert evictor.state.group.writes["a"].since == at + 10


def test_disconnected_member_does_not_treat_leases_as_expired() -> None:
    driver = settled("a", "b")
    observer, group, at = driver.members["b"], driver.api.group, driver.now
    observer.was_read(group, at, at)
    since = observer.state.group.writes["a"].since
    observer.was_read(group, at + TIMING.fence_after_s - 1, at + TIMING.fence_after_s - 1)
    assert observer.state.group.writes["a"].since == since
    observer.was_read(group, at + 2 * TIMING.fence_after_s, at + 2 * TIMING.fence_after_s)
    assert observer.state.group.writes["a"].since == at + 2 * TIMING.fence_after_s


def test_member_with_failing_renewals_does_not_treat_leases_as_expired() -> None:
    driver = settled("a", "b")
    observer, backup = driver.members["b"], driver.api.group
    driver.run(TIMING.renew_interval_s, "b")
    observer.was_read(backup, driver.now, driver.now)
    assert observer.state.group.writes["a"].since == driver.now
    observer.was_read(backup, driver.now + 1, driver.now + 1)
    assert observer.state.group.writes["a"].since == driver.now, "the time starts again only once"


def test_member_that_has_not_read_the_group_has_no_problems() -> None:
    assert list(Member("a", "a#1").problems) == []


def test_drain_of_an_earlier_view_does_not_replace_the_drain_of_a_later_view() -> None:
    member = settled("a").members["a"]
    assert member.drained(2, frozenset({"x"}))
    assert not member.drained(1)
    assert member.tenure is not None
    assert (member.tenure.drained, member.tenure.pending) == (2, {"x"})
