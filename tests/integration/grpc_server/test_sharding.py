"""Responses of a daemon that is a member of a shard group."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.subscriber import OWNED_S
from milo_discoveryd.fleet.changes import steady_now
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_notifier import ReadingTurns
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.server.calls.revision import _digest
from milo_discoveryd.server.calls.stream import BatchSender
from milo_discoveryd.sharding.assignment import FleetAssignment
from milo_discoveryd.sharding.status import GroupStatus, MemberStatus
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from tests.integration.grpc_server.conftest import Harness, not_ready, ready
from tests.integration.grpc_server.test_draining import refusal
from tests.support.eventually import eventually
from tests.support.sources import new_source
from tests.unit.fleet.fleets import cluster
from tests.unit.fleet.test_fleet_malformed import Ledger
from tests.unit.sharding.test_assignment import ALONE, GONE, assign

NOT_FOUND = grpc.StatusCode.NOT_FOUND

_KNOWN = "_".join(f"{_digest(name)}-1" for name in ("", "eu"))
OF_AN_EARLIER_RUN: dict[str, Any] = {
    "confirm_releases": True,
    "subscriber": "operator",
    "resume_revision": f"{'f' * 16}.7.known{_KNOWN}.{'x' * 22}",
}

STATUS = GroupStatus(
    group="dns",
    member="a",
    view=3,
    is_settled=True,
    members=tuple(
        MemberStatus(name=name, weight=1.0, is_in_view=True, is_alive=True, is_leaving=False, acknowledged=3)
        for name in "ab"
    ),
    problem="late",
)


class Shard(msgspec.Struct):
    valid: float | None = 12.5

    def valid_s(self) -> float | None:
        return self.valid

    def status(self) -> GroupStatus:
        return STATUS


async def test_renew_ownership_without_shard_group_has_no_time_limit(harness: Harness) -> None:
    async with harness.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert answer == pb.RenewOwnershipResponse()
    assert not info.HasField("sharding")


async def test_renew_ownership_returns_how_long_a_shard_members_ownership_is_valid(harness: Harness) -> None:
    harness.service.shard = shard = Shard()
    async with harness.client() as stub:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.valid_for.ToTimedelta().total_seconds()) == (True, 12.5)
        shard.valid = None
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest())
        assert (answer.sharded, answer.HasField("valid_for")) == (True, False)


async def test_ownership_of_a_subscriber_without_a_stream_is_not_renewed(harness: Harness) -> None:
    """It goes on working in clusters, and is not told that one moves to another member."""
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))

    async def is_renewed(name: str) -> bool:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber=name))
        assert answer.sharded
        return answer.HasField("valid_for")

    async with harness.client() as stub:
        assert not await is_renewed("operator"), "a subscriber of the daemon's previous run"
        async with harness.subscriber(confirm_releases=True, subscriber="operator") as mine:
            await mine.until_synced()
            assert await is_renewed("operator")
            assert not await is_renewed("another")
            await stub.EndSubscription(pb.EndSubscriptionRequest(subscriber="operator"))
            assert not await is_renewed("operator")
        async with harness.subscriber(confirm_releases=True, subscriber="operator") as mine:
            await mine.until_synced()
            assert await is_renewed("operator")
        await eventually(lambda: not harness.service.streams)
        assert not await is_renewed("operator")
        assert await is_renewed(""), "a subscriber that holds no clusters"
        invalid = await refusal(stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber="an operator")))
        assert invalid[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_ownership_is_renewed_only_once_a_stream_has_sent_what_ended_while_there_was_none(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"), ready("beta"))
    releases = harness.service._fleet.releases

    async def is_renewed() -> bool:
        answer = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber="operator"))
        return bool(answer.HasField("valid_for"))

    async with harness.client() as stub:
        async with harness.subscriber(confirm_releases=True, subscriber="operator") as mine:
            await mine.until_synced()
        await eventually(lambda: not harness.service.streams)
        (cluster,) = [each for each in harness.service._fleet.clusters() if each.target.name == "alpha"]
        releases.note_unreached(cluster, steady_now())
        sent = hold_batches(monkeypatch)
        async with harness.subscriber(confirm_releases=True, subscriber="operator") as mine:
            await eventually(lambda: harness.service.streams)
            assert not await is_renewed()
            sent.set()
            await mine.until_synced()
            assert await is_renewed()


def hold_batches(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let clients read nothing until the event."""
    sent, send = asyncio.Event(), BatchSender.send

    async def held(self: BatchSender, *arguments: Any, **options: Any) -> None:
        await sent.wait()
        await send(self, *arguments, **options)

    monkeypatch.setattr(BatchSender, "send", held)
    return sent


