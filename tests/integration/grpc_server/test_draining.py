"""Draining: planned disengagements wait for the subscribers that confirm releases."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from milo_discovery import DiscoveryClient, EngagedCluster, Fleet
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from milo_discoveryd.sharding.status import GroupStatus
from milo_kube.moment import Moment
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.integration.grpc_server.callers import PROD, error_fields, open_rules_harness, rule, rules
from tests.integration.grpc_server.conftest import EPOCH, Harness, Subscriber, a_harness, event_texts, not_ready, ready
from tests.integration.grpc_server.test_rotation import token
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.unit.kubeconfigs.backend import Backend

LONG_S = 600.0
FAILED, NOT_FOUND = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def draining_harness(tmp_path: Path) -> AsyncIterator[Harness]:
    """A fleet with two clusters, and a drain timeout longer than any test."""
    async with a_harness(tmp_path, drain_timeout_s=LONG_S) as made:
        made.listed(ready("alpha"), ready("beta"))
        yield made


def confirming(harness: Harness, name: str = "operator", **request: object) -> Any:
    return harness.subscriber(confirm_releases=True, subscriber=name, **request)


def incarnation(harness: Harness, name: str = "alpha") -> str:
    record = harness.fleet[name]
    assert record is not None
    assert record.latest is not None
    return f"{EPOCH}.{record.latest.incarnation}"


async def release(harness: Harness, name: str = "operator", cluster: str = "alpha", of: str = "") -> None:
    async with harness.client() as stub:
        await stub.ReleaseCluster(
            pb.ReleaseClusterRequest(cluster=cluster, incarnation=of or incarnation(harness, cluster), subscriber=name)
        )


async def end_subscription(harness: Harness, name: str = "operator") -> None:
    async with harness.client() as stub:
        await stub.EndSubscription(pb.EndSubscriptionRequest(subscriber=name))


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return error_fields(raised.value)[:2]


async def gone(harness: Harness) -> None:
    """Wait until the daemon has noticed that all streams ended."""
    await eventually(lambda: not harness.service.streams)


async def quiet(subscriber: Subscriber, harness: Harness) -> None:
    """Check that nothing was sent to the subscriber: the next event is the one that is caused here."""
    harness.seen(ready("probe"))
    assert await subscriber.events() == ["ENGAGED probe"]


# --- what subscribers receive ---


async def test_draining_cluster_is_disengaged_after_its_subscriber_released_it(draining_harness: Harness) -> None:
    harness = draining_harness
    async with confirming(harness) as mine, harness.subscriber() as other:
        await mine.until_synced()
        await other.until_synced()
        harness.seen(not_ready("alpha"))
        batch = await mine.batch()
        assert event_texts([batch]) == ["UPDATED alpha"]
        draining = batch.events[0].cluster.draining
        assert (draining.reason, draining.message) == (pb.DISENGAGE_REASON_NOT_READY, "condition Ready is False")
        assert draining.deadline.seconds > 0
        assert await other.events() == ["DISENGAGED alpha NOT_READY"], (
            "a subscriber that does not confirm was not notified at once"
        )
        await quiet(mine, harness)
        await release(harness)
        assert await mine.events() == ["DISENGAGED alpha NOT_READY"]
        assert event_texts([await other.batch()]) == ["ENGAGED probe"]


async def test_drain_deadline_applies_while_the_source_is_lost(tmp_path: Path) -> None:
    async with a_harness(tmp_path, drain_timeout_s=0.2) as harness, confirming(harness) as mine:
        harness.listed(ready("alpha"))
        await mine.until_synced()
        harness.source(ViewState.STALE, "ConnectFailed")
        harness.seen(not_ready("alpha"))
        assert await mine.events() == ["UPDATED alpha"]
        assert await mine.events() == ["DISENGAGED alpha NOT_READY"]


# --- streams that end and resume ---


async def test_subscriber_that_reconnects_receives_the_drain_again(draining_harness: Harness) -> None:
    harness = draining_harness
    async with confirming(harness) as mine:
        synced = (await mine.until_synced())[-1].revision
        harness.seen(not_ready("alpha"))
        told_at = (await mine.batch()).revision
    await gone(harness)
    for revision in (synced, told_at):
        async with confirming(harness, resume_revision=revision) as again:
            batch = await again.batch()
            assert (event_texts([batch]), batch.reset) == (["UPDATED alpha"], False)
            assert batch.events[0].cluster.HasField("draining")
        await gone(harness)
    async with confirming(harness) as returned:
        (batch,) = await returned.until_synced()
        assert sorted(event_texts([batch])) == ["ENGAGED alpha", "ENGAGED beta"]
        await release(harness)
        assert await returned.events() == ["DISENGAGED alpha NOT_READY"]


async def test_many_drains_are_sent_again_in_batches_of_the_usual_size(draining_harness: Harness) -> None:
    harness = draining_harness
    names = [f"c-{number:03}" for number in range(200)]
    harness.seen(*map(ready, names))
    costly = pb.ClusterFilter(label_selector=",".join(f"a!={number}" for number in range(64)))
    async with confirming(harness, filter=costly) as mine:
        await mine.until_synced()
        harness.seen(*map(not_ready, names))
        told: list[str] = []
        while len(told) < len(names):
            batch = await mine.batch()
            told += event_texts([batch])
    harness.seen(ready("other"))
    harness.fleet.log._most_batch_bytes = 4000
    async with confirming(harness, filter=costly, resume_revision=batch.revision) as again:
        batches = [await again.batch()]
        while "ENGAGED other" not in event_texts(batches[-1:]):
            batches.append(await again.batch())
    assert event_texts(batches) == [*(f"UPDATED {name}" for name in names), "ENGAGED other"]
    assert max(batch.ByteSize() for batch in batches) < 20_000
    assert not any(batch.reset for batch in batches)
    assert {batch.revision for batch in batches[:-1]} == {batch.revision}


async def test_subscriber_that_released_a_cluster_does_not_receive_its_drain_again(draining_harness: Harness) -> None:
    harness = draining_harness
    async with confirming(harness, "other") as other, confirming(harness) as mine:
        for subscriber in (other, mine):
            await subscriber.until_synced()
        harness.seen(not_ready("alpha"))
        told_at = (await mine.batch()).revision
        await release(harness)
        async with confirming(harness, resume_revision=told_at) as again:
            assert event_texts([await again.batch()]) == []


async def test_stream_with_confirm_releases_gets_snapshot_for_revision_of_a_stream_without_it(
    draining_harness: Harness,
) -> None:
    harness = draining_harness
    async with harness.subscriber() as plain:
        revision = (await plain.until_synced())[-1].revision
    async with confirming(harness, resume_revision=revision) as mine:
        assert (await mine.batch()).reset


# --- validation of releases ---


async def test_release_and_end_of_subscription_are_audited_if_they_have_an_effect(tmp_path: Path) -> None:
    async with open_rules_harness(tmp_path, rule("shop", ALL_CLUSTERS), drain_timeout_s=LONG_S) as rules_harness:
        harness = rules_harness.harness
        harness.listed(ready("alpha"))
        of = incarnation(harness)
        asked = pb.ReleaseClusterRequest(cluster="alpha", incarnation=of, subscriber="operator")
        leaving = pb.EndSubscriptionRequest(subscriber="operator")
        async with rules_harness.caller("shop") as caller:
            await caller.stub.EndSubscription(leaving)
            async with caller.watching(confirm_releases=True, subscriber="operator") as mine:
                await mine.until_synced()
                harness.seen(not_ready("alpha"))
                assert await mine.events() == ["UPDATED alpha"]
                for _ in range(2):
                    await caller.stub.ReleaseCluster(asked)
                await caller.stub.EndSubscription(leaving)
    assert [(line["event"], line["rule"], line["caller"]["listener"]) for line in harness.audited] == [
        ("cluster released", "shop", "shop"),
        ("subscription ended", "shop", "shop"),
    ]
    released, ended = harness.audited
    assert (released["cluster"], released["incarnation"], released["subscriber"]) == ("alpha", of, "operator")
    assert ended["subscriber"] == "operator"


# --- rights ---


async def test_caller_cannot_release_a_cluster_for_another_caller(tmp_path: Path) -> None:
    shop, bank = rule("shop", PROD), rule("bank", ALL_CLUSTERS)
    async with open_rules_harness(tmp_path, shop, bank, drain_timeout_s=LONG_S) as rules_harness:
        rules_harness.harness.listed(ready("alpha", env="prod"))
        of = incarnation(rules_harness.harness)
        async with rules_harness.caller("shop") as caller, rules_harness.caller("bank") as other:
            request = {"confirm_releases": True, "subscriber": "same-name"}
            async with caller.watching(**request) as mine:
                await mine.until_synced()
                rules_harness.harness.seen(not_ready("alpha", env="prod"))
                assert await mine.events() == ["UPDATED alpha"]
                asked = pb.ReleaseClusterRequest(cluster="alpha", incarnation=of, subscriber="same-name")
                assert await refusal(other.stub.ReleaseCluster(asked)) == (FAILED, "NO_SUBSCRIPTION")
                await other.stub.EndSubscription(pb.EndSubscriptionRequest(subscriber="same-name"))
                async with other.watching(**request) as theirs:
                    await theirs.until_synced()
                    await other.stub.ReleaseCluster(asked)
                    await quiet_with_labels(mine, rules_harness.harness)
                    await caller.stub.ReleaseCluster(asked)
                    assert await mine.events() == ["DISENGAGED alpha NOT_READY"]


async def quiet_with_labels(subscriber: Subscriber, harness: Harness) -> None:
    harness.seen(ready("probe", env="prod"))
    assert await subscriber.events() == ["ENGAGED probe"]


async def test_release_of_cluster_out_of_scope_is_answered_like_unknown_cluster(tmp_path: Path) -> None:
    shop = rule("shop", PROD)
    async with open_rules_harness(tmp_path, shop, drain_timeout_s=LONG_S) as rules_harness:
        rules_harness.harness.listed(ready("alpha", env="prod"), ready("hidden", env="dev"))
        async with rules_harness.caller("shop") as caller:
            for cluster in ("hidden", "unknown"):
                asked = pb.ReleaseClusterRequest(cluster=cluster, incarnation=f"{EPOCH}.2", subscriber="s")
                assert await refusal(caller.stub.ReleaseCluster(asked)) == (NOT_FOUND, "NEVER_SEEN")
        assert rules_harness.denials() == [("shop", "NEVER_SEEN")] * 2


async def test_revoked_subscriber_does_not_delay_a_drain(tmp_path: Path) -> None:
    async with open_rules_harness(tmp_path, rule("shop", ALL_CLUSTERS), drain_timeout_s=LONG_S) as rules_harness:
        rules_harness.harness.listed(ready("alpha", env="dev"))
        watching = {"confirm_releases": True, "subscriber": "s"}
        async with rules_harness.caller("shop") as caller, caller.watching(**watching) as mine:
            await mine.until_synced()
            rules_harness.harness.seen(not_ready("alpha", env="dev"))
            assert await mine.events() == ["UPDATED alpha"]
            rules_harness.harness.service.change_rights(rules(rule("shop", PROD)))
            assert await mine.events() == ["DISENGAGED alpha REVOKED"]
            await eventually(lambda: rules_harness.harness.followed.engagements.engaged == 0)


async def test_get_cluster_lists_only_pending_releases_that_the_caller_may_see(tmp_path: Path) -> None:
    shop, root = rule("shop", PROD), rule("root", ALL_CLUSTERS)
    async with open_rules_harness(tmp_path, shop, root, drain_timeout_s=LONG_S) as rules_harness:
        rules_harness.harness.listed(ready("alpha", env="prod"))
        async with (
            rules_harness.caller("shop") as caller,
            rules_harness.caller("root") as operator,
            caller.watching(confirm_releases=True, subscriber="a") as one,
        ):
            await one.until_synced()
            async with operator.watching(confirm_releases=True, subscriber="b") as two:
                await two.until_synced()
            await eventually(lambda: len(rules_harness.harness.service.streams) == 1)
            rules_harness.harness.seen(not_ready("alpha", env="prod"))
            assert await one.events() == ["UPDATED alpha"]
            asked = pb.GetClusterRequest(name="alpha")
            seen = await caller.stub.GetCluster(asked)
            assert [(pending.subscriber, pending.connected) for pending in seen.pending_releases] == [("a", True)]
            assert (seen.engagement.engaged, seen.engagement.reason) == (True, pb.Engagement.REASON_DRAINING)
            assert seen.cluster.draining.reason == pb.DISENGAGE_REASON_NOT_READY
            every = await operator.stub.GetCluster(asked)
            assert [(pending.subscriber, pending.connected) for pending in every.pending_releases] == [
                ("a", True),
                ("b", False),
            ]
            info = await operator.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert (info.counts.engaged, info.counts.draining) == (1, 1)


# --- restarts ---


class Group:
    """A fake shard group with the methods that the service calls."""

    def valid_s(self) -> float | None:
        return None

    def status(self) -> GroupStatus:
        return GroupStatus(group="dns", member="a", view=1, is_settled=False, members=())


async def test_server_info_lists_draining_clusters_of_a_shard_group(draining_harness: Harness) -> None:
    harness = draining_harness
    harness.service.shard = Group()
    harness.seen(ready("beta"))
    async with confirming(harness) as mine, harness.client() as stub:
        await mine.until_synced()
        for name in ("beta", "alpha"):
            harness.seen(not_ready(name))
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert list(info.sharding.draining) == ["alpha", "beta"]
        assert info.counts.draining == 2
        await release(harness)
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert list(info.sharding.draining) == ["beta"]


async def test_drain_begins_again_after_a_restart_with_a_state_file(tmp_path: Path) -> None:
    async with a_harness(tmp_path, drain_timeout_s=LONG_S) as harness:
        list(
            harness.followed.restore(
                [(ready("alpha"), 1.0)], (), ViewStatus(ViewState.STALE, time.monotonic(), "Restored")
            )
        )
        of_an_earlier_run = f"{'f' * 16}.7.{'x' * 22}"
        async with confirming(harness, resume_revision=of_an_earlier_run) as mine:
            assert not (await mine.batch()).synced
            harness.found(ListStarted(), Listed(not_ready("alpha")), ListEnded())
            (batch,) = await mine.until_synced()
            assert (event_texts([batch]), batch.reset) == (["ENGAGED alpha"], True)
            assert batch.events[0].cluster.HasField("draining")
            await release(harness)
            assert await mine.events() == ["DISENGAGED alpha NOT_READY"]


# --- credentials ---


async def test_credentials_are_issued_and_renewed_during_a_drain(tmp_path: Path) -> None:
    sources = [IssuerAssignment(Backend(life_s=1.5))]
    async with a_harness(tmp_path, drain_timeout_s=LONG_S, sources=sources) as harness, harness.client() as stub:
        harness.listed(ready("alpha"))
        async with confirming(harness, include_kubeconfigs=True) as mine:
            (engaged,) = (await mine.until_synced())[-1].events
            harness.seen(not_ready("alpha"))
            assert await mine.events() == ["UPDATED alpha"]
            had = {token(engaged)}
            while len(had) < 3:
                for event in (await mine.batch()).events:
                    assert event.type == pb.ClusterEvent.TYPE_KUBECONFIG
                    had.add(token(event))
            asked = pb.IssueKubeconfigRequest(cluster="alpha", incarnation=incarnation(harness))
            assert (await stub.IssueKubeconfig(asked)).kubeconfig.kubeconfig
            await release(harness)
            while await mine.events() != ["DISENGAGED alpha NOT_READY"]:
                pass
            assert await refusal(stub.IssueKubeconfig(asked)) == (NOT_FOUND, "NOT_ENGAGED")


# --- the client library ---


async def test_drain_waits_for_the_engagement_handler_of_a_fleet(draining_harness: Harness) -> None:
    harness = draining_harness
    cleans_up, may_end = asyncio.Event(), asyncio.Event()
    address = f"unix://{harness.address.removeprefix('unix:')}"
    async with DiscoveryClient(address) as client, harness.subscriber() as other:
        fleet = Fleet(client, subscriber="fleet")

        @fleet.on_engage
        async def work(cluster: EngagedCluster) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleans_up.set()
                await may_end.wait()

        async with fleet:
            await fleet.synced()
            await other.until_synced()
            harness.seen(not_ready("alpha"))
            assert await other.events() == ["DISENGAGED alpha NOT_READY"]
            await cleans_up.wait()
            record = harness.fleet["alpha"]
            assert record is not None
            assert record.engaged
            assert [pending.key.name for pending in harness.fleet.releases.awaited("alpha")] == ["fleet"]
            may_end.set()
            await eventually(lambda: not record.engaged)
    await eventually(lambda: not harness.service.streams)
    harness.seen(not_ready("beta"))
    assert harness.followed.engagements.engaged == 0, "the drain waits for a closed Fleet"


async def test_unexpected_error_at_the_end_of_one_drain_does_not_keep_others(tmp_path: Path) -> None:
    async with a_harness(tmp_path, drain_timeout_s=0.05) as harness:
        harness.listed(ready("alpha"), ready("beta"))
        end_drain = harness.followed.engagements.end_drain

        def failing(name: str, now: Moment) -> Any:
            if name == "alpha":
                raise ZeroDivisionError
            return end_drain(name, now)

        harness.followed.engagements.end_drain = failing  # type: ignore[method-assign]
        with capture_logs() as logs:
            async with confirming(harness) as subscriber:
                await subscriber.events()
                harness.seen(not_ready("alpha"))
                harness.seen(not_ready("beta"))
                await eventually(lambda: harness.followed.engagements.engaged == 1)
        # Once for each attempt: how many there are depends on how long the other drain takes.
        assert {entry["cluster"] for entry in logs if entry["event"] == "drain not ended"} == {"alpha"}
