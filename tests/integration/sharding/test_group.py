"""Members of a shard group with their requests, ownership and timers."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.sharding import group, rendezvous
from milo_discoveryd.sharding.assignment import LOST
from milo_discoveryd.sharding.group import ERROR_KEPT_S, GroupRequests, ShardGroup, boottime
from milo_discoveryd.sharding.lease_client import ConflictError
from milo_discoveryd.sharding.leases import (
    PENDING_SIZE,
    Delete,
    Evict,
    GroupState,
    MemberLease,
    Read,
    Request,
    WaitUntil,
    WriteLease,
)
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.ownership import KeyOwnership, Ownership
from milo_discoveryd.sharding.timing import Timing
from milo_discoveryd.wiring import sharding
from milo_discoveryd.wiring.sharding import Membership
from tests.simulation.sharding.lease_api import ConflictError as ApiConflictError
from tests.simulation.sharding.lease_api import LeaseApi
from tests.support.eventually import LIMIT_S, eventually
from tests.support.logs import capture_logs

TIMING = Timing(
    renew_interval_s=0.2,
    read_interval_s=0.2,
    unsettled_read_interval_s=0.02,
    retry_interval_s=0.05,
    fence_after_s=1.0,
    evict_after_s=2.0,
    debounce_s=0.1,
)
KEYS = [f"project-{number}" for number in range(12)]


class Leases:
    """The Lease API of the simulations; while it is down, every request fails."""

    def __init__(self, api: LeaseApi) -> None:
        self._api = api
        self.is_down = False
        self.retry_after_s: float | None = None

    async def read(self) -> GroupState:
        return (await self._applied(Read()))[0]

    async def write(self, request: Request) -> str:
        return (await self._applied(request))[1]

    async def _applied(self, request: Request) -> tuple[GroupState, str]:
        await asyncio.sleep(0)
        if self.is_down:
            raise BackendError("no Lease API", retry_after_s=self.retry_after_s)
        try:
            return self._api.apply(request, 0.0)
        except ApiConflictError:
            raise ConflictError from None


class Operator:
    """An operator that follows engagements, and releases lost clusters when the test allows it."""

    def __init__(self) -> None:
        self.engaged: set[str] = set()
        self.draining: set[str] = set()
        self.holds = False
        self.is_lost_known = True
        self.is_stuck = False
        """Whether what was lost is not disengaged yet."""
        self.calls: list[str] = []
        self.not_taken_over = 0
        self.may_engage: Callable[[], bool] = lambda: False
        self.reason = ""

    def assign(self, ownership: Ownership, holds: Callable[[], bool]) -> Iterator[None]:
        self.may_engage, self.ownership = holds, ownership
        for key in KEYS:
            state = self.ownership.decide(key).state
            if state is KeyOwnership.OWNED:
                self.engaged.add(key)
            elif state is KeyOwnership.FOREIGN and key in self.engaged:
                self.engaged.discard(key)
                self.draining |= {key} if self.holds else set()
            yield
        self.calls.append("assigned")

    def decide_by(self, ownership: Ownership) -> None:
        self.ownership = ownership

    def lose_ownership(self, reason: str) -> Iterator[None]:
        self.reason = reason
        while self.is_stuck:
            yield
        self.engaged.clear()
        self.draining.clear()
        self.calls.append("lost")

    def lost(self) -> set[str] | None:
        return set(self.draining) if self.is_lost_known else None

    def is_synced(self) -> bool:
        return True

    def unowned(self) -> int:
        return self.not_taken_over


class Requests:
    def __init__(self) -> None:
        self.results: list[str] = []

    def lease_request(self, action: str, result: str) -> None:
        self.results.append(f"{action} {result}")


class Daemon:
    def __init__(self, name: str, api: LeaseApi, holder: str = "1") -> None:
        self.operator, self.leases, self.requests = Operator(), Leases(api), Requests()
        member = Member(name, f"{name}#{holder}", timing=TIMING)
        self.group = ShardGroup("ops", member, self.leases, self.operator, metrics=self.requests)
        self.running = asyncio.create_task(self.group.run())

    @property
    def engaged(self) -> set[str]:
        return self.operator.engaged


async def pair(daemons: list[Daemon], *names: str) -> tuple[Daemon, Daemon, LeaseApi]:
    api = LeaseApi()
    first, second = (Daemon(name, api) for name in names or ("a", "b"))
    daemons += [first, second]
    await eventually(lambda: first.engaged and second.engaged and first.engaged | second.engaged == set(KEYS))
    return first, second, api


async def test_member_is_ready_from_the_takeover_of_its_share_until_it_leaves(
    daemons: list[Daemon],
) -> None:
    first, second, api = await pair(daemons)
    await eventually(lambda: first.group.share_problem() is None and second.group.share_problem() is None)
    joining = Daemon("c", api)
    joining.operator.not_taken_over = 1
    daemons.append(joining)
    await eventually(lambda: joining.engaged)
    assert "has not taken over" in str(joining.group.share_problem())
    joining.operator.not_taken_over = 0
    await eventually(lambda: joining.group.share_problem() is None)
    joining.operator.not_taken_over = 1
    await joining.group.leave(keeps_term=False)
    assert joining.group.share_problem() is not None


async def test_hand_over_is_complete_when_the_member_has_left(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = await pair(daemons, "operator-7d9c5b8f6d-x2x7q", "operator-7d9c5b8f6d-abcde")
    monkeypatch.setattr(sharding, "BEGIN_S", 0.0)
    await Membership(first.group, hand_over=False).handed_over()  # no hand-over begins, so it returns at once
    monkeypatch.setattr(sharding, "BEGIN_S", LIMIT_S)
    waiting = asyncio.create_task(Membership(first.group, hand_over=False).handed_over())
    first.group.hand_over()
    await waiting
    assert not first.engaged
    await eventually(lambda: second.engaged == set(KEYS))


async def test_member_that_keeps_its_clusters_for_a_successor_hands_nothing_over(daemons: list[Daemon]) -> None:
    first, _, _ = await pair(daemons, "operator-0", "operator-1")
    await Membership(first.group, hand_over=False).handed_over()
    assert first.engaged


async def test_shard_members_divide_the_clusters(daemons: list[Daemon]) -> None:
    first, second, _ = await pair(daemons)
    assert not first.engaged & second.engaged
    assert first.group.members == 2
    assert first.group.valid_s() is not None
    await eventually(lambda: first.group.unsettled_s() == 0.0)
    assert first.group.status().view == second.group.status().view
    assert first.group.unowned() == 0


async def test_leaving_shard_member_hands_over_clusters_after_its_operator_released_them(daemons: list[Daemon]) -> None:
    first, second, _ = await pair(daemons)
    before = set(second.engaged)
    first.operator.holds = True
    leaving = asyncio.create_task(first.group.leave(keeps_term=False))
    await eventually(lambda: first.operator.draining)
    assert second.engaged == before
    first.operator.holds = False  # the assignment may not have reached the other clusters yet
    first.operator.draining.clear()
    first.group.wake()
    await leaving
    await eventually(lambda: second.engaged == set(KEYS))


async def test_stateful_set_pod_hands_over_at_shutdown_only_if_configured(daemons: list[Daemon]) -> None:
    first, second, _ = await pair(daemons, "operator-0", "operator-1")
    before = set(second.engaged)
    await Membership(first.group, hand_over=False).leave()
    assert second.engaged == before
    third, fourth, _ = await pair(daemons, "operator-0", "operator-1")
    await Membership(third.group, hand_over=True).leave()
    await eventually(lambda: fourth.engaged == set(KEYS))
    assert "Evict ok" not in fourth.requests.results, "the member was evicted, although it had left"


async def test_shard_member_keeps_clusters_that_its_subscribers_may_still_use(daemons: list[Daemon]) -> None:
    first, second, api = await pair(daemons)
    before = set(first.engaged)
    first.operator.is_lost_known = False
    third = Daemon("c", api)
    daemons.append(third)
    await eventually(lambda: third.engaged)
    assert not third.engaged & before
    assert first.group.unsettled_s() > 0
    first.operator.is_lost_known = True
    await eventually(lambda: third.engaged & before)
    assert first.engaged | second.engaged | third.engaged == set(KEYS)


async def test_group_is_settled_for_members_that_could_not_engage_what_another_one_keeps(daemons: list[Daemon]) -> None:
    first, second, api = await pair(daemons)
    first.operator.holds = True
    third = Daemon("c", api)
    daemons.append(third)
    await eventually(lambda: first.operator.draining and api.group.members["a"].pending)
    await eventually(lambda: all(daemon.group.status().is_settled for daemon in daemons))
    third.operator.not_taken_over = 1
    await eventually(lambda: not third.group.status().is_settled)
    assert second.group.status().is_settled


async def test_shard_member_keeps_clusters_to_move_while_the_list_of_them_is_too_long_for_its_lease(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, api = await pair(daemons)
    before, former = set(first.engaged), set(second.engaged)
    first.operator.holds = True
    third = Daemon("g", api)
    moving = {key for key in before if rendezvous.owner(key, dict.fromkeys("abg", 1.0)) == "g"}
    assert len(moving) > 1
    monkeypatch.setattr(group, "PENDING_SIZE", max(map(len, moving)))
    daemons.append(third)
    await eventually(lambda: first.operator.draining == moving and third.engaged)
    assert third.engaged < former, "clusters of other members did not move"
    assert first.group.member.tenure is not None
    assert first.group.member.tenure.pending is None
    assert first.group.unsettled_s() > 0
    last = min(moving)
    first.operator.draining = {last}
    first.group.wake()
    # The Lease lists the last cluster as pending, and all others move.
    await eventually(lambda: third.engaged & before == moving - {last})


async def test_successor_takes_over_clusters_of_stopped_shard_member_without_disengagements(
    daemons: list[Daemon],
) -> None:
    first, second, api = await pair(daemons)
    before = set(first.engaged)
    await first.group.leave(keeps_term=True)
    assert first.operator.calls[-1] == "assigned"
    successor = Daemon("a", api, "2")
    daemons.append(successor)
    await eventually(lambda: successor.engaged == before)
    assert len(api.views) == len({view.number for view in api.views})
    assert not second.engaged & successor.engaged


async def test_shard_member_without_lease_api_loses_its_clusters_and_gets_them_back(daemons: list[Daemon]) -> None:
    first, second, _ = await pair(daemons)
    before = set(first.engaged)
    first.leases.is_down = second.leases.is_down = True
    await eventually(lambda: first.operator.calls[-1] == "lost" and not first.engaged)
    assert first.group.valid_s() is None
    assert first.group.status().problem == "no Lease API"
    assert "WriteLease error" in first.requests.results
    first.leases.is_down = second.leases.is_down = False
    await eventually(lambda: first.engaged == before)
    assert first.group.status().problem == ""


async def test_ownership_that_is_regained_while_clusters_are_still_disengaged_begins_after_that(
    daemons: list[Daemon],
) -> None:
    first, second, _ = await pair(daemons)
    before, assignments = set(first.engaged), first.operator.calls.count("assigned")
    first.operator.is_stuck = first.leases.is_down = True
    await eventually(lambda: "shard" in str(first.group.share_problem()))
    assert (first.engaged, first.group.valid_s()) == (before, None)
    assert second.engaged.isdisjoint(before), "its operators may work until they have stopped"
    first.leases.is_down = False
    await eventually(lambda: (owned := first.group.member.ownership(boottime())) is not None and owned.may_engage)
    assert (first.group.valid_s(), first.operator.calls.count("assigned")) == (None, assignments)
    first.operator.is_stuck = False
    await eventually(lambda: first.group.valid_s() is not None and first.engaged == before)
    assert first.operator.calls[assignments:][:2] == ["lost", "assigned"]


async def test_member_that_leaves_has_left_once_all_is_disengaged(daemons: list[Daemon]) -> None:
    first, _, _ = await pair(daemons)
    first.operator.is_stuck = True
    leaving = asyncio.create_task(first.group.leave(keeps_term=False))
    await eventually(lambda: first.group.member.has_ended)
    assert not first.group.ended.is_set()
    first.operator.is_stuck = False
    await leaving
    assert first.operator.calls[-1] == "lost"


async def test_shard_member_repeats_a_failed_request_after_the_time_that_the_lease_api_states() -> None:
    member, leases = Member("a", "a#1"), Leases(LeaseApi())
    leases.is_down, leases.retry_after_s = True, 9.0
    await GroupRequests("ops", member, leases, Requests(), lambda: 100.0).perform(Read())
    assert member.next(100.5) == WaitUntil(109.0)
    assert member.state.pacing.write_at == 101.0


@pytest.mark.parametrize("becomes", ["malformed", "deleted"])
@pytest.mark.parametrize(
    ("length", "leases", "what"), [(4, 12, "more than 200000 pending"), (650, 200, "more than 13107200 characters")]
)
async def test_pending_clusters_of_leases_that_became_malformed_or_were_deleted_are_limited_too(
    becomes: str, length: int, leases: int, what: str
) -> None:
    """Found by an attacker: each round of Leases that then became malformed left its names in memory."""
    member, api = Member("a", "a#1"), LeaseApi()
    requests = GroupRequests("ops", member, Leases(api), Requests(), lambda: 100.0)
    pending = frozenset(f"{number:0{length}}" for number in range(PENDING_SIZE // length))

    async def read(members: dict[str, MemberLease]) -> str:
        api.group = msgspec.structs.replace(api.group, members=members)
        await requests.perform(Read())
        return "; ".join(requests.problems)

    def forged(number: int) -> dict[str, MemberLease]:
        names = [f"{number}-{index}" for index in range(leases)]
        return {name: MemberLease(member=name, holder="x", term="x", pending=pending) for name in names}

    def kept() -> int:
        return sum(len(observed.pending) for observed in member.state.group.writes.values())

    before = forged(0)
    assert what not in await read(before)
    assert kept() == leases * len(pending)
    if becomes == "malformed":
        for name, lease in before.items():
            before[name] = msgspec.structs.replace(lease, pending=frozenset(), problem="malformed")
    else:
        before = {}
    assert what in await read({**before, **forged(1)})
    assert kept() == leases * len(pending)
    assert what not in await read({}), "the forged Leases are deleted"


async def test_problem_of_a_request_that_keeps_failing_stays_while_others_succeed() -> None:
    member, leases, now = Member("a", "a#1"), Leases(LeaseApi()), [100.0]
    requests = GroupRequests("ops", member, leases, Requests(), lambda: now[0])
    lease = MemberLease(member="b", holder="b#1", version="1")

    async def perform(request: Request, *, fails: bool = False) -> tuple[str, ...]:
        leases.is_down = fails
        await requests.perform(request)
        return requests.problems

    with capture_logs() as logs:
        assert await perform(Evict(lease), fails=True) == ("no Lease API",)
        assert await perform(Read()) == ("no Lease API",)
        assert await perform(Evict(lease)) == (), "a conflict is an answer"
        assert await perform(Evict(lease), fails=True) == ("no Lease API",)
        now[0] += ERROR_KEPT_S
        assert await perform(Read()) == (), "the eviction may not be due anymore"
    assert [line["event"] for line in logs] == ["shard group unhealthy", "shard group healthy again"] * 2


async def test_lost_ownership_is_logged_with_its_reason_while_a_request_hangs(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, _ = await pair(daemons)

    async def hang(*_: object) -> tuple[GroupState, str]:
        await asyncio.Event().wait()
        raise AssertionError

    with capture_logs() as logs:
        monkeypatch.setattr(first.leases, "_applied", hang)
        await eventually(lambda: first.operator.calls[-1] == "lost")
    [line] = [line for line in logs if line["event"] == "shard ownership lost"]
    assert line["problem"] == "the Lease of this member of the shard group was not renewed in time"


async def test_shard_member_that_leaves_reports_no_loss(daemons: list[Daemon]) -> None:
    first, _, _ = await pair(daemons)
    with capture_logs() as logs:
        await first.group.leave(keeps_term=False)
    assert [line["event"] for line in logs if "shard member" not in line["event"]] == [
        "shard view written",
        "shard group left",
    ]
    assert first.operator.reason == "this member has left the shard group"


async def test_shard_member_whose_lease_is_taken_while_it_leaves_reports_a_loss(daemons: list[Daemon]) -> None:
    first, _, api = await pair(daemons)
    first.operator.holds = True
    leaving = asyncio.create_task(first.group.leave(keeps_term=False))
    await eventually(lambda: first.operator.draining)
    with capture_logs() as logs:
        api.change("a", 0.0, holder="a#2")
        await leaving
    [line] = [line for line in logs if line["event"] in ("shard ownership lost", "shard group left")]
    assert (line["event"], line["log_level"]) == ("shard ownership lost", "warning")
    assert "was taken over or changed while the member was leaving" in line["problem"]
    assert first.operator.reason == line["problem"]


async def test_shard_member_that_stops_for_its_successor_engages_nothing_after_its_fence(
    daemons: list[Daemon],
) -> None:
    """Found by a reader: it kept its clusters, and obtained credentials for them after another member owned them."""
    first, second, _ = await pair(daemons)
    engaged = set(first.engaged)
    first.leases.is_down = True
    stopping = asyncio.create_task(first.group.leave(keeps_term=True))
    assert first.operator.may_engage()
    assert first.engaged == engaged, "its operator works until its deadline"
    await eventually(lambda: not first.operator.may_engage())
    await eventually(lambda: second.engaged == set(KEYS))
    assert not first.engaged
    assert first.operator.reason == LOST
    stopping.cancel()


async def test_process_that_is_paused_while_it_applies_its_ownership_engages_nothing_after_its_fence(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, _ = await pair(daemons)
    first.leases.is_down = True
    member, ownership, paused = first.group.member, first.group.member.ownership, asyncio.Event()

    def pause(now: float) -> Ownership | None:
        found = ownership(now)
        if not paused.is_set():
            paused.set()
            time.sleep(TIMING.fence_after_s)
        return found

    first.group.reassign()
    monkeypatch.setattr(member, "ownership", pause)
    await paused.wait()
    assert not first.operator.may_engage()


async def test_releases_that_trickle_in_keep_no_cluster_from_being_assigned(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: each one began the assignment again, and in a large fleet it reached no end."""
    first, second, _ = await pair(daemons)
    member, decide, releases = first.group.member, first.group.member.ownership, itertools.count()
    acknowledged = first.group.member.drained
    recorded: list[int] = []

    def changing(now: float) -> Ownership | None:
        found = decide(now)
        pending = (("other", frozenset({f"another-{next(releases)}"})),)
        return None if found is None else msgspec.structs.replace(found, pending=pending)

    def drained(number: int, pending: frozenset[str] | None, *, awaits_release: bool = False) -> bool:
        recorded.append(number)
        return acknowledged(number, pending, awaits_release=awaits_release)

    monkeypatch.setattr(member, "ownership", changing)
    monkeypatch.setattr(member, "drained", drained)
    await second.group.leave(keeps_term=False)
    await eventually(lambda: first.engaged == set(KEYS))
    view = member.state.group.latest_view
    assert view is not None
    await eventually(lambda: view.number in recorded)


