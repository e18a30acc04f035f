"""A fleet that engages the clusters that its member owns."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.engagement.subscriber import OWNED_S, SubscriberKey, Subscription
from milo_discoveryd.fleet import changes
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.sharding.assignment import LOST, STARTING, CredentialRevocation, FencedIssuer, FleetAssignment
from milo_discoveryd.sharding.leases import View, ViewMember
from milo_discoveryd.sharding.ownership import Ownership
from milo_discoveryd.sources.kind import ProjectUids
from milo_kube.label_selector import parse
from milo_kube.reflect.messages import DeletionReported, Listed, ListEnded, ListStarted, ObjectChanged, SourceEvent
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import malformed, not_ready, ready, target
from tests.unit.fleet.test_fleet_malformed import Ledger
from tests.unit.sharding.fleets import fleet_of_one_source

KEY = SubscriberKey("caller", "operator")
ALONE = Ownership(view=View(number=1, id="1", members={"a": ViewMember("a.1")}), member="a", term="a.1")
GONE = Ownership(
    view=View(number=2, id="2", members={"b": ViewMember("b.1")}, previous=ALONE.view.members), member="a", term="a.1"
)
GIVEN = Ownership(
    view=View(
        number=2,
        id="2",
        members={"a": ViewMember("a.1", 1e-9), "b": ViewMember("b.1")},
        previous=ALONE.view.members,
    ),
    member="a",
    term="a.1",
)
"""All clusters move to a new member, and this one stays in the group."""
NEXT = Ownership(
    view=View(number=2, id="2", members={"a": ViewMember("a.1")}, previous={"b": ViewMember("b.1")}),
    member="a",
    term="a.1",
    unsettled=frozenset({"b"}),
)
CONTINUED = Ownership(
    view=View(number=2, id="2", members=ALONE.view.members, previous=ALONE.view.members), member="a", term="a.1"
)
NEWCOMER = Ownership(
    view=View(number=2, id="2", members={"b": ViewMember("b.1")}, previous={"b": ViewMember("b.1")}),
    member="a",
    term="a.1",
)
STARTED = Ownership(view=ALONE.view, member="a", term="a.1", may_engage=False)


def listed(
    *names: str, revocation: Any = None, version: str = "", **policy: Any
) -> tuple[ClusterSource, FleetAssignment]:
    fleet = fleet_of_one_source(**policy)
    (source,) = fleet.sources
    assignment = FleetAssignment(fleet, 30.0, revocation)
    apply_list(source, *names, version=version)
    return source, assignment


def assign(assignment: FleetAssignment, ownership: Ownership) -> None:
    for _ in assignment.assign(ownership, lambda: True):
        pass


def lose(assignment: FleetAssignment) -> None:
    for _ in assignment.lose_ownership(LOST):
        pass


def lost(assignment: FleetAssignment) -> set[str]:
    found = assignment.lost()
    assert found is not None
    return set(found)


def apply(source: ClusterSource, event: SourceEvent[Observation], now: float = 1.0) -> None:
    for _ in source.apply(source.collections[0], [event], now):
        pass


def follow(source: ClusterSource, state: ViewState) -> None:
    source.set_followed(source.collections[0], ViewStatus(state, 0.0))


def apply_list(source: ClusterSource, *names: str, version: str = "", now: float = 0.0) -> None:
    found: list[SourceEvent[Observation]] = [Listed(ready(name, uid=name)) for name in names]
    for _ in source.apply(source.collections[0], [ListStarted(), *found, ListEnded(version)], now):
        pass


def message(source: ClusterSource, name: str = "x") -> str:
    record = source.engagements[name]
    assert record is not None
    return record.message


async def test_fleet_is_not_synced_before_the_shard_group_member_may_engage() -> None:
    source, assignment = listed("x", "y")
    assert (source.synced, source.engagements.engaged, message(source)) == (False, 0, STARTING)
    assert assignment.unowned() == 0
    assign(assignment, STARTED)
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (False, 0, 2)
    assert "waits until the Leases are known to be current" in message(source)
    assign(assignment, ALONE)
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (True, 2, 0)


async def test_member_outside_the_view_is_synced_and_owns_nothing() -> None:
    source, assignment = listed("x")
    assign(assignment, GONE)
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (True, 0, 0)
    assert message(source) == "member b of the shard group owns it (view 2)"


async def test_member_of_a_group_without_owners_is_synced_and_owns_nothing() -> None:
    source, assignment = listed("x")
    view = View(number=2, id="2", members={}, previous=ALONE.view.members)
    assign(assignment, Ownership(view=view, member="a", term="a.1"))
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (True, 0, 0)
    assert message(source) == "no member of the shard group owns it (view 2)"


async def test_cluster_that_another_member_has_not_released_is_unowned() -> None:
    source, assignment = listed("x")
    assign(assignment, NEXT)
    assert (source.engagements.engaged, assignment.unowned()) == (0, 1)
    assert message(source) == "this member will own it (view 2) once member b has released it"


async def test_moved_clusters_stay_engaged_until_they_are_released() -> None:
    source, assignment = listed("x", "y")
    assign(assignment, ALONE)
    source.changes.subscribe(Subscription(KEY, "", Filter(confirms_releases=True)))
    ended: list[str] = []
    source.changes.add_listener(EventType.DISENGAGED, lambda event: ended.append(event.cluster.target.name))
    assign(assignment, GONE)
    assert (lost(assignment), ended) == ({"x", "y"}, [])
    source.changes.release(KEY, "x")
    assert (lost(assignment), ended) == ({"y"}, ["x"])
    source.changes.release(KEY, "y")
    assert (lost(assignment), ended) == (set(), ["x", "y"])


async def test_cluster_that_ended_without_a_message_to_its_subscriber_is_engaged_elsewhere_only_once_that_has_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by a simulation: a cluster was not ready for a moment, and moved, while its operator had no stream."""
    source, assignment = listed("x", "y")
    assign(assignment, ALONE)
    subscription = Subscription(KEY, "", Filter(confirms_releases=True), is_current=True)
    source.changes.subscribe(subscription)
    apply(source, ObjectChanged(not_ready("y", uid="y")))
    source.changes.unsubscribe(subscription)
    apply(source, ObjectChanged(not_ready("x", uid="x")))
    assert lost(assignment) == set()
    assign(assignment, GONE)
    assert lost(assignment) == {"x"}
    later = changes.steady_now() + OWNED_S
    monkeypatch.setattr("milo_discoveryd.sharding.assignment.steady_now", lambda: later)
    assert lost(assignment) == set()