async def test_ownership_is_renewed_while_the_subscriber_keeps_clusters_of_a_source_that_is_not_listed_yet(
    harness: Harness,
) -> None:
    """Nothing moves until then: what ends delays no other member, and ends no ownership."""
    harness.service.shard = Shard()
    releases = harness.service._fleet.releases
    releases.began_at = steady_now()
    request: dict[str, Any] = {
        "confirm_releases": True,
        "subscriber": "operator",
        "resume_revision": "of an earlier run",
    }
    async with harness.client() as stub, harness.subscriber(**request) as mine:
        await mine.batch()
        releases.note_unreached(cluster("alpha"), steady_now())
        assert not [*releases.unreached(steady_now())]
        assert (await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber="operator"))).HasField("valid_for")
        harness.listed(ready("alpha"))
        await mine.until_synced()
        (subscriber,) = releases._subscribers.values()
        (subscription,) = subscriber.streams
        assert (subscription.is_current, subscriber.keeps_others) == (True, False)


async def test_no_cluster_moves_before_a_stream_that_waited_for_a_source_has_sent_what_ended_meanwhile(
    harness: Harness,
) -> None:
    """Found by a reader: once the sources were listed whose clusters the subscriber may keep, what had ended was free,
    and its ownership was renewed, before it was told: it still waited for another source."""
    harness.service.shard = Shard()
    eu, us = (new_source(Ledger(), fleet=harness.fleet, name=name, removals=RemovalLimits()) for name in ("eu", "us"))
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    async with harness.subscriber(**OF_AN_EARLIER_RUN) as mine:
        await mine.batch()
        harness.seen(not_ready("alpha"))
        listing(eu, ready("eu#beta"))
        await mine.batch()
        assert assignment.lost() is None
        listing(us)
        await mine.until_synced()
        await eventually(lambda: assignment.lost() is not None)


async def test_no_cluster_moves_after_a_stream_broke_that_waited_for_a_source_until_its_subscriber_has_stopped(
    harness: Harness,
) -> None:
    """Found by an audit: with its list, the source's clusters were free, in which the subscriber worked on."""
    harness.service.shard = Shard()
    eu = new_source(Ledger(), fleet=harness.fleet, name="eu", removals=RemovalLimits())
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    async with harness.subscriber(**OF_AN_EARLIER_RUN) as mine:
        await mine.batch()
    await eventually(lambda: not harness.service.streams)
    listing(eu, ready("eu#beta"))
    assert assignment.lost() is None
    async with harness.subscriber(**OF_AN_EARLIER_RUN) as mine:
        await mine.until_synced()
        await eventually(lambda: assignment.lost() is not None)


