"""Tests of a Fleet's draining clusters: they are released only after their handlers have ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from milo_discovery import BackoffPolicy, Cluster, DiscoveryClient, EngagedCluster, Fleet, Watch
from milo_discovery.v1 import discovery_pb2 as pb

from .conftest import AT_ONCE
from .eventually import eventually
from .messages import cluster, disengaged, draining, engaged, following, renewed, snapshot, updated
from .scripted_daemon import Refusal, ScriptedDaemon, Stream

OTHER_INCARNATION = Refusal(
    grpc.StatusCode.FAILED_PRECONDITION, details=(ErrorInfo(reason="OTHER_INCARNATION", domain="discovery"),)
)


class Work:
    """Handlers whose cleanup ends when the test sets `may_end`."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ending: list[str] = []
        self.ended: list[str] = []
        self.interrupted = 0
        self.may_end = asyncio.Event()

    async def handle(self, member: EngagedCluster) -> None:
        self.started.append(member.name)
        try:
            await asyncio.Event().wait()
        finally:
            self.ending.append(member.name)
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.interrupted += 1
                raise
            self.ended.append(member.name)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def fleet(client: DiscoveryClient, work: Work) -> Fleet:
    fleet = Fleet(client, backoff=AT_ONCE)
    fleet.on_engage(work.handle)
    return fleet


@pytest.fixture
async def stream(daemon: ScriptedDaemon, fleet: Fleet) -> AsyncIterator[Stream]:
    """The server side of a running Fleet's stream."""
    async with fleet:
        yield await daemon.stream()


def release_of(name: str, stream: Stream, incarnation: str = "") -> pb.ReleaseClusterRequest:
    return pb.ReleaseClusterRequest(cluster=name, incarnation=incarnation, subscriber=stream.request.subscriber)


async def test_cluster_is_released_after_its_handler_ended(fleet, stream, daemon, work):
    assert stream.request.confirm_releases
    stream.send(snapshot("1", engaged(cluster("a", incarnation="i"))))
    await eventually(lambda: work.started)
    stream.send(following("1", "2", updated(draining("a", incarnation="i"))))
    await eventually(lambda: work.ending)
    assert fleet.get("a").engaged, "the cluster stays engaged until the daemon disengages it"
    assert fleet.get("a").draining is not None
    assert daemon.releases.empty()
    work.may_end.set()
    assert await daemon.releases.get() == release_of("a", stream, "i")
    assert work.ended == ["a"]
    stream.send(following("2", "3", disengaged(draining("a", incarnation="i"))))
    await eventually(lambda: not fleet.clusters)


async def test_cluster_whose_handler_returned_is_released_at_once(client, daemon):
    fleet = Fleet(client)

    @fleet.on_engage
    async def nothing_to_do(member: EngagedCluster) -> None:
        pass

    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
        assert await daemon.releases.get() == release_of("a", stream)


async def test_cluster_that_is_engaged_while_draining_is_released_without_a_handler(stream, daemon, work):
    stream.send(snapshot("1", engaged(draining("a")), engaged("b")))
    assert await daemon.releases.get() == release_of("a", stream)
    assert work.started == ["b"]
    work.may_end.set()


async def test_disengagement_does_not_interrupt_the_cleanup_of_a_handler(fleet, stream, daemon, work):
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
    await eventually(lambda: work.ending)
    stream.send(following("2", "3", updated(draining("a", suspended=True)), disengaged(draining("a"))))
    await eventually(lambda: not fleet.clusters)
    work.may_end.set()
    await eventually(lambda: work.ended)
    assert work.interrupted == 0
    assert daemon.releases.empty(), "no release is sent after the disengagement"


async def test_cluster_engaged_again_after_its_drain_gets_a_new_handler(stream, daemon, work):
    work.may_end.set()
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
    await daemon.releases.get()
    stream.send(following("2", "3", disengaged(draining("a")), engaged("a")))
    await eventually(lambda: work.started == ["a", "a"])


# --- failed releases and restarts of the daemon ---


async def test_failed_release_is_retried(stream, daemon, work):
    work.may_end.set()
    daemon.answers["ReleaseCluster"] = [Refusal(grpc.StatusCode.UNAVAILABLE), Refusal(grpc.StatusCode.INTERNAL)]
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
    assert [await daemon.releases.get() for _ in range(3)] == [release_of("a", stream)] * 3


async def test_refused_release_is_sent_again_for_the_next_incarnation(stream, daemon, work):
    work.may_end.set()
    daemon.answers["ReleaseCluster"] = [OTHER_INCARNATION]
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a", incarnation="old"))))
    assert await daemon.releases.get() == release_of("a", stream, "old")
    stream.send(snapshot("8", engaged(draining("a", incarnation="new"))))
    assert await daemon.releases.get() == release_of("a", stream, "new")