def pause(for_s: float) -> None:
    """Block the event loop, as if the process were stopped."""
    time.sleep(for_s)


async def test_member_that_was_paused_over_its_fence_while_it_renewed_disengages_its_clusters_as_lost(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must not drain: that waits for subscribers whose ownership has passed, and the member remains the owner."""
    first, _, _ = await pair(daemons)
    answer, renewing, resumed = first.leases.write, asyncio.Event(), asyncio.Event()

    async def write(request: Request) -> str:
        version = await answer(request)
        if isinstance(request, WriteLease) and first.group.member.fence_at < boottime() + (
            TIMING.fence_after_s - TIMING.renew_interval_s / 2
        ):
            renewing.set()
            await resumed.wait()
        return version

    monkeypatch.setattr(first.leases, "write", write)
    await renewing.wait()
    owned = set(first.engaged)
    pause(TIMING.fence_after_s - TIMING.renew_interval_s / 2)
    resumed.set()
    await eventually(lambda: "lost" in first.operator.calls)
    assert first.operator.reason == LOST
    await eventually(lambda: first.engaged == owned)


@pytest.mark.parametrize("hangs", [True, False])
async def test_deletion_of_a_lease_that_hangs_or_fails_unexpectedly_affects_no_other_request(
    daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    """Found by a reader: views and renewals waited for it, up to 4 s."""
    first, second, api = await pair(daemons)
    answer, deletions = first.leases.write, []

    async def write(request: Request) -> str:
        if isinstance(request, Delete):
            deletions.append(request)
            if not hangs:
                raise RuntimeError("a defect")
            await asyncio.Event().wait()
        return await answer(request)

    monkeypatch.setattr(first.leases, "write", write)
    monkeypatch.setattr(first.group.member, "_timing", msgspec.structs.replace(TIMING, retention_s=0.0))
    former = MemberLease(member="former", version="1")
    api._replace(0.0, members={**api.group.members, "former": former})
    await eventually(lambda: len(deletions) == (1 if hangs else 2))
    second.running.cancel()
    await eventually(lambda: first.engaged == set(KEYS))
    assert "lost" not in first.operator.calls
    await first.group.leave(keeps_term=False)


async def test_killed_shard_member_is_evicted(daemons: list[Daemon]) -> None:
    first, second, _ = await pair(daemons)
    first.running.cancel()
    await eventually(lambda: second.engaged == set(KEYS))
    assert "Evict ok" in second.requests.results


async def test_member_reads_no_more_of_the_clusters_that_it_lost_than_fit_into_its_lease(daemons: list[Daemon]) -> None:
    """Found by measurement: each release of one of 50,000 clusters that moved blocked the event loop for 0.15 s."""
    daemon = Daemon("a", LeaseApi())
    daemons.append(daemon)
    read = 0

    def lost() -> Iterator[str]:
        nonlocal read
        read = 0
        for number in range(50_000):
            read += 1
            yield f"cluster-{number:05}"

    await eventually(lambda: daemon.engaged)
    daemon.operator.lost = lost  # type: ignore[assignment, method-assign]
    daemon.group.wake()
    await eventually(lambda: read)
    assert read <= 1 + PENDING_SIZE // len("cluster-00000")
