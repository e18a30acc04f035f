"""Tests of a sharded daemon's ownership of clusters, which subscribers renew."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from math import inf
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery import (
    ClusterNotFound,
    DiscoveryClient,
    DisengageReason,
    EngagedCluster,
    EventType,
    Fleet,
    SyncDiscoveryClient,
    Unavailable,
)
from milo_discovery._ownership import OwnershipDeadline, boottime
from milo_discovery.client_credentials import ClientCredentials
from milo_discovery.v1 import discovery_pb2 as pb
from milo_kube.background_loop import BackgroundLoop, run_in_thread, run_on

from .conftest import AT_ONCE
from .eventually import eventually
from .messages import disengaged, engaged, following, snapshot, waiting
from .scripted_daemon import ScriptedDaemon

LONG = pb.RenewOwnershipResponse(sharded=True, valid_for=Duration(seconds=600))
SHORT = pb.RenewOwnershipResponse(sharded=True, valid_for=Duration(seconds=3))
NONE = pb.RenewOwnershipResponse(sharded=True)


def sharded(batch: pb.WatchClustersResponse) -> pb.WatchClustersResponse:
    batch.sharded = True
    return batch


UNREADABLE = pb.RenewOwnershipResponse(sharded=True, valid_for=Duration(seconds=2**62))


class Connector:
    """A function that opens channels, or raises an error, by default Unavailable, while `is_refused` is set."""

    def __init__(self, connect, error=None) -> None:
        self._connect = connect
        self.error = error or Unavailable("cannot connect", code="UNAVAILABLE")
        self.is_refused = False
        self.refused = 0

    def __call__(self, target: str):
        if self.is_refused:
            self.refused += 1
            raise self.error
        return self._connect(target)


class TestDeadline:
    def test_ownership_without_sharding_never_expires(self):
        assert OwnershipDeadline().until == inf
        assert OwnershipDeadline().is_held(1e9)

    def test_ownership_deadline_counts_from_the_request(self):
        ownership = OwnershipDeadline()
        ownership.renewed(LONG, 100.0)
        assert ownership.until == 700.0
        assert (ownership.is_held(699.0), ownership.is_held(700.0)) == (True, False)

    def test_ownership_response_without_a_duration_keeps_the_deadline(self):
        ownership = OwnershipDeadline()
        ownership.renewed(NONE, 50.0)
        assert not ownership.is_held(50.0)
        ownership.renewed(LONG, 100.0)
        ownership.renewed(NONE, 200.0)
        assert ownership.until == 700.0

    def test_ownership_response_with_a_duration_out_of_range_keeps_the_deadline(self):
        ownership = OwnershipDeadline()
        ownership.renewed(LONG, 100.0)
        ownership.renewed(UNREADABLE, 200.0)
        assert ownership.until == 700.0

    def test_delayed_renewal_response_does_not_shorten_ownership(self):
        ownership = OwnershipDeadline()
        ownership.renewed(LONG, 100.0)
        ownership.renewed(LONG, 90.0)
        assert ownership.until == 700.0

    def test_ownership_renewal_times_out_before_the_ownership_expires(self):
        ownership = OwnershipDeadline()
        ownership.renewed(LONG, 100.0)
        next_renewal_s = partial(ownership.next_renewal_s, was_owner=True)
        assert next_renewal_s(100.0) == ownership.timeout_s(100.0) == 3.0
        assert (next_renewal_s(698.0), ownership.timeout_s(698.0)) == (1.0, 2.0)
        assert (next_renewal_s(699.75), ownership.timeout_s(699.75)) == (0.2, 0.25)
        assert next_renewal_s(699.875) == ownership.timeout_s(699.875) == 0.125

    @pytest.mark.parametrize("now", [700.0, 5000.0])
    def test_expired_ownership_is_handled_at_once_and_renewals_continue(self, now):
        ownership = OwnershipDeadline()
        ownership.renewed(LONG, 100.0)
        assert ownership.next_renewal_s(now, was_owner=True) == 0.0
        assert (ownership.next_renewal_s(now, was_owner=False), ownership.timeout_s(now)) == (1.0, 3.0)

    def test_ownership_clock_advances_while_the_machine_is_suspended(self, monkeypatch):
        monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)  # missing on other systems than Linux
        shown = {time.CLOCK_BOOTTIME: 7200.0, time.CLOCK_MONOTONIC: 60.0, time.CLOCK_REALTIME: 1e9}
        monkeypatch.setattr(time, "clock_gettime", shown.__getitem__)
        assert boottime() == 7200.0

    def test_ownership_clock_is_monotonic_without_clock_boottime(self, monkeypatch):
        monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
        assert boottime() <= boottime()


class TestWatch:
    async def test_clusters_of_a_sharded_daemon_are_engaged_while_it_owns_them(self, client, daemon):
        daemon.ownership = LONG
        async with client.watch() as watch:
            stream = await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            stream.send(following("1", "2", disengaged("a", pb.DISENGAGE_REASON_MOVED)))
            assert (await anext(watch)).reason is DisengageReason.MOVED
        assert daemon.renewals == 1

    @pytest.mark.parametrize("before", [waiting(), snapshot("1")], ids=["incomplete", "empty"])
    async def test_stream_that_is_opened_before_the_daemon_owns_clusters_is_kept(self, client, daemon, caplog, before):
        """Found by a reader: a batch had arrived on a stream that isn't open, as the log said."""
        daemon.ownership = NONE
        first = pb.WatchClustersResponse()
        first.CopyFrom(before)
        async with client.watch() as watch:
            stream = await daemon_stream(daemon, sharded(first))
            await eventually(lambda: watch.connected)
            daemon.ownership = LONG
            stream.send(sharded(snapshot("2", engaged("a"))))
            async with asyncio.timeout(30):
                assert (await anext(watch)).type is EventType.ENGAGED
            assert not stream.ended.is_set()
        assert not caplog.records

    async def test_renewals_name_the_subscriber_while_it_holds_clusters_that_it_releases(self, client, daemon):
        daemon.ownership = SHORT
        options = {"confirm_releases": True, "subscriber": "operator"}
        async with client.watch(**options) as watch:
            stream = await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            await eventually(lambda: daemon.renewed_for == "operator")
            daemon.ownership = NONE  # as without a stream
            stream.end()
            await daemon.stream()  # opened again before the ownership has expired
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST
            await eventually(lambda: daemon.renewed_for == "")
            daemon.ownership = SHORT
            reading = asyncio.create_task(anext(watch))
            stream = await daemon_stream(daemon, sharded(snapshot("2", engaged("a"))))
            assert (await reading).type is EventType.ENGAGED
            await eventually(lambda: daemon.renewed_for == "operator")
            stream.send(following("2", "3", disengaged("a", pb.DISENGAGE_REASON_MOVED)))
            await eventually(lambda: daemon.renewed_for == "")

    async def test_ownership_expires_while_renewals_cannot_connect_and_is_renewed_afterwards(self, daemon):
        daemon.ownership = SHORT
        connect = Connector(grpc.aio.insecure_channel)
        async with DiscoveryClient(daemon.address, backoff=AT_ONCE, connect=connect) as client, client.watch() as watch:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            connect.is_refused = True
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST
            assert (connect.refused > 0, watch.connected, watch.is_synced) == (True, False, False)
            connect.is_refused, daemon.ownership = False, LONG
            reading = asyncio.create_task(anext(watch))
            await daemon_stream(daemon, sharded(snapshot("7", engaged("a"))))
            assert (await reading).type is EventType.ENGAGED

    async def test_unexpected_error_of_a_renewal_does_not_end_the_renewals(self, daemon, caplog):
        daemon.ownership = SHORT
        connect = Connector(grpc.aio.insecure_channel, OSError(24, "Too many open files"))
        async with DiscoveryClient(daemon.address, backoff=AT_ONCE, connect=connect) as client, client.watch() as watch:
            stream = await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            connect.is_refused = True
            await eventually(lambda: connect.refused > 0)
            connect.is_refused = False
            await asyncio.sleep(2 * SHORT.valid_for.seconds)
            stream.send(following("1", "2", disengaged("a", pb.DISENGAGE_REASON_MOVED)))
            assert (await anext(watch)).reason is DisengageReason.MOVED
        assert {record.getMessage() for record in caplog.records} == {"the ownership was not renewed; retrying"}

    async def test_ownership_is_renewed_and_its_loss_reported_if_no_thread_can_be_started(
        self, client, daemon, monkeypatch
    ):
        async def not_started(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("milo_discovery.watch.run_in_thread", not_started)
        daemon.ownership = SHORT
        async with client.watch() as watch:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            await eventually(lambda: daemon.renewals > 2)
            assert watch.is_owner
            daemon.ownership = NONE
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST

    async def test_ownership_expires_if_the_machine_is_suspended_while_a_renewal_connects(self, daemon, monkeypatch):
        asleep = [0.0]
        suspends = False

        def connect(target):
            asleep[0] += 100.0 * suspends
            return grpc.aio.insecure_channel(target)

        for module in ("watch", "_subscription"):
            monkeypatch.setattr(f"milo_discovery.{module}.boottime", lambda: boottime() + asleep[0])
        daemon.ownership = SHORT
        async with DiscoveryClient(daemon.address, backoff=AT_ONCE, connect=connect) as client, client.watch() as watch:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            suspends = True
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST

    async def test_ownership_expires_if_the_machine_is_suspended_before_renewals_begin(
        self, client, daemon, monkeypatch
    ):
        asleep, begins = [0.0], asyncio.Event()

        async def suspended(keep):
            await begins.wait()
            asleep[0] += 100.0
            await run_in_thread(keep)

        for module in ("watch", "_subscription"):
            monkeypatch.setattr(f"milo_discovery.{module}.boottime", lambda: boottime() + asleep[0])
        monkeypatch.setattr("milo_discovery.watch.run_in_thread", suspended)
        daemon.ownership = pb.RenewOwnershipResponse(sharded=True, valid_for=Duration(seconds=90))
        async with client.watch() as watch:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            begins.set()
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST

    async def test_cancelled_close_stops_the_renewals(self, client, daemon):
        daemon.ownership = LONG
        async with client.watch() as watch:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            closing = asyncio.create_task(watch.close())
            await asyncio.sleep(0)
            assert closing.cancel()
            await eventually(
                lambda: "milo-discovery ownership" not in {task.get_name() for task in asyncio.all_tasks()}
            )

    async def test_reconnect_during_the_first_renewal_does_not_end_the_renewals(self, client, daemon):
        async with client.watch() as watch:
            stream = await daemon_stream(daemon, snapshot("1", engaged("a")))
            assert (await anext(watch)).type is EventType.ENGAGED
            stream.send(sharded(following("1", "1")))
            await eventually(lambda: daemon.renewals == 1)
            daemon.ownership = LONG
            reconnecting = asyncio.create_task(watch.reconnect())
            assert (await anext(watch)).reason is DisengageReason.OWNERSHIP_LOST
            await daemon_stream(daemon, sharded(snapshot("2", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED
            await reconnecting

    async def test_token_file_that_is_empty_at_the_first_renewal_does_not_end_the_renewals(self, daemon, tmp_path):
        token, daemon.ownership = tmp_path / "token", LONG
        token.write_text("first")
        credentials = ClientCredentials(token_file=token)
        async with (
            DiscoveryClient(daemon.address, backoff=AT_ONCE, credentials=credentials) as client,
            client.watch() as watch,
        ):
            stream = await daemon.stream()
            token.write_text("")
            stream.send(sharded(snapshot("1", engaged("a"))))
            await eventually(lambda: not watch.is_owner)
            token.write_text("second")
            await daemon_stream(daemon, sharded(snapshot("2", engaged("a"))))
            assert (await anext(watch)).type is EventType.ENGAGED

    async def test_ownership_is_renewed_while_the_event_loop_is_blocked(self):
        background = BackgroundLoop()
        loop = background.start()
        with tempfile.TemporaryDirectory(prefix="milo-") as directory:
            daemon = ScriptedDaemon(Path(directory) / "d.sock")
            daemon.ownership = SHORT
            await run_on(loop, daemon.start)
            async with DiscoveryClient(daemon.address) as client, client.watch() as watch:
                stream = await run_on(loop, partial(daemon_stream, daemon, sharded(snapshot("1", engaged("a")))))
                assert (await anext(watch)).type is EventType.ENGAGED
                time.sleep(3 * SHORT.valid_for.seconds)  # noqa: ASYNC251  (blocks the event loop)
                moved = following("1", "2", disengaged("a", pb.DISENGAGE_REASON_MOVED))
                loop.call_soon_threadsafe(stream.send, moved)
                assert (await anext(watch)).reason is DisengageReason.MOVED
            await run_on(loop, daemon.stop)
        background.stop()

    async def test_fleet_cancels_handlers_when_the_ownership_is_lost(self, client, daemon):
        daemon.ownership = SHORT
        fleet = Fleet(client)
        running: set[str] = set()

        @fleet.on_engage
        async def work(cluster: EngagedCluster) -> None:
            running.add(cluster.name)
            try:
                await asyncio.Event().wait()
            finally:
                running.discard(cluster.name)

        async with fleet:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"), engaged("b"))))
            await eventually(lambda: running == {"a", "b"})
            daemon.ownership = None
            await eventually(lambda: not running)

    async def test_fleet_is_neither_connected_nor_synced_while_the_ownership_is_lost(self, client, daemon):
        """Found by a reader: it was both for as long as the daemon hung, and what is pruned by that was removed."""
        daemon.ownership = SHORT
        fleet = Fleet(client)
        async with fleet:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            await fleet.synced()
            daemon.ownership = None
            await eventually(lambda: not fleet.clusters)
            assert (fleet.discovery.connected, fleet.discovery.synced) == (False, False)
            assert fleet.discovery.problem == "the daemon's ownership of its clusters has expired"
            daemon.ownership = LONG
            await daemon_stream(daemon, sharded(snapshot("2", engaged("a"))))
            await eventually(lambda: fleet.discovery.synced)
            assert (fleet.discovery.connected, [*fleet.clusters]) == (True, ["a"])

    async def test_cluster_is_not_engaged_once_the_ownership_has_expired_before_the_event_loop_notices(
        self, client, daemon
    ):
        daemon.ownership = SHORT
        fleet, began = Fleet(client), asyncio.Event()

        @fleet.on_engage
        async def work(cluster: EngagedCluster) -> None:
            began.set()
            await asyncio.Event().wait()

        async with fleet:
            await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
            await began.wait()
            cluster, until = fleet.get("a"), boottime() + 3 * SHORT.valid_for.seconds
            while cluster.engaged and boottime() < until:
                time.sleep(0.01)  # noqa: ASYNC251  (blocks the event loop)
            assert not cluster.engaged
            assert fleet.get("a") is cluster
            with pytest.raises(ClusterNotFound, match="cluster 'a' is no longer engaged"):
                await cluster.read()


class TestSyncWatch:
    @pytest.fixture
    def sync_client(self, daemon: ScriptedDaemon) -> Iterator[SyncDiscoveryClient]:
        with SyncDiscoveryClient(daemon.address, backoff=AT_ONCE) as client:
            yield client

    async def test_clusters_of_a_sharded_daemon_are_engaged_while_it_owns_them(self, sync_client, daemon):
        daemon.ownership = LONG
        watch = sync_client.watch()
        reading = asyncio.create_task(asyncio.to_thread(next, watch))
        stream = await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
        assert (await reading).type is EventType.ENGAGED
        assert watch.is_owner
        stream.send(following("1", "2", disengaged("a", pb.DISENGAGE_REASON_MOVED)))
        assert (await asyncio.to_thread(next, watch)).reason is DisengageReason.MOVED
        assert daemon.renewals == 1

    async def test_ownership_that_was_lost_is_not_held_again_before_the_last_cluster_is_reported(
        self, sync_client, daemon
    ):
        """Found by a reader: a program that checks it before it writes went on in clusters of other members."""
        daemon.ownership = SHORT
        watch = sync_client.watch()
        reading = asyncio.create_task(asyncio.to_thread(next, watch))
        await daemon_stream(daemon, sharded(snapshot("1", engaged("a"), engaged("b"))))
        assert [(await reading).type, next(watch).type] == [EventType.ENGAGED, EventType.ENGAGED]
        daemon.ownership = NONE
        await eventually(lambda: not watch.clusters)
        daemon.ownership, renewals = LONG, daemon.renewals
        await eventually(lambda: daemon.renewals > renewals + 1)
        for name in ("a", "b"):
            assert not watch.is_owner
            event = await asyncio.to_thread(next, watch)
            assert (event.cluster.name, event.reason) == (name, DisengageReason.OWNERSHIP_LOST)
        assert watch.is_owner

    async def test_close_cancels_a_renewal_without_a_response(self, sync_client, daemon):
        daemon.ownership = None
        watch = sync_client.watch()
        reading = asyncio.create_task(asyncio.to_thread(next, watch, None))
        await daemon_stream(daemon, sharded(snapshot("1", engaged("a"))))
        await eventually(lambda: daemon.renewals == 1)
        await asyncio.to_thread(watch.close)
        assert await reading is None


async def daemon_stream(daemon, *batches):
    stream = await daemon.stream()
    stream.send(*batches)
    return stream