async def test_no_cluster_of_a_source_that_is_listed_moves_before_a_stream_that_went_on_without_it_has_sent_that(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.service.shard = Shard()
    eu = new_source(Ledger(), fleet=harness.fleet, name="eu", removals=RemovalLimits())
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    async with harness.subscriber(**OF_AN_EARLIER_RUN, accepts_pending_sources=True) as mine:
        await mine.until_synced()
        (subscriber,) = harness.fleet.releases._subscribers.values()
        await eventually(lambda: not subscriber.untold.views)
        sent = hold_batches(monkeypatch)
        listing(eu, ready("eu#beta"))
        await eventually(lambda: subscriber.untold.views)
        assert assignment.lost() is None
        sent.set()
        await mine.until_synced()
        await eventually(lambda: assignment.lost() is not None)


@pytest.mark.parametrize("subscriber", ["operator", ""])
async def test_stream_that_went_on_without_a_source_and_is_not_read_delays_moves_no_longer_than_its_client_may_work(
    subscriber: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by reading: its member acknowledged no view for as long as the stream lasted."""
    harness.service.shard = Shard()
    eu = new_source(Ledger(), fleet=harness.fleet, name="eu", removals=RemovalLimits())
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    request = OF_AN_EARLIER_RUN | {"subscriber": subscriber, "confirm_releases": bool(subscriber)}
    async with harness.client() as stub, harness.subscriber(**request, accepts_pending_sources=True) as mine:
        await mine.until_synced()
        (stream,) = harness.service.streams
        renewed = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber=subscriber))
        assert renewed.HasField("valid_for")
        hold_batches(monkeypatch)
        harness.seen(ready("beta"))
        await eventually(lambda: stream.cursor is not None and not stream.lag)
        assert assignment.lost() is None
        listing(eu, ready("eu#gamma"))
        assert harness.fleet.waiting._kept, "the stream has not taken the list"
        for each in harness.fleet.releases._subscribers.values():
            assert assignment.lost() is None
            each.kept_at = each.owned_at = steady_now() - OWNED_S
        assert assignment.lost() is not None
        renewed = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber=subscriber))
        assert renewed.HasField("valid_for") is not bool(subscriber)


async def test_no_cluster_moves_before_the_first_turn_of_a_stream_whose_subscriber_keeps_clusters_of_an_earlier_run(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by reading: the ownership of its subscriber was renewed, while others engaged what it worked in."""
    harness.service.shard = Shard()
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    has_turn, complete = asyncio.Event(), ReadingTurns.complete

    async def held(self: ReadingTurns, *arguments: Any) -> Any:
        await has_turn.wait()
        return await complete(self, *arguments)

    monkeypatch.setattr(ReadingTurns, "complete", held)
    async with harness.client() as stub, harness.subscriber(**OF_AN_EARLIER_RUN) as mine:
        await eventually(lambda: harness.fleet.releases._subscribers)
        renewed = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber="operator"))
        assert renewed.HasField("valid_for")
        assert assignment.lost() is None
        has_turn.set()
        await mine.until_synced()
        await eventually(lambda: assignment.lost() is not None)


async def test_stream_of_this_run_that_its_client_does_not_read_delays_no_move_of_other_clusters(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by an audit: its member acknowledged no view for `stalled_timeout`, or for as long as a client wished."""
    harness.service.shard = Shard()
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"))
    assign(assignment, ALONE)
    async with harness.subscriber(confirm_releases=True, subscriber="operator") as mine:
        revision = (await mine.until_synced())[-1].revision
    await eventually(lambda: not harness.service.streams)
    harness.seen(ready("beta"))
    hold_batches(monkeypatch)
    async with harness.subscriber(confirm_releases=True, subscriber="operator", resume_revision=revision):
        await eventually(lambda: any(stream.cursor is not None for stream in harness.service.streams))
        assert assignment.lost() is not None
        harness.seen(not_ready("alpha"))
        assert [*harness.fleet.releases.unreached(steady_now())] == ["alpha"]


async def test_no_cluster_moves_of_a_stream_that_broke_beside_one_with_another_filter(harness: Harness) -> None:
    """Found by a reader: they moved at once, and the ownership was renewed through the other stream."""
    harness.service.shard = Shard()
    assignment = FleetAssignment(harness.fleet, 30.0)
    harness.listed(ready("alpha"), ready("beta"))
    assign(assignment, ALONE)
    alpha, beta = (
        harness.subscriber(confirm_releases=True, subscriber="operator", filter=pb.ClusterFilter(names=[name]))
        for name in ("alpha", "beta")
    )
    async with harness.client() as stub, alpha as stays:
        await stays.until_synced()
        async with beta as breaks:
            await breaks.until_synced()
        await eventually(lambda: len(harness.service.streams) == 1)
        renewed = await stub.RenewOwnership(pb.RenewOwnershipRequest(subscriber="operator"))
        assert renewed.HasField("valid_for")
        assign(assignment, GONE)
        assert {*(assignment.lost() or ())} == {"alpha", "beta"}


def listing(source: ClusterSource, *found: Ready) -> None:
    for _ in source.apply(
        source.collections[0], [ListStarted(), *(Listed(each) for each in found), ListEnded()], steady_now()
    ):
        pass


async def test_server_info_describes_the_shard_group(harness: Harness) -> None:
    harness.service.shard = shard = Shard()
    harness.listed(*(ready(f"project-{number}") for number in range(20)))
    async with harness.client() as stub:
        found = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
        shard.valid = None
        lost = (await stub.GetServerInfo(pb.GetServerInfoRequest())).sharding
    assert (found.group, found.member, found.view, found.settled, found.problem) == ("dns", "a", 3, True, "late")
    assert [member.name for member in found.members] == ["a", "b"]
    assert all(member.clusters for member in found.members)
    assert sum(member.clusters for member in found.members) == 20
    assert found.HasField("valid_for")
    assert not lost.HasField("valid_for")


async def test_many_calls_for_server_info_compute_the_owners_once_and_in_short_steps(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 200 members, the owner of a cluster takes 0.2 ms: 100 callers stopped the event loop for seconds."""
    harness.service.shard = Shard()
    harness.listed(*(ready(f"project-{number}") for number in range(500)))
    computed: list[str] = []

    def owner(name: str, weights: Mapping[str, float]) -> str:
        time.sleep(0.0005)
        computed.append(name)
        return min(weights)

    async def watch() -> None:
        while True:
            before = len(computed)
            await asyncio.sleep(0)
            steps.append(len(computed) - before)

    monkeypatch.setattr("milo_discoveryd.sharding.rendezvous.owner", owner)
    steps: list[int] = []
    watching = asyncio.create_task(watch())
    async with harness.client() as stub:
        infos = await asyncio.gather(*(stub.GetServerInfo(pb.GetServerInfoRequest()) for _ in range(20)))
    watching.cancel()
    assert [info.sharding.members[0].clusters for info in infos] == [500] * 20
    assert len(computed) == 500
    assert max(steps) <= 10


async def test_get_cluster_reports_the_shard_member_that_owns_the_cluster(harness: Harness) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    async with harness.client() as stub:
        found = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
    assert found.engagement.message.endswith("member a of the shard group, this daemon, owns it (view 3)")


async def test_clusters_of_a_lost_ownership_are_shown_to_no_new_reader_before_they_are_disengaged(
    harness: Harness,
) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    request = pb.WatchClustersRequest()
    async with harness.client() as stub:
        losing = harness.followed.clusters.lose_ownership("not renewed")
        found = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
        assert found.engagement.message.endswith("; not renewed")
        assert await refusal(stub.ListClusters(pb.ListClustersRequest())) == (grpc.StatusCode.UNAVAILABLE, "NOT_SYNCED")
        issue = stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))
        assert await refusal(issue) == (grpc.StatusCode.UNAVAILABLE, "NOT_SYNCED")
        stream = stub.WatchClusters(request)
        assert not (await stream.read()).synced
        assert [*losing] == [None]
        batch = await stream.read()
        assert (batch.synced, batch.events) == (True, [])
        stream.cancel()
        assert not (await stub.ListClusters(pb.ListClustersRequest())).clusters


