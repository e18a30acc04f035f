"""Tests of Fleet: one handler task per engaged cluster, canceled at disengagement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest

from milo_discovery import (
    BackoffPolicy,
    ClusterNotFound,
    DiscoveryClient,
    EngagedCluster,
    Fleet,
    HandlerFailed,
    PermissionDenied,
    SourceState,
)
from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.v1 import discovery_pb2 as pb

from .conftest import AT_ONCE
from .eventually import eventually
from .kubeconfigs import text
from .messages import cluster, disengaged, engaged, following, renewed, snapshot, updated, waiting
from .scripted_daemon import Refusal, ScriptedDaemon, Stream


class HandlerLog:
    """A log of handler events, for which tests can wait."""

    def __init__(self) -> None:
        self._entries: asyncio.Queue[str] = asyncio.Queue()

    def note(self, entry: str) -> None:
        self._entries.put_nowait(entry)

    async def read(self, count: int) -> list[str]:
        return [await self._entries.get() for _ in range(count)]

    @property
    def unread(self) -> int:
        return self._entries.qsize()


@pytest.fixture
def handler_log() -> HandlerLog:
    return HandlerLog()


@pytest.fixture
def fleet(client: DiscoveryClient, handler_log: HandlerLog) -> Fleet:
    """A Fleet whose handlers run until they are canceled."""
    fleet = Fleet(client, backoff=AT_ONCE)

    @fleet.on_engage
    async def stay(member: EngagedCluster) -> None:
        handler_log.note(f"start {member.name}")
        try:
            await asyncio.Event().wait()
        finally:
            handler_log.note(f"end {member.name}")

    return fleet


@pytest.fixture
async def begin(daemon: ScriptedDaemon) -> AsyncIterator:
    async def begin(*batches: pb.WatchClustersResponse) -> Stream:
        stream = await daemon.stream()
        stream.send(*batches)
        return stream

    return begin


async def test_handler_runs_from_engaged_to_disengaged(fleet, begin, handler_log):
    async with fleet:
        stream = await begin(snapshot("1", engaged("a"), engaged("b")))
        assert await handler_log.read(2) == ["start a", "start b"]
        stream.send(following("1", "2", disengaged("a")))
        assert await handler_log.read(1) == ["end a"]
    assert await handler_log.read(1) == ["end b"]


async def test_lost_connection_is_logged_once(fleet, daemon, begin, handler_log, caplog):
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        await handler_log.read(1)
        for attempt in range(3):
            stream.end(Refusal(grpc.StatusCode.UNAVAILABLE, f"attempt {attempt}"))
            stream = await daemon.stream()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no stream from the daemon; retrying" in caplog.text
    assert "attempt 0" in caplog.text


async def test_state_of_the_connection_can_be_awaited(fleet, daemon, begin):
    found = fleet.discovery
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        while not found.synced:
            found = await fleet.discovery_changed(since=found)
        assert found.connected
        stream.end(Refusal(grpc.StatusCode.UNAVAILABLE, "down for repair"))
        lost = await fleet.discovery_changed(since=found)
        assert (lost.connected, lost.synced) == (False, True)
        assert "down for repair" in lost.problem
        stream = await daemon.stream()
        stream.send(following("1", "2"))
        assert (await fleet.discovery_changed(since=lost)).connected


async def test_clusters_are_not_followed_before_the_snapshot_of_a_restarted_daemon(fleet, daemon, begin):
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        await fleet.synced()
        stream.end()
        stream = await begin(waiting())
        await eventually(lambda: fleet.discovery.problem == "the daemon has not sent its clusters yet")
        assert (fleet.discovery.connected, fleet.discovery.synced, [*fleet.clusters]) == (False, True, ["a"])
        stream.send(snapshot("2", engaged("a")))
        await eventually(lambda: fleet.discovery.connected)
        assert fleet.discovery.problem == ""


async def test_fleet_that_has_ended_is_neither_connected_nor_synced(fleet, begin):
    async with fleet:
        await begin(snapshot("1", engaged("a")))
        await fleet.synced()
    assert (fleet.discovery.connected, fleet.discovery.synced) == (False, False)
    assert fleet.discovery.problem == "the Fleet has ended"


async def test_fleet_that_is_refused_is_not_connected_while_its_handlers_end(client, begin):
    fleet, may_end = Fleet(client), asyncio.Event()

    @fleet.on_engage
    async def slow_to_end(_: EngagedCluster) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    running = asyncio.create_task(fleet.run())
    stream = await begin(snapshot("1", engaged("a")))
    await fleet.synced()
    stream.end(Refusal(grpc.StatusCode.PERMISSION_DENIED, "no rule permits it"))
    await fleet.failed()
    assert (fleet.discovery.connected, fleet.discovery.synced, [*fleet.clusters]) == (False, True, ["a"])
    assert "no rule permits it" in fleet.discovery.problem
    may_end.set()
    with pytest.raises(PermissionDenied):
        await running
    assert (fleet.discovery.connected, fleet.discovery.synced) == (False, False)
    assert "no rule permits it" in fleet.discovery.problem


async def test_freshness_of_the_sources_is_known_with_the_view_and_changes_with_the_sources(fleet, begin):
    def status(name, state):
        return pb.SourceStatus(name=name, state=state, message="no answer")

    async with fleet:
        first = snapshot("1", engaged("a#x"), source=status("", pb.SourceStatus.STATE_STREAMING))
        first.sources.append(status("a", pb.SourceStatus.STATE_STREAMING))
        first.pending_sources.append("b")
        stream = await begin(first)
        await fleet.synced()
        found = fleet.discovery
        assert [(source.name, source.state) for source in found.freshness.sources] == [("a", SourceState.STREAMING)]
        assert found.freshness.pending_sources == ("b",)

        stale = following("1", "2", source=status("", pb.SourceStatus.STATE_STALE))
        stale.sources.extend(status(name, pb.SourceStatus.STATE_STALE) for name in ("a", "b"))
        stream.send(stale)
        found = await fleet.discovery_changed(since=found)
        assert [source.state for source in found.freshness.sources] == [SourceState.STALE] * 2
        assert found.freshness.pending_sources == ()


async def test_update_does_not_restart_the_handler(fleet, begin, handler_log):
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        await fleet.synced()
        member = fleet.get("a")
        stream.send(following("1", "2", updated(cluster("a", suspended=True))))
        assert (await member.updated()).suspended
        assert fleet.get("a") is member
    assert await handler_log.read(handler_log.unread) == ["start a", "end a"]


async def test_replaced_cluster_gets_a_new_handler_after_the_old_one_ended(client, begin, handler_log):
    fleet = Fleet(client)
    may_end = asyncio.Event()

    @fleet.on_engage
    async def slow_to_end(member: EngagedCluster) -> None:
        handler_log.note(f"start {member.uid}")
        try:
            await asyncio.Event().wait()
        finally:
            handler_log.note(f"ending {member.uid}")
            await may_end.wait()
            handler_log.note(f"end {member.uid}")

    async with fleet:
        first, second, third = (cluster("a", uid=uid) for uid in ("1", "2", "3"))
        stream = await begin(snapshot("1", engaged(first)))
        assert await handler_log.read(1) == ["start 1"]
        stream.send(following("1", "2", disengaged(first, pb.DISENGAGE_REASON_REPLACED), engaged(second)))
        assert await handler_log.read(1) == ["ending 1"]
        assert fleet.get("a").uid == "2", "the new cluster is visible while the old handler ends"
        stream.send(following("2", "3", disengaged(second), engaged(third)))
        await eventually(lambda: fleet.get("a").uid == "3")
        may_end.set()
        assert await handler_log.read(2) == ["end 1", "start 3"]


async def test_handler_that_raises_no_exception_does_not_end_the_others(client, begin, handler_log):
    class Panic(BaseException):
        """What an extension in Rust raises."""

    fleet = Fleet(client, on_error=lambda _, error: handler_log.note(str(error)))

    @fleet.on_engage
    async def handle(cluster: EngagedCluster) -> None:
        if cluster.name == "a":
            raise Panic("of an extension")
        handler_log.note(f"start {cluster.name}")
        await asyncio.Event().wait()

    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        assert await handler_log.read(1) == ["Panic: of an extension"]
        stream.send(following("1", "2", engaged("b")))
        assert await handler_log.read(1) == ["start b"]


async def test_final_error_of_the_watch_is_known_before_the_handlers_have_ended(client, begin):
    fleet, may_end = Fleet(client), asyncio.Event()

    @fleet.on_engage
    async def handle(_cluster: EngagedCluster) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    running = asyncio.create_task(fleet.run())
    stream = await begin(snapshot("1", engaged("a")))
    await fleet.synced()
    stream.end(Refusal(grpc.StatusCode.PERMISSION_DENIED, "no right"))
    assert isinstance(await fleet.failed(), PermissionDenied)
    assert not running.done()
    may_end.set()
    with pytest.raises(PermissionDenied):
        await running


async def test_lost_connection_does_not_cancel_handlers(fleet, begin, handler_log, daemon):
    async with fleet:
        await begin(snapshot("1", engaged("a"), engaged("b")))
        await handler_log.read(2)
        await daemon.stop()
        await daemon.start()
        await begin(snapshot("9", engaged(cluster("a", incarnation="new"))))
        assert await handler_log.read(1) == ["end b"]
        assert fleet.get("a").current.incarnation == "new"


async def test_fleet_get_raises_cluster_not_found_unless_the_cluster_is_engaged(fleet, begin):
    with pytest.raises(ClusterNotFound):
        fleet.get("a")
    async with fleet:
        await begin(snapshot("1", engaged("a")))
        await fleet.synced()
        assert fleet.get("a").current.uid == "uid-of-a"
        assert fleet.clusters.keys() == {"a"}
        with pytest.raises(ClusterNotFound, match="cluster 'b' is not engaged"):
            fleet.get("b")
    with pytest.raises(ClusterNotFound):
        fleet.get("a")


async def test_fleet_without_a_handler_tracks_clusters(client, begin):
    fleet = Fleet(client)
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        await fleet.synced()
        member = fleet.get("a")
        stream.send(following("1", "2", disengaged("a")))
        with pytest.raises(ClusterNotFound, match="no longer engaged"):
            await member.updated()
        assert not member.engaged
        assert repr(member) == "<EngagedCluster 'a' uid='uid-of-a' disengaged>"


async def test_updated_since_returns_at_once_if_the_cluster_has_already_changed(client, begin):
    fleet = Fleet(client)
    async with fleet:
        stream = await begin(snapshot("1", engaged("a")))
        await fleet.synced()
        member = fleet.get("a")
        seen = member.current
        stream.send(following("1", "2", updated(cluster("a", suspended=True))))
        await member.updated()
        assert (await member.updated(since=seen)).suspended, "updated(since=seen) returns the current cluster"


async def test_renewed_kubeconfig_reaches_the_running_handler(client, begin):
    fleet = Fleet(client, include_kubeconfigs=True)
    async with fleet:
        stream = await begin(snapshot("1", engaged("a", token="first")))
        await fleet.synced()
        member = fleet.get("a")
        assert member.kubeconfig is not None
        assert member.kubeconfig.kubeconfig == text(token="first")
        stream.send(following("1", "2", renewed("a", "second")))
        assert (await member.renewed()).kubeconfig == text(token="second")
        stream.send(following("2", "3", updated(cluster("a", suspended=True))))
        await member.updated()
        assert member.kubeconfig.kubeconfig == text(token="second")
        stream.send(following("3", "4", disengaged("a")))
        with pytest.raises(ClusterNotFound):
            await member.renewed()


class TestFailures:
    async def test_failed_handler_is_restarted_and_logged(self, client, begin, handler_log, caplog):
        fleet = Fleet(client, backoff=AT_ONCE)
        attempts = iter([ValueError("first"), ValueError("second"), None])

        @fleet.on_engage
        async def fail(member: EngagedCluster) -> None:
            outcome = next(attempts)
            if outcome:
                raise outcome
            handler_log.note("worked")

        async with fleet:
            await begin(snapshot("1", engaged("a")))
            assert await handler_log.read(1) == ["worked"]
        first, second = (record for record in caplog.records if record.name == "milo_discovery.fleet")
        assert (first.levelno, str(first.exc_info[1])) == (logging.ERROR, "first")
        assert first.getMessage().startswith("handler of cluster a failed; restarting it in ")
        assert second.exc_info is None
        assert second.getMessage() == "handler failures repeated: 1 in 1 clusters"

    async def test_handler_that_fails_by_an_error_of_discovery_is_logged_in_one_line(self, client, begin, caplog):
        fleet = Fleet(client, backoff=AT_ONCE)
        attempts = iter([UnusableKubeconfig("expired"), None])
        ended = asyncio.Event()

        @fleet.on_engage
        async def fail(member: EngagedCluster) -> None:
            if outcome := next(attempts):
                raise outcome
            ended.set()

        async with fleet:
            await begin(snapshot("1", engaged("a")))
            await ended.wait()
        first = next(record for record in caplog.records if record.name == "milo_discovery.fleet")
        assert first.exc_info is None
        assert first.getMessage().endswith(" s: expired")

    async def test_failed_handler_does_not_affect_other_clusters(self, client, begin, handler_log):
        fleet = Fleet(client, backoff=AT_ONCE)

        @fleet.on_engage
        async def fail_for_a(member: EngagedCluster) -> None:
            if member.name == "a":
                raise ValueError("no")
            handler_log.note(f"start {member.name}")
            await asyncio.Event().wait()

        async with fleet:
            stream = await begin(snapshot("1", engaged("a"), engaged("b")))
            stream.send(following("1", "2", engaged("c")))
            assert await handler_log.read(2) == ["start b", "start c"]

    async def test_failed_handler_of_a_disengaged_cluster_is_not_restarted(self, client, begin):
        fleet = Fleet(client, backoff=BackoffPolicy(initial=timedelta(hours=1), maximum=timedelta(hours=1)))

        @fleet.on_engage
        async def fail(member: EngagedCluster) -> None:
            raise ValueError("no")

        async with fleet:
            stream = await begin(snapshot("1", engaged("a")), following("1", "2", disengaged("a")))
            stream.send(following("2", "3", engaged("b")))
            await eventually(lambda: fleet.clusters.keys() == {"b"})
            assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "cluster a"] == []

    async def test_on_error_raise_ends_the_fleet_and_cancels_other_handlers(self, client, begin, handler_log):
        fleet = Fleet(client, on_error="raise")

        @fleet.on_engage
        async def fail_for_b(member: EngagedCluster) -> None:
            if member.name == "b":
                raise ValueError("no")
            try:
                await asyncio.Event().wait()
            finally:
                handler_log.note(f"end {member.name}")

        running = asyncio.create_task(fleet.run())
        await begin(snapshot("1", engaged("a"), engaged("b")))
        with pytest.raises(HandlerFailed, match="the handler of cluster 'b' failed") as raised:
            await running
        assert isinstance(raised.value.__cause__, ValueError)
        assert await handler_log.read(1) == ["end a"]

    async def test_failing_fleet_interrupts_its_with_block(self, client, begin):
        fleet = Fleet(client, on_error="raise")

        @fleet.on_engage
        async def fail(member: EngagedCluster) -> None:
            raise ValueError("no")

        async def block() -> None:
            async with fleet:
                await begin(snapshot("1", engaged("a")))
                await asyncio.Event().wait()

        with pytest.raises(HandlerFailed):
            await block()

    async def test_error_of_the_with_block_is_raised_unwrapped(self, fleet, begin, handler_log):
        async def block() -> None:
            async with fleet:
                await begin(snapshot("1", engaged("a")))
                await handler_log.read(1)
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await block()
        assert await handler_log.read(1) == ["end a"]

    @pytest.mark.parametrize("again", [True, False])
    async def test_on_error_return_value_decides_whether_the_handler_is_restarted(
        self, client, begin, handler_log, again
    ):
        failures: list[tuple[str, str]] = []

        def decide(member: EngagedCluster, error: Exception) -> bool:
            failures.append((member.name, str(error)))
            handler_log.note("on_error")
            return again and len(failures) < 3

        fleet = Fleet(client, on_error=decide, backoff=AT_ONCE)

        @fleet.on_engage
        async def fail(member: EngagedCluster) -> None:
            raise ValueError("no")

        async with fleet:
            await begin(snapshot("1", engaged("a")))
            await handler_log.read(3 if again else 1)
        assert failures == [("a", "no")] * (3 if again else 1)

    async def test_handler_that_awaits_a_cancelled_task_counts_as_failed(self, client, begin, handler_log):
        errors: list[Exception] = []

        def note_error(_: object, error: Exception) -> bool:
            errors.append(error)
            return bool(handler_log.note("on_error"))

        fleet = Fleet(client, on_error=note_error)

        @fleet.on_engage
        async def wait_for_a_cancelled_task(member: EngagedCluster) -> None:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

        async with fleet:
            await begin(snapshot("1", engaged("a")))
            await handler_log.read(1)
        assert str(errors[0]) == "the handler was canceled, but not by its Fleet"
        assert isinstance(errors[0].__cause__, asyncio.CancelledError)

    @pytest.mark.parametrize("at_the_end_of", ["the cluster", "the fleet"])
    async def test_cleanup_error_is_logged_without_a_restart(self, client, begin, handler_log, caplog, at_the_end_of):
        fleet = Fleet(client, backoff=AT_ONCE)

        @fleet.on_engage
        async def stumble(member: EngagedCluster) -> None:
            handler_log.note("start")
            try:
                await asyncio.Event().wait()
            finally:
                handler_log.note("end")
                raise ValueError("stumbled")

        async with fleet:
            stream = await begin(snapshot("1", engaged("a")))
            await handler_log.read(1)
            if at_the_end_of == "the cluster":
                stream.send(following("1", "2", disengaged("a")))
                await handler_log.read(1)
        assert [record.getMessage() for record in caplog.records] == ["handler of cluster a failed during its cleanup"]
        assert await handler_log.read(handler_log.unread) == (["end"] if at_the_end_of == "the fleet" else [])

    async def test_non_retryable_error_ends_the_fleet(self, fleet, daemon, handler_log):
        running = asyncio.create_task(fleet.run())
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a")))
        await handler_log.read(1)
        stream.end(Refusal(grpc.StatusCode.PERMISSION_DENIED, "revoked"))
        with pytest.raises(PermissionDenied, match="revoked"):
            await running
        assert await handler_log.read(1) == ["end a"]
        with pytest.raises(RuntimeError, match="has ended"):
            await fleet.synced()


class TestLifetime:
    async def test_fleet_refuses_a_second_handler_and_a_handler_registered_after_its_start(self, fleet, client, begin):
        with pytest.raises(RuntimeError, match="one handler"):
            fleet.on_engage(lambda member: asyncio.sleep(0))
        bare = Fleet(client)
        async with bare:
            await begin(snapshot("1"))
            await bare.synced()
            with pytest.raises(RuntimeError, match="registered before the Fleet runs"):
                bare.on_engage(lambda member: asyncio.sleep(0))

    async def test_fleet_cannot_be_run_twice(self, fleet, begin):
        async with fleet:
            await begin(snapshot("1"))
            await fleet.synced()
        with pytest.raises(RuntimeError, match="only once"):
            await fleet.run()

    async def test_closed_client_ends_the_fleet(self, fleet, client, begin, handler_log):
        running = asyncio.create_task(fleet.run())
        await begin(snapshot("1", engaged("a")))
        await handler_log.read(1)
        await client.close()
        await running
        assert await handler_log.read(1) == ["end a"]

    @pytest.mark.parametrize("turns", [*range(24), *(2**power for power in range(5, 13))])
    async def test_fleet_cancelled_at_any_point_leaves_no_task(self, fleet, daemon, handler_log, turns):
        running = asyncio.create_task(fleet.run())
        server = asyncio.create_task(_serve_changes(daemon))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        server.cancel()
        await asyncio.wait([server])
        left = {task.get_name() for task in asyncio.all_tasks()}
        assert not {name for name in left if name.startswith(("cluster", "milo-discovery"))}
        notes = await handler_log.read(handler_log.unread)
        assert len([note for note in notes if note.startswith("start")]) == len(
            [note for note in notes if note.startswith("end")]
        )


async def _serve_changes(daemon: ScriptedDaemon) -> None:
    while True:
        stream = await daemon.stream()
        stream.send(
            snapshot("1", engaged("a"), engaged("b")),
            following("1", "2", disengaged("a")),
            following("2", "3", engaged("a"), updated("b")),
        )
        stream.end()


async def test_failure_of_a_handler_that_ends_the_fleet_is_known_before_other_handlers_have_ended(client, begin):
    fleet, may_end = Fleet(client, on_error="raise"), asyncio.Event()

    @fleet.on_engage
    async def handle(cluster: EngagedCluster) -> None:
        if cluster.name == "b":
            raise OSError("the handler failed")
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    running = asyncio.create_task(fleet.run())
    await begin(snapshot("1", engaged("a"), engaged("b")))
    async with asyncio.timeout(10):
        assert isinstance(await fleet.failed(), HandlerFailed)
    assert not running.done()
    may_end.set()
    with pytest.raises(HandlerFailed):
        await running