async def test_cluster_whose_drain_ended_while_its_subscriber_had_no_stream_is_engaged_elsewhere_later() -> None:
    """Found by a reader: a cluster drained because it was not ready, moved, and two operators worked in it."""
    source, assignment = listed("x", drain_timeout_s=1.0)
    assign(assignment, ALONE)
    subscription = Subscription(KEY, "", Filter(confirms_releases=True))
    source.changes.subscribe(subscription)
    source.changes.unsubscribe(subscription)
    apply(source, ObjectChanged(not_ready("x", uid="x")))
    assign(assignment, GONE)
    assert lost(assignment) == {"x"}
    now = changes.steady_now()
    source.changes.publish(source.engagements.end_drain("x", changes.moment(now)), now)
    assert (source.engagements.engaged, lost(assignment)) == (0, {"x"})


async def test_cluster_that_moves_ends_at_its_deadline_and_is_engaged_elsewhere_only_once_its_subscriber_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by a reader: its operator had no stream at the deadline, was back later, and lost its stream again. Its
    ownership was renewed meanwhile, and it was not told that the cluster moved: two operators worked in it."""
    source, assignment = listed("x")
    assign(assignment, ALONE)
    subscription = Subscription(KEY, "", Filter(confirms_releases=True))
    source.changes.subscribe(subscription)
    began = changes.steady_now()
    source.changes.unsubscribe(subscription)
    assign(assignment, GONE)
    ended: list[Event] = []
    source.changes.add_listener(EventType.DISENGAGED, ended.append)

    def pass_time(seconds: float) -> None:
        for module in ("fleet.changes", "sharding.assignment"):
            monkeypatch.setattr(f"milo_discoveryd.{module}.steady_now", lambda: began + seconds)

    pass_time(31.0)
    source.changes._drains_expired()
    assert [event.reason for event in ended] == [DisengageReason.MOVED]
    source.changes.subscribe(again := Subscription(KEY, "", Filter(confirms_releases=True)))
    source.changes.unsubscribe(again)
    assert lost(assignment) == {"x"}
    pass_time(OWNED_S + 1.0)
    assert lost(assignment) == set()


async def test_cluster_that_moves_while_its_subscriber_catches_up_is_engaged_elsewhere_only_once_that_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, assignment = listed("x")
    assign(assignment, ALONE)
    source.changes.subscribe(first := Subscription(KEY, "", Filter(confirms_releases=True), is_current=True))
    began = changes.steady_now()
    source.changes.unsubscribe(first)
    assign(assignment, GONE)

    def pass_time(seconds: float) -> None:
        for module in ("fleet.changes", "sharding.assignment"):
            monkeypatch.setattr(f"milo_discoveryd.{module}.steady_now", lambda: began + seconds)

    pass_time(29.0)
    source.changes.subscribe(again := Subscription(KEY, "", Filter(confirms_releases=True)))
    pass_time(31.0)
    source.changes._drains_expired()
    assert not source.changes.releases.may_renew(KEY, began + 31.0)
    source.changes.unsubscribe(again)
    assert (source.engagements.engaged, lost(assignment)) == (0, {"x"})
    pass_time(29.0 + OWNED_S)
    assert lost(assignment) == set()


async def test_cluster_that_is_replaced_while_it_moves_is_engaged_elsewhere_only_once_its_subscriber_stopped() -> None:
    """Found by a reader: its operator, without a stream, worked on while the next owner engaged the new incarnation."""
    source, assignment = listed("x")
    assign(assignment, ALONE)
    subscription = Subscription(KEY, "", Filter(confirms_releases=True))
    source.changes.subscribe(subscription)
    source.changes.unsubscribe(subscription)
    assign(assignment, GONE)
    [moving] = source.engagements.clusters()
    assert moving.draining is not None
    apply(source, ObjectChanged(ready("x", uid="y")))
    assert (source.engagements.engaged, lost(assignment)) == (0, {"x"})


def labeled(version: str, tier: str) -> Ready:
    return ready("x", version=version, uid="x", labels={"tier": tier})


@pytest.mark.parametrize(
    "change",
    ["before the move", "before the move, and not ready", "in the drain", "while another subscriber works on"],
)
async def test_cluster_that_left_the_filter_of_a_subscriber_without_a_stream_is_engaged_elsewhere_only_once_it_stopped(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: the next owner engaged it at once, and the subscriber's ownership held for 17 more seconds."""
    source, assignment = listed("y")
    apply(source, ObjectChanged(labeled("2", "gold")))
    assign(assignment, ALONE)
    gold = Subscription(KEY, "", Filter(selector=parse("tier=gold"), confirms_releases=True))
    source.changes.subscribe(gold)
    other = SubscriberKey("caller", "other")
    if change == "while another subscriber works on":
        source.changes.subscribe(Subscription(other, "", Filter(names=frozenset("x"), confirms_releases=True)))
    source.changes.unsubscribe(gold)
    if change == "in the drain":
        assign(assignment, GONE)
    apply(source, ObjectChanged(labeled("3", "silver")))
    if change == "before the move, and not ready":
        apply(source, ObjectChanged(not_ready("x", version="4", uid="x")))
    assign(assignment, GONE)
    if change == "while another subscriber works on":
        source.changes.release(other, "x")
    assert (source.engagements.engaged, lost(assignment)) == (0, {"x"})
    later = changes.steady_now() + OWNED_S
    monkeypatch.setattr("milo_discoveryd.sharding.assignment.steady_now", lambda: later)
    assert lost(assignment) == set()