async def test_renewed_kubeconfig_does_not_release_a_draining_cluster_again(fleet, stream, daemon, work):
    work.may_end.set()
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
    await daemon.releases.get()
    # While a release is in flight, no second one is sent.
    await eventually(lambda: "release a" not in {task.get_name() for task in asyncio.all_tasks()})
    member = fleet.get("a")
    stream.send(following("2", "3", renewed(draining("a"), "token")))
    await member.renewed()
    stream.send(following("3", "4", updated(draining("a"))))
    await daemon.releases.get()
    assert daemon.releases.empty()


async def test_handler_is_restarted_for_cluster_that_no_longer_drains_after_a_reset(stream, daemon, work):
    work.may_end.set()
    stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
    await daemon.releases.get()
    stream.send(snapshot("9", engaged("a")))
    await eventually(lambda: work.started == ["a", "a"])


# --- on_drain="wait" ---


async def test_option_on_drain_wait_does_not_cancel_the_handler_during_a_drain(client, daemon):
    fleet, finished = Fleet(client, on_drain="wait"), asyncio.Event()
    seen = []

    @fleet.on_engage
    async def finish(member: EngagedCluster) -> None:
        await member.drained()
        seen.append(member.draining)
        await finished.wait()

    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
        await eventually(lambda: seen)
        assert seen[0].reason.name == "NOT_READY"
        assert daemon.releases.empty()
        finished.set()
        assert await daemon.releases.get() == release_of("a", stream)


async def test_option_on_drain_wait_cancels_the_handler_at_disengagement(client, daemon, work):
    fleet = Fleet(client, on_drain="wait")
    fleet.on_engage(work.handle)
    work.may_end.set()
    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
        await eventually(lambda: fleet.clusters and fleet.get("a").draining)
        assert not work.ending
        stream.send(following("2", "3", disengaged(draining("a"))))
        await eventually(lambda: work.ended)


async def test_handler_that_fails_during_a_drain_is_not_restarted(client, daemon):
    fleet, calls = Fleet(client, on_drain="wait", backoff=AT_ONCE), []

    @fleet.on_engage
    async def fail(member: EngagedCluster) -> None:
        calls.append(member.name)
        await member.drained()
        raise RuntimeError("at the end")

    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a")), following("1", "2", updated(draining("a"))))
        assert await daemon.releases.get() == release_of("a", stream)
    assert calls == ["a"]


# --- subscriptions ---


async def test_cluster_whose_handler_waits_to_be_restarted_is_released_at_once(client, daemon):
    never = BackoffPolicy(initial=timedelta(hours=1), maximum=timedelta(hours=1))
    fleet, failed = Fleet(client, on_drain="wait", backoff=never), asyncio.Event()

    @fleet.on_engage
    async def handle(_member: EngagedCluster) -> None:
        failed.set()
        raise OSError("the handler failed")

    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged(cluster("a", incarnation="i"))))
        await failed.wait()
        stream.send(following("1", "2", updated(draining("a", incarnation="i"))))
        async with asyncio.timeout(10):
            assert await daemon.releases.get() == release_of("a", stream, "i")


async def test_fleet_ends_its_subscription_after_its_handlers_have_ended(client, daemon, work):
    fleet = Fleet(client, subscriber="operator-0")
    fleet.on_engage(work.handle)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fleet.run())
        stream = await daemon.stream()
        assert stream.request.subscriber == "operator-0"
        stream.send(snapshot("1", engaged("a")))
        await eventually(lambda: work.started)
        running.cancel()
        await eventually(lambda: work.ending)
        assert daemon.ended_subscriptions == []
        work.may_end.set()
    assert daemon.ended_subscriptions == ["operator-0"]


async def test_fleets_have_different_subscriber_names_by_default(client, daemon):
    names = set()
    for _ in range(2):
        fleet = Fleet(client)
        fleet.on_engage(Work().handle)
        async with fleet:
            names.add((await daemon.stream()).request.subscriber)
    assert len(names) == 2


@pytest.mark.parametrize("handled", [True, False])
async def test_fleet_without_handler_or_with_confirm_releases_false_has_no_subscriber_name(
    client, daemon, work, handled
):
    fleet = Fleet(client, confirm_releases=False) if handled else Fleet(client)
    if handled:
        fleet.on_engage(work.handle)
    async with fleet:
        request = (await daemon.stream()).request
        assert (request.confirm_releases, request.subscriber) == (False, "")
    assert daemon.ended_subscriptions == []


async def test_release_is_retried_after_an_unexpected_error_and_other_clusters_continue(
    fleet, work, daemon, monkeypatch, caplog
):
    release, failures = Watch.release, ["a"]

    async def failing(self: Watch, of: Cluster) -> None:
        if of.name in failures:
            failures.clear()
            raise ZeroDivisionError
        await release(self, of)

    monkeypatch.setattr(Watch, "release", failing)
    work.may_end.set()
    async with fleet:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a"), engaged("b")))
        await eventually(lambda: sorted(work.started) == ["a", "b"])
        stream.send(following("1", "2", updated(draining("a"))))
        assert (await daemon.releases.get()).cluster == "a"
        assert work.ended == ["a"]
    assert "release of cluster a failed; retrying" in caplog.text
    assert "ZeroDivisionError" in caplog.text
