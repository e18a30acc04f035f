"""What follows in each state of a member when the write of its Lease fails: the table in `member`, as tests."""

from collections.abc import Callable

import msgspec
import pytest

from milo_discoveryd.sharding.leases import Evict, Read, Request, WaitUntil, WriteLease, WriteView
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.state import Departed, Holding, Joining, Leaving, Lost, Phase, Resigned
from milo_discoveryd.sharding.timing import TIMING
from tests.unit.sharding.driver import Driver
from tests.unit.sharding.test_member import ALL, settled


class Writing:
    """Member `a` of a group of two, whose next request is a write of its own Lease."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        while not isinstance(action := self.member.next(self.now), WriteLease):
            if isinstance(action, WaitUntil):
                self.driver.run(0.25, "b")
            else:
                self.driver.perform(self.member, action)
        self.write = action

    @property
    def member(self) -> Member:
        return self.driver.members["a"]

    @property
    def now(self) -> float:
        return self.driver.now

    @property
    def phase(self) -> Phase:
        return self.member.state.phase

    def takes_effect(self) -> None:
        self.driver.api.apply(self.write, self.now)


def joining() -> Writing:
    driver = settled("b")
    driver.add("a", Member("a", "a#1"))
    return Writing(driver)


def lost() -> Writing:
    driver = settled("a", "b")
    driver.api.delete("a", driver.now)
    driver.run_until(lambda: isinstance(driver.members["a"].state.phase, Lost))
    return Writing(driver)


def holding() -> Writing:
    return Writing(settled("a", "b"))


def leaving() -> Writing:
    driver = settled("a", "b")
    driver.members["a"].leave()
    driver.step("a")
    driver.run_until(lambda: not driver.step("a"))
    return Writing(driver)


def withdrawn() -> Writing:
    writing = joining()
    writing.member.leave()
    return writing


STATES = [joining, lost, holding, leaving, withdrawn]
OWNS = (Holding, Leaving)
"""The states in which the member owns clusters. None of the failures ends that before the Leases were read, or 20 s."""


@pytest.mark.parametrize(
    ("state", "after"),
    [(joining, Joining), (lost, Lost), (holding, Holding), (leaving, Leaving), (withdrawn, Departed)],
)
def test_conflict_is_followed_by_a_read_in_the_same_state(state: Callable[[], Writing], after: type[Phase]) -> None:
    writing = state()
    writing.member.conflicted(writing.write, writing.now)
    action = writing.member.next(writing.now)
    assert isinstance(writing.phase, after)
    assert isinstance(action, WaitUntil if after is Departed else Read)
    assert bool(writing.driver.owned("a")) is (after in OWNS)


@pytest.mark.parametrize(
    ("state", "after"),
    [(joining, Joining), (lost, Lost), (holding, Holding), (leaving, Leaving), (withdrawn, Departed)],
)
def test_error_is_followed_by_the_same_write_after_a_second(state: Callable[[], Writing], after: type[Phase]) -> None:
    writing = state()
    writing.member.failed(writing.write, writing.now)
    action = writing.member.next(writing.now)
    assert isinstance(writing.phase, after)
    assert bool(writing.driver.owned("a")) is (after in OWNS)
    assert isinstance(action, WaitUntil)
    retry_at = writing.now + TIMING.retry_interval_s
    if after in OWNS:
        assert isinstance(writing.member.next(retry_at), Read)
        writing.member.failed(Read(), retry_at)
        retry_at += TIMING.retry_interval_s
    if after is not Departed:
        assert writing.member.next(retry_at) == writing.write


@pytest.mark.parametrize("state", [holding, leaving])
@pytest.mark.parametrize("is_stored", [True, False])
def test_renewal_that_took_effect_without_a_response_counts_once_it_is_read(
    state: Callable[[], Writing], *, is_stored: bool
) -> None:
    """Found by a reader: while the Lease API answered writes after more than 4 s, all members lost all clusters."""
    writing = state()
    driver, member, started_at, fence_at = writing.driver, writing.member, writing.now, writing.member.fence_at
    if is_stored:
        writing.takes_effect()
    driver.now += 4.0
    member.failed(writing.write, driver.now)
    driver.now += TIMING.retry_interval_s
    assert member.next(driver.now) == Read()
    driver.perform(member, Read())
    assert member.fence_at == (started_at + TIMING.fence_after_s if is_stored else fence_at)
    assert started_at + TIMING.fence_after_s > fence_at
    assert driver.owned("a")


@pytest.mark.parametrize(
    ("state", "after", "term"),
    [(joining, Holding, "a#1.1"), (lost, Holding, "a#1.2"), (holding, Holding, "a#1.1"), (leaving, Leaving, "a#1.1")],
)
def test_write_that_took_effect_without_a_response_costs_no_cluster(
    state: Callable[[], Writing], after: type[Phase], term: str
) -> None:
    writing = state()
    before = writing.driver.owned("a")
    writing.takes_effect()
    writing.member.failed(writing.write, writing.now)
    for _ in range(8):
        writing.driver.run(0.25)
        assert before <= writing.driver.owned("a") | writing.driver.owned("b")
    assert isinstance(writing.phase, after)
    assert writing.member.tenure is not None
    assert writing.member.tenure.lease.term == term


@pytest.mark.parametrize("late_s", [4.0, 25.0])
def test_fenced_member_owns_again_once_it_reads_a_renewal_unless_that_is_too_old(late_s: float) -> None:
    writing = holding()
    driver, member = writing.driver, writing.member
    driver.now = member.fence_at
    assert member.ownership(driver.now) is None
    while not isinstance(action := member.next(driver.now), WriteLease):
        driver.perform(member, action)
    driver.api.apply(action, driver.now)
    driver.now += late_s
    member.failed(action, driver.now)
    driver.now += TIMING.retry_interval_s
    assert member.next(driver.now) == Read()
    driver.perform(member, Read())
    assert (member.ownership(driver.now) is not None) is (late_s < TIMING.fence_after_s)


@pytest.mark.parametrize(("state", "after"), [(holding, Lost), (leaving, Departed)])
def test_lease_that_another_process_took_ends_ownership_once_it_is_read(
    state: Callable[[], Writing], after: type[Phase]
) -> None:
    writing = state()
    lease = writing.driver.api.group.members["a"]
    cleared = msgspec.structs.replace(lease, holder="")
    writing.driver.api.apply(Evict(cleared), writing.now)
    writing.member.conflicted(writing.write, writing.now)
    writing.driver.step("a")
    assert isinstance(writing.phase, after)
    assert writing.member.has_ended_by_loss == (after is Departed)
    assert writing.member.ownership(writing.now) is None


def test_member_that_reads_that_it_has_released_its_lease_has_ended_without_a_loss() -> None:
    writing = leaving()
    driver = writing.driver

    def lose_the_response(member: Member, action: Request) -> None:
        if isinstance(action, WriteLease) and not action.lease.is_held:
            driver.api.apply(action, driver.now)
            member.failed(action, driver.now)
        else:
            Driver.perform(driver, member, action)

    driver.perform = lose_the_response  # type: ignore[method-assign]
    driver.run_until(lambda: writing.member.has_ended)
    assert not driver.api.group.members["a"].is_held
    assert not writing.member.has_ended_by_loss


@pytest.mark.parametrize(("state", "after"), [(holding, Holding), (leaving, Leaving)])
def test_member_that_has_not_renewed_owns_nothing_and_continues_its_term_with_the_next_renewal(
    state: Callable[[], Writing], after: type[Phase]
) -> None:
    writing = state()
    assert writing.driver.owned("a")
    driver, fence_at = writing.driver, writing.member.fence_at
    assert writing.member.ownership(fence_at) is None
    tenure = writing.member.tenure
    assert tenure is not None
    assert (tenure.claim, tenure.acknowledge_at) == (None, fence_at + TIMING.margin_s)
    driver.now = fence_at
    driver.step("a")
    assert isinstance(writing.phase, after)
    assert writing.member.ownership(fence_at) is not None
    assert not driver.owned("a"), "other members have not renewed their Leases since then"


def test_leaving_member_whose_lease_another_program_changed_ends() -> None:
    writing = leaving()
    writing.driver.api.change("a", writing.now, acknowledged=99)
    writing.member.conflicted(writing.write, writing.now)
    writing.driver.step("a")
    assert writing.phase == Departed(is_loss=True)


@pytest.mark.parametrize("is_leaving", [False, True])
def test_member_that_waits_for_its_lease_loses_the_term_that_it_might_continue_if_the_view_is_restored(
    is_leaving: bool,
) -> None:
    driver = settled("a", "b")
    driver.api.change("a", driver.now, problem="it cannot be read")  # so the process waits
    successor = driver.add("a", Member("a", "a#2"))
    driver.step("a")
    assert isinstance(successor.state.phase, Joining)
    group = msgspec.structs.replace(driver.api.group, view=None, view_version="")
    if is_leaving:
        successor.leave()
        successor.stop()
    successor.was_read(group, driver.now, driver.now)
    assert isinstance(successor.state.phase, Resigned if is_leaving else Lost)


def test_renewal_whose_response_comes_after_the_fence_gives_no_ownership() -> None:
    writing = holding()
    fence_at = writing.now + TIMING.fence_after_s
    _, version = writing.driver.api.apply(writing.write, writing.now)
    writing.member.was_written(writing.write, version, writing.now, fence_at)
    assert isinstance(writing.phase, Holding)
    assert writing.member.ownership(fence_at) is None


def test_member_without_its_lease_has_nothing_to_release() -> None:
    assert not Member("a", "a#1").drained(1, frozenset({"x"}))


def test_withdrawn_member_whose_join_was_under_way_releases_the_lease() -> None:
    writing = withdrawn()
    writing.driver.perform(writing.member, writing.write)
    assert isinstance(writing.phase, Leaving)
    writing.driver.run_until(lambda: writing.member.has_ended)
    assert not writing.driver.api.group.members["a"].is_held
    writing.driver.run_until(lambda: writing.driver.owned("b") == ALL, "b")


@pytest.mark.parametrize("state", [joining, lost, holding, leaving])
def test_repeated_conflicts_are_followed_by_reads_that_are_a_second_apart(state: Callable[[], Writing]) -> None:
    writing = state()
    member, at, conflicts = writing.member, writing.now, 0
    for _ in range(200):
        action = member.next(at)
        if isinstance(action, WaitUntil):
            at = min(action.until, at + 1.0)
        elif isinstance(action, Read):
            member.was_read(writing.driver.api.group, at, at)
        else:
            member.conflicted(action, at)
            conflicts += 1
    assert conflicts
    assert conflicts <= 2 + (at - writing.now) / TIMING.retry_interval_s


def test_conflict_after_a_while_is_followed_by_a_read_at_once() -> None:
    writing = holding()
    member = writing.member
    at = member.fence_at - 10
    for later in (0.0, 5.0):
        member.conflicted(writing.write, at + later)
        assert member.next(at + later) == Read()


STATED = [(None, 1.0), (0.2, 1.0), (7.0, 7.0), (1e9, TIMING.longest_retry_s)]


@pytest.mark.parametrize(("stated", "waits"), STATED)
def test_failed_read_is_repeated_after_the_time_that_the_server_states(stated: float | None, waits: float) -> None:
    member = Member("a", "a#1")
    assert member.next(5.0) == Read()
    member.failed(Read(), 6.0, stated)
    assert member.next(6.1) == WaitUntil(6.0 + waits)
    assert member.next(6.0 + waits) == Read()


@pytest.mark.parametrize(("stated", "waits"), STATED)
@pytest.mark.parametrize("state", [joining, lost])
def test_failed_write_is_repeated_after_the_time_that_the_server_states(
    state: Callable[[], Writing], stated: float | None, waits: float
) -> None:
    writing = state()
    writing.member.failed(writing.write, writing.now, stated)
    assert writing.member.next(writing.now + 0.5) == WaitUntil(writing.now + 1.0)
    if waits > 1.0:
        assert writing.member.next(writing.now + 1.0) == WaitUntil(writing.now + waits)
    assert writing.member.next(writing.now + waits) == writing.write


@pytest.mark.parametrize("stated", [11.0, 1e9])
def test_member_whose_renewal_is_refused_for_a_while_renews_before_it_is_fenced(stated: float) -> None:
    driver = settled("a", "b")
    member = driver.members["a"]
    driver.run_until(lambda: driver.now >= member.fence_at - 10, "b")
    renewal = member.next(driver.now)
    assert isinstance(renewal, WriteLease)
    member.failed(renewal, driver.now, stated)
    driver.requests.clear()
    fence_at = member.fence_at
    while member.fence_at == fence_at:
        assert driver.owned("a")
        driver.run(0.25)
    assert (
        len([request for _, name, request in driver.requests if name == "a" and isinstance(request, WriteLease)]) == 1
    )
    assert driver.now <= fence_at - 4


def test_fenced_member_whose_renewal_is_refused_waits_as_long_as_stated() -> None:
    writing = holding()
    member, fence_at = writing.member, writing.member.fence_at
    member.failed(writing.write, fence_at, 1e9)
    assert member.state.pacing.write_at == fence_at + TIMING.longest_retry_s


def test_member_whose_reads_are_refused_for_a_while_renews_its_lease() -> None:
    driver = settled("a", "b")
    member, until = driver.members["a"], driver.now + TIMING.longest_retry_s
    member.failed(Read(), driver.now, 1e9)
    driver.requests.clear()
    while driver.now < until - 1:
        driver.run(0.25)
        assert driver.owned("a")
    kinds = {type(request) for _, name, request in driver.requests if name == "a"}
    assert kinds == {WriteLease}
    driver.run(2)
    assert Read() in [request for _, name, request in driver.requests if name == "a"]


def test_member_whose_write_of_a_view_conflicts_while_reads_are_refused_renews_its_lease() -> None:
    driver = settled("a", "b")
    member, until = driver.members["a"], driver.now + TIMING.longest_retry_s
    view = driver.api.group.view
    assert view is not None
    member.conflicted(WriteView(view, driver.api.group.view_version), driver.now)
    assert member.next(driver.now) == Read()
    member.failed(Read(), driver.now, 1e9)
    driver.requests.clear()
    while driver.now < until - 1:
        driver.run(0.25)
        assert driver.owned("a")
    assert {type(request) for _, name, request in driver.requests if name == "a"} == {WriteLease}
    driver.run(2)
    assert Read() in [request for _, name, request in driver.requests if name == "a"]


@pytest.mark.parametrize("is_refused_before", [False, True])
def test_member_whose_renewal_conflicts_while_reads_are_refused_renews_its_lease(*, is_refused_before: bool) -> None:
    writing = holding()
    driver, member, fence_at = writing.driver, writing.member, writing.member.fence_at
    driver.api.change("a", driver.now)
    if is_refused_before:
        member.failed(Read(), driver.now, 1e9)
    member.conflicted(writing.write, driver.now)
    if not is_refused_before:
        assert member.next(driver.now) == Read()
        member.failed(Read(), driver.now, 1e9)
    while member.fence_at == fence_at:
        assert driver.owned("a")
        driver.run(0.25)
    assert driver.now <= fence_at - 4


def test_no_view_is_written_between_a_conflict_and_the_next_read() -> None:
    driver = settled("a", "b")
    driver.add("c", Member("c", "c#1"))
    member = driver.members["a"]
    while not isinstance(action := member.next(driver.now), WriteView):
        driver.run(0.25, "c") if isinstance(action, WaitUntil) else driver.perform(member, action)
    member.conflicted(action, driver.now)
    member.failed(Read(), driver.now, 5.0)
    driver.requests.clear()
    driver.run(4.75, "a")
    assert {type(request) for _, name, request in driver.requests if name == "a"} <= {WriteLease}
    driver.run(0.25, "a")
    assert [type(request) for _, _, request in driver.requests if not isinstance(request, WriteLease)] == [
        Read,
        WriteView,
    ]


def test_member_whose_writes_are_refused_for_a_while_reads() -> None:
    driver = settled("a", "b")
    member = driver.members["a"]
    driver.run(1)
    driver.requests.clear()
    refused_at = driver.now
    assert member.tenure is not None
    member.failed(WriteLease(member.tenure.lease), driver.now, 15.0)
    driver.run(14.75)
    assert {type(request) for _, name, request in driver.requests if name == "a"} == {Read}
    driver.run(0.25)
    assert [at for at, name, request in driver.requests if name == "a" and isinstance(request, WriteLease)] == [
        refused_at + 15.0
    ]


def test_leaving_member_that_was_recorded_as_stopped_without_a_response_hands_over_to_one_that_joined_meanwhile() -> (
    None
):
    """Found by a reader: it wrote that it had stopped once more, and ended before its clusters were released."""
    driver = settled("a")
    member, slow = driver.members["a"], min(ALL)
    driver.pending = {"a": {slow}}
    member.leave()
    while not (isinstance(action := member.next(driver.now), WriteLease) and action.lease.is_stopped):
        assert not isinstance(action, WaitUntil)
        driver.perform(member, action)
    driver.api.apply(action, driver.now)
    driver.add("c", Member("c", "c#1"))
    driver.run(0.5, "c")
    member.failed(action, driver.now)
    driver.run_until(lambda: driver.owned("c") == ALL - {slow})
    driver.run(2 * TIMING.evict_after_s)
    assert isinstance(member.state.phase, Leaving)
    driver.pending = {}
    driver.run_until(lambda: member.has_ended and driver.owned("c") == ALL)