async def test_stream_that_resumes_while_an_ownership_is_lost_begins_with_a_snapshot_after_its_heartbeats(
    harness: Harness,
) -> None:
    """Found by a reader: a client takes a stream that resumes after heartbeats without `synced` for a broken one."""
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    async with harness.client() as stub:
        async with harness.subscriber() as subscriber:
            revision = (await subscriber.until_synced())[-1].revision
        losing = harness.followed.clusters.lose_ownership("not renewed")
        stream = stub.WatchClusters(pb.WatchClustersRequest(resume_revision=revision))
        assert not (await stream.read()).synced
        assert [*losing] == [None]
        batch = await stream.read()
        assert (batch.reset, batch.synced, batch.events) == (True, True, [])
        stream.cancel()


async def test_get_cluster_says_what_only_another_member_of_the_shard_group_can_know(harness: Harness) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"), ready("beta"))
    harness.seen(not_ready("beta"))

    async def is_elsewhere(name: str) -> bool:
        return (await stub.GetCluster(pb.GetClusterRequest(name=name))).engagement.assigned_elsewhere

    async with harness.client() as stub:
        assert [await is_elsewhere(name) for name in ("alpha", "beta")] == [False, False]
        assert await refusal(stub.GetCluster(pb.GetClusterRequest(name="gamma"))) == (NOT_FOUND, "NEVER_SEEN")
        harness.followed.engagements.assigned_elsewhere = lambda _: "member b owns it"
        assert [await is_elsewhere(name) for name in ("alpha", "beta")] == [True, True]
        assert await refusal(stub.GetCluster(pb.GetClusterRequest(name="gamma"))) == (NOT_FOUND, "ASSIGNED_ELSEWHERE")


async def test_stream_of_a_shard_member_is_marked_sharded(harness: Harness) -> None:
    harness.service.shard = Shard()
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        batch = await subscriber.batch()
    assert batch.sharded


async def test_stream_without_shard_group_is_not_marked_sharded(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.subscriber() as subscriber:
        assert not (await subscriber.batch()).sharded