async def test_cluster_that_left_a_filter_as_it_stopped_being_ready_and_moves_waits_for_its_subscriber() -> None:
    """Its labels changed while it was kept: it matched no filter as it moved."""
    source, assignment = listed("y", not_ready=NotReadyClusters(60.0))
    apply(source, ObjectChanged(labeled("2", "gold")))
    assign(assignment, ALONE)
    gold = Subscription(KEY, "", Filter(selector=parse("tier=gold"), confirms_releases=True))
    source.changes.subscribe(gold)
    source.changes.unsubscribe(gold)
    fields = labeled("3", "silver").target
    apply(source, ObjectChanged(msgspec.structs.replace(not_ready("x", "3", "x"), fields=fields)))
    assign(assignment, GONE)
    assert (source.engagements.engaged, lost(assignment)) == (0, {"x"})


async def test_lost_ownership_has_ended_for_subscribers_without_a_stream_too() -> None:
    source, assignment = listed("x")
    assign(assignment, ALONE)
    subscription = Subscription(KEY, "", Filter(confirms_releases=True))
    source.changes.subscribe(subscription)
    source.changes.unsubscribe(subscription)
    lose(assignment)
    assign(assignment, GONE)
    assert lost(assignment) == set()


async def test_moved_cluster_that_already_drains_stays_engaged_until_it_is_released() -> None:
    source, assignment = listed("x", drain_timeout_s=600.0)
    assign(assignment, ALONE)
    source.changes.subscribe(Subscription(KEY, "", Filter(confirms_releases=True), is_current=True))
    for _ in source.apply(source.collections[0], [ObjectChanged(not_ready("x", uid="x"))], 1.0):
        pass
    [before] = source.engagements.clusters()
    assign(assignment, GONE)
    assert (lost(assignment), [*source.engagements.clusters()]) == ({"x"}, [before])
    source.changes.release(KEY, "x")
    assert (lost(assignment), source.engagements.engaged) == (set(), 0)


@pytest.mark.parametrize("observation", [not_ready("x", uid="x"), malformed("x", uid="x")], ids=["grace", "malformed"])
async def test_cluster_that_its_next_owner_could_not_engage_stays_until_its_object_is_ready(
    observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("x", "y", not_ready=NotReadyClusters(60.0))
    assign(assignment, ALONE)
    apply(source, ObjectChanged(observation))
    assign(assignment, GIVEN)
    assert (lost(assignment), {cluster.target.name for cluster in source.engagements.clusters()}) == ({"x"}, {"x"})
    await asyncio.sleep(0.01)
    assert lost(assignment) == {"x"}
    apply(source, ObjectChanged(ready("x", version="3", uid="x")))
    assert lost(assignment) == {"x"}
    await eventually(lambda: lost(assignment) == set())
    assert message(source) == "member b of the shard group owns it (view 2)"
    record = source.engagements["x"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.MOVED


async def test_malformed_cluster_that_is_engaged_again_after_a_loss_of_the_ownership_does_not_move() -> None:
    """Found by a simulation."""
    source, assignment = listed("x")
    assign(assignment, ALONE)
    apply(source, ObjectChanged(malformed("x", uid="x")))
    lose(assignment)
    assign(assignment, ALONE)
    assign(assignment, GIVEN)
    assert (lost(assignment), source.engagements.engaged) == ({"x"}, 1)


async def test_cluster_that_moves_within_its_grace_period_ends_with_it() -> None:
    source, assignment = listed("x", not_ready=NotReadyClusters(60.0))
    assign(assignment, ALONE)
    apply(source, ObjectChanged(not_ready("x", uid="x")))
    assign(assignment, GIVEN)
    source.tick(62.0)
    assert lost(assignment) == set()
    record = source.engagements["x"]
    assert record is not None
    assert (record.engaged, record.transitions[-1].reason) == (False, DisengageReason.NOT_READY)


async def test_cluster_whose_reported_deletion_is_not_confirmed_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("x")
    (collection,) = source.collections
    assign(assignment, ALONE)
    apply(source, DeletionReported("x", "x"))
    assign(assignment, GIVEN)
    assert (lost(assignment), source.engagements.engaged) == ({"x"}, 1)
    collection.pending_deletions.discard("x")
    await eventually(lambda: lost(assignment) == set())
    assert source.engagements.engaged == 0


@pytest.mark.parametrize("kind", ["foreign", "behind"])
async def test_cluster_does_not_move_while_the_lists_of_its_source_are_ignored(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: the next owner had taken the wrong server's list as its first, and did not know them."""
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("x", "y", version="9")
    assign(assignment, ALONE)
    ignored = ("z", "9") if kind == "foreign" else ("x", "3")
    apply_list(source, ignored[0], version=ignored[1], now=1.0)
    assert source.collections[0].trust.is_ignoring
    assign(assignment, GIVEN)
    assert (lost(assignment), source.engagements.engaged) == ({"x", "y"}, 2)
    apply_list(source, "x", "y", version="10", now=2.0)
    await eventually(lambda: lost(assignment) == set())
    assert source.engagements.engaged == 0


async def test_cluster_whose_uid_another_object_claims_too_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a reader: a member that had started later listed both claims, so that neither cluster had an owner."""
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("mall", project_uids=ProjectUids.STATED)
    assign(assignment, ALONE)
    apply(source, ObjectChanged(Ready("object-bank", "1", target("bank", "bank"))))
    apply(source, ObjectChanged(Ready("tenant", "2", target("shop", "bank"))))
    assign(assignment, GIVEN)
    assert (lost(assignment), {one.target.name for one in source.engagements.clusters()}) == ({"bank"}, {"bank"})
    apply(source, ObjectChanged(Ready("tenant", "3", target("shop", "uid-of-shop"))))
    await eventually(lambda: lost(assignment) == set())
    assert message(source, "bank") == "member b of the shard group owns it (view 2)"


async def test_member_does_not_lack_a_cluster_that_stays_at_another_one_because_others_claim_its_uid() -> None:
    """Found by a reader: the claim of a tenant kept a member that had joined from being ready."""
    source, assignment = listed("mall", project_uids=ProjectUids.STATED)
    apply(source, ObjectChanged(Ready("object-bank", "1", target("bank", "bank"))))
    view = View(number=2, id="v", members={"a": ViewMember("a.1", 1.0)}, previous={"b": ViewMember("b.1", 1.0)})
    assign(assignment, Ownership(view=view, member="a", term="a.1", pending=(("b", frozenset({"bank"})),)))
    assert assignment.unowned() == 1
    apply(source, ObjectChanged(Ready("tenant", "2", target("shop", "bank"))))
    assert assignment.unowned() == 0
    apply(source, ObjectChanged(Ready("tenant", "3", target("shop", "uid-of-shop"))))
    assert assignment.unowned() == 1


async def test_member_does_not_lack_a_cluster_that_stays_at_another_one_because_it_may_be_deleted() -> None:
    """Its deletion is not confirmed as long as reads of its object hang: the member would not be ready until then."""
    source, assignment = listed("x")
    held = Ownership(view=NEXT.view, member="a", term="a.1", pending=(("b", frozenset({"x"})),))
    assign(assignment, held)
    assert assignment.unowned() == 1
    apply(source, DeletionReported("x", "x"))
    assert source.pending_deletion("x") is not None
    assert assignment.unowned() == 0
    assign(assignment, ALONE)
    assert source.engagements.engaged == 1


async def test_member_that_leaves_hands_over_what_its_successors_cannot_engage_yet() -> None:
    source, assignment = listed("x", not_ready=NotReadyClusters(60.0))
    assign(assignment, ALONE)
    apply(source, ObjectChanged(not_ready("x", uid="x")))
    assign(assignment, GIVEN)
    assign(assignment, GONE)
    assert (lost(assignment), source.engagements.engaged) == (set(), 0)


async def test_moved_clusters_are_unknown_until_the_first_list_that_a_stream_waited_for_is_verified() -> None:
    source, assignment = listed("x")
    waiting = assignment._fleet.waiting
    assign(assignment, ALONE)
    assert lost(assignment) == set()
    stream = object()
    waiting.await_sources(stream, frozenset([source.name]))
    assert assignment.lost() is None
    waiting.await_sources(stream, frozenset())
    assert assignment.lost() is None, "the subscriber may reconnect"
    for _ in source.apply(source.collections[0], [ListStarted(), Listed(ready("x", uid="x")), ListEnded()], 100.0):
        pass
    assert lost(assignment) == set()


async def test_moved_clusters_are_unknown_while_a_subscriber_keeps_those_of_a_source_without_a_list() -> None:
    fleet = fleet_of_one_source()
    assignment, (source,), stream = FleetAssignment(fleet, 30.0), fleet.sources, object()
    assign(assignment, ALONE)
    fleet.waiting.await_sources(stream, frozenset(), frozenset([source.name]))
    assert assignment.lost() is None
    fleet.waiting.await_sources(stream, frozenset())
    assert assignment.lost() is None, "the subscriber may reconnect"
    for _ in source.apply(source.collections[0], [ListStarted(), Listed(ready("x", uid="x")), ListEnded()], 100.0):
        pass
    assert lost(assignment) == set()


@pytest.mark.parametrize(("ownership", "is_known"), [(CONTINUED, True), (GONE, True), (NEWCOMER, False)])
async def test_clusters_of_a_newcomer_are_unknown_until_its_sources_are_synced(
    ownership: Ownership, *, is_known: bool
) -> None:
    fleet = fleet_of_one_source()
    assignment, (source,) = FleetAssignment(fleet, 30.0), fleet.sources
    assign(assignment, ownership)
    assert (assignment.lost() is not None) == is_known
    assert not assignment.is_synced()
    apply_list(source)
    follow(source, ViewState.STREAMING)
    assert lost(assignment) == set()
    assert assignment.is_synced()


@pytest.mark.parametrize(("ownership", "is_known"), [(CONTINUED, True), (GONE, True), (NEWCOMER, False)])
async def test_clusters_of_a_newcomer_are_unknown_while_its_sources_are_those_of_a_state_file(
    ownership: Ownership, *, is_known: bool
) -> None:
    """Found by a reader: a member that had been evicted returned, and engaged projects that were deleted since."""
    fleet = fleet_of_one_source()
    assignment, (source,) = FleetAssignment(fleet, 30.0), fleet.sources
    for _ in source.restore([(ready("x", uid="x"), 0.0)], (), ViewStatus(ViewState.STALE, 0.0, "Restored", "")):
        pass
    assign(assignment, ownership)
    assert assignment.is_synced()
    assert (assignment.lost() is not None) == is_known
    apply_list(source, "x")
    follow(source, ViewState.STREAMING)
    assert lost(assignment) == set()


@pytest.mark.parametrize("state", [ViewState.STALE, ViewState.CATCHING_UP])
@pytest.mark.parametrize(("ownership", "is_known"), [(CONTINUED, True), (GONE, True), (NEWCOMER, False)])
async def test_clusters_of_a_newcomer_are_unknown_while_its_sources_are_not_followed(
    ownership: Ownership, state: ViewState, *, is_known: bool
) -> None:
    """Found by a reader: a member that had been evicted returned while its source was stale, and engaged projects that
    were deleted since."""
    source, assignment = listed("x")
    follow(source, ViewState.STREAMING)
    follow(source, state)
    assign(assignment, ownership)
    assert (assignment.lost() is not None) == is_known
    follow(source, ViewState.STREAMING)
    assert lost(assignment) == set()


async def test_cluster_whose_assignment_fails_delays_no_other_and_stays_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("x", "y", "z")
    assign(assignment, ALONE)
    failing = {"x", "y"}
    reassign = source.engagements.reassign

    def fail(name: str, *arguments: Any) -> list[Event]:
        if name in failing:
            raise RuntimeError("a defect")
        return reassign(name, *arguments)

    monkeypatch.setattr(source.engagements, "reassign", fail)
    with capture_logs() as logs:
        assign(assignment, GONE)
    assert [entry["cluster"] for entry in logs if entry["event"] == "cluster not assigned"] == ["x", "y"]
    assert (lost(assignment), source.engagements.engaged) == ({"x", "y"}, 2)
    failing.remove("x")
    await eventually(lambda: lost(assignment) == {"y"})
    failing.clear()
    await eventually(lambda: lost(assignment) == set())
    assert source.engagements.engaged == 0


async def test_failed_assignment_is_not_repeated_after_the_ownership_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "RETRY_S", 0.0)
    source, assignment = listed("x")
    failed = 0

    def fail(*_: object) -> list[Event]:
        nonlocal failed
        failed += 1
        raise RuntimeError("a defect")

    monkeypatch.setattr(source.engagements, "reassign", fail)
    assign(assignment, ALONE)
    lose(assignment)
    await asyncio.sleep(0.01)
    assert failed == 1


async def test_cluster_that_cannot_be_disengaged_at_the_loss_of_the_ownership_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, assignment = listed("x", "y")
    assign(assignment, ALONE)
    disengage = source.engagements.lose

    def fail(name: str, *arguments: Any) -> list[Event]:
        if name == "x":
            raise RuntimeError("a defect")
        return disengage(name, *arguments)

    monkeypatch.setattr(source.engagements, "lose", fail)
    ended: list[str] = []
    source.changes.add_listener(EventType.DISENGAGED, lambda event: ended.append(event.cluster.target.name))
    lose(assignment)
    assert ended == ["y"]


async def test_cluster_that_becomes_ready_while_the_claim_does_not_hold_is_not_engaged() -> None:
    source, assignment = listed("x")
    holds = True
    for _ in assignment.assign(ALONE, lambda: holds):
        pass
    holds = False
    for _ in source.apply(source.collections[0], [ObjectChanged(ready("y", uid="y"))], 0.0):
        pass
    assert (source.engagements.engaged, message(source, "y")) == (1, LOST)
    holds = True
    for _ in assignment.assign(ALONE, lambda: holds):
        pass
    assert source.engagements.engaged == 2


async def test_clusters_that_are_lost_together_are_logged_together() -> None:
    """Found by an auditor: a line for each of 100,000 took half of the time for which a loss blocks the event loop."""
    names = [f"x{number:02}" for number in range(12)]
    _, assignment = listed(*names)
    assign(assignment, ALONE)
    with capture_logs() as logs:
        lose(assignment)
        lose(assignment)
    (entry,) = logs
    assert (entry["event"], entry["count"], entry["first"]) == ("disengaged all", 12, names[:10])


async def test_unexpected_error_of_one_cluster_that_is_lost_concerns_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source, assignment = listed("x", "y")
    assign(assignment, ALONE)
    disengage = source.engagements.lose

    def broken(name: str, *arguments: Any) -> list[Event]:
        if name == "x":
            raise ZeroDivisionError
        return disengage(name, *arguments)

    monkeypatch.setattr(source.engagements, "lose", broken)
    with capture_logs() as logs:
        lose(assignment)
    assert source.engagements.engaged == 1
    assert [entry["event"] for entry in logs] == ["cluster not disengaged", "disengaged all"]


async def test_lost_ownership_disengages_a_cluster_until_it_is_assigned_again() -> None:
    source, assignment = listed("x")
    assign(assignment, ALONE)
    lose(assignment)
    record = source.engagements["x"]
    assert record is not None
    assert (record.state, record.message, source.synced) == (ObjectState.UNASSIGNED, LOST, True)
    assert record.transitions[-1].reason is DisengageReason.OWNERSHIP_LOST
    assert assignment.unowned() == 1
    assign(assignment, ALONE)
    assert source.engagements.engaged == 1


def slow_decisions(monkeypatch: pytest.MonkeyPatch, cost_s: float) -> None:
    """Let each decision take some time, as in a group with many members."""
    clock = itertools.count()
    monkeypatch.setattr(changes, "steady_now", lambda: cost_s * next(clock))


async def test_assignment_of_clusters_pauses_by_time_and_not_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    source, assignment = listed(*(f"project-{number}" for number in range(60)))
    slow_decisions(monkeypatch, 0.002)
    assert len([*assignment.assign(ALONE, lambda: True)]) >= 60 * 0.002 / changes.STEP_S
    assert source.engagements.engaged == 60


async def test_ownership_ends_at_once_and_its_clusters_are_disengaged_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by an auditor: at the loss of 100,000 clusters, a member was blocked for 2.7 s, or 13 with a fifth of a
    core."""
    source, assignment = listed(*(f"project-{number}" for number in range(60)))
    assign(assignment, ALONE)
    slow_decisions(monkeypatch, 0.002)
    steps, engaged = assignment.lose_ownership(LOST), []
    assert (source.synced, source.engagements.assigned_elsewhere("project-0")) == (False, LOST)
    apply(source, ObjectChanged(ready("late", uid="late")))
    apply(source, ObjectChanged(ready("project-59", uid="another", version="2")))
    assert (message(source, "late"), message(source, "project-59")) == (LOST, LOST)
    for _ in steps:
        engaged.append(source.engagements.engaged)
        assert not source.synced, "new readers wait"
    assert len(engaged) >= 60 * 0.002 / changes.STEP_S
    assert engaged == sorted(engaged, reverse=True)
    assert (source.synced, source.engagements.engaged) == (True, 0)
    assign(assignment, ALONE)
    assert source.engagements.engaged == 61


async def test_record_that_is_dropped_while_clusters_are_disengaged_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, assignment = listed("x", "y")
    assign(assignment, ALONE)
    slow_decisions(monkeypatch, 0.006)
    steps = assignment.lose_ownership(LOST)
    with capture_logs() as logs:
        next(steps)
        del source.engagements._records.by_key["y"]
        assert [*steps] == [None]
    assert [entry["event"] for entry in logs] == ["disengaged all"]


async def test_assignment_goes_on_by_a_newer_ownership(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"project-{number}" for number in range(60)]
    source, assignment = listed(*names)
    slow_decisions(monkeypatch, 0.002)
    released = msgspec.structs.replace(NEXT, unsettled=frozenset())
    held = msgspec.structs.replace(released, pending=(("b", frozenset(names)),))
    assigning = iter(assignment.assign(held, lambda: True))
    next(assigning)
    assert 0 < (waiting := assignment.unowned()) < 60
    assignment.decide_by(released)
    for _ in assigning:
        pass
    assert (source.engagements.engaged, assignment.unowned()) == (60 - waiting, waiting)
    assign(assignment, released)
    assert (source.engagements.engaged, assignment.unowned()) == (60, 0)


async def test_number_of_unowned_clusters_contains_none_that_was_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    _, assignment = listed(*(f"project-{number}" for number in range(60)))
    slow_decisions(monkeypatch, 0.002)
    assigning = iter(assignment.assign(STARTED, lambda: True))
    next(assigning)
    assert 0 < assignment.unowned() <= changes.STEP_S / 0.002
    for _ in assigning:
        pass
    assert assignment.unowned() == 60


class Silent:
    """An issuer that is not asked, since the test completes the revocations."""

    async def revoke_others(self, covers: Callable[[str], bool]) -> Mapping[str, BackendError]:
        raise NotImplementedError


class Revocation(CredentialRevocation):
    def __init__(self) -> None:
        super().__init__([FencedIssuer(Silent())])

    def done(self) -> None:
        fence = self.issuers[0].fence
        due = fence.due
        assert due is not None
        fence.revoked(due)


async def test_clusters_are_engaged_once_the_credentials_of_former_owners_are_revoked() -> None:
    revocation = Revocation()
    source, assignment = listed("x", "y", revocation=revocation)
    assign(assignment, ALONE)
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (False, 0, 2)
    assert message(source) == "this member owns it, and waits until the credentials of former owners are revoked"
    revocation.done()
    assign(assignment, ALONE)
    assert (source.synced, source.engagements.engaged, assignment.unowned()) == (True, 2, 0)


async def test_source_is_synced_while_an_issuer_of_another_source_does_not_answer() -> None:
    """Found by a reader: its clusters were engaged, and no subscriber was told of them."""
    fleet = fleet_of_one_source()
    new_source(Ledger(), fleet=fleet, name="other", removals=RemovalLimits())
    silent, answering = FencedIssuer(Silent(), frozenset({""})), FencedIssuer(Silent(), frozenset({"other"}))
    revocation = CredentialRevocation([silent, answering])
    assignment = FleetAssignment(fleet, 30.0, revocation)
    for source, name in zip(fleet.sources, ("x", "other#y"), strict=True):
        found = Listed(ready(name, uid=name, source=source.name))
        for _ in source.apply(source.collections[0], [ListStarted(), found, ListEnded()], 0.0):
            pass
    assign(assignment, ALONE)
    fence = revocation.issuers[1].fence
    assert fence.due is not None
    fence.revoked(fence.due)
    assign(assignment, ALONE)
    assert [(source.synced, source.engagements.engaged) for source in fleet.sources] == [(False, 0), (True, 1)]


async def test_clusters_stay_engaged_while_credentials_are_revoked_after_a_view_change() -> None:
    revocation = Revocation()
    source, assignment = listed("x", revocation=revocation)
    assign(assignment, ALONE)
    revocation.done()
    assign(assignment, ALONE)
    assign(assignment, CONTINUED)
    assert (source.engagements.engaged, revocation.is_cleared) == (1, False)
    lose(assignment)
    assert source.engagements.engaged == 0
    assign(assignment, CONTINUED)
    assert source.engagements.engaged == 0
    revocation.done()
    assign(assignment, CONTINUED)
    assert source.engagements.engaged == 1
