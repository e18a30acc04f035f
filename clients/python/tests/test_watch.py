"""Tests of the async watch: events, reconnects, errors and cancellation."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from milo_discovery import (
    Connected,
    Disconnected,
    DiscoveryClient,
    FieldViolation,
    InvalidRequest,
    PermissionDenied,
    PreconditionFailed,
    StreamBroken,
    Synced,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Watch,
)
from milo_discovery._convert import silence_limit
from milo_discovery.v1 import discovery_pb2 as pb

from .conftest import AT_ONCE
from .eventually import eventually
from .messages import disengaged, engaged, following, snapshot, updated, waiting
from .scripted_daemon import Refusal, ScriptedDaemon, Stream
from .summaries import summary

GOODBYE = Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down", (RetryInfo(retry_delay=Duration(nanos=1_000_000)),))


async def take(watch: Watch, count: int) -> list[str]:
    return [summary(await anext(watch)) for _ in range(count)]


async def begin(daemon: ScriptedDaemon, *batches: pb.WatchClustersResponse) -> Stream:
    """Wait for the next stream of a watch, and send its first batches."""
    stream = await daemon.stream()
    stream.send(*batches)
    return stream


class TestStreams:
    async def test_watch_yields_engaged_events(self, client, daemon):
        async with client.watch() as watch:
            await begin(daemon, snapshot("1", engaged("a"), engaged("b")))
            assert await take(watch, 2) == ["ENGAGED a", "ENGAGED b"]
            assert watch.clusters.keys() == {"a", "b"}
            assert watch.clusters["a"].uid == "uid-of-a"
            assert len(watch.clusters) == 2
            assert watch.revision == "1"
            assert watch.connected

    async def test_watch_works_without_a_with_block(self, client, daemon):
        async def follow() -> list[str]:
            seen = []
            async for event in client.watch():
                seen.append(summary(event))
                if len(seen) == 2:
                    break
            return seen

        async with asyncio.TaskGroup() as group:
            loop = group.create_task(follow())
            await begin(daemon, snapshot("1", engaged("a")), following("1", "2", disengaged("a")))
        assert loop.result() == ["ENGAGED a", "DISENGAGED a"]

    async def test_watch_request_contains_the_options(self, client, daemon):
        options = {
            "label_selector": "env=prod",
            "names": ["a"],
            "organizations": ("acme",),
            "include_kubeconfigs": True,
            "kubeconfig_ttl": timedelta(minutes=5),
            "heartbeat_interval": timedelta(seconds=7),
        }
        async with client.watch(**options):
            stream = await daemon.stream()
            assert stream.request == pb.WatchClustersRequest(
                filter=pb.ClusterFilter(label_selector="env=prod", names=["a"], organizations=["acme"]),
                include_kubeconfigs=True,
                kubeconfig_ttl=Duration(seconds=300),
                heartbeat_interval=Duration(seconds=7),
                accepts_pending_sources=True,
            )

    async def test_watch_rejects_single_string_for_names(self, client):
        with pytest.raises(TypeError, match=r"names must be a collection of strings: use names=\['alpha'\]"):
            client.watch(names="alpha")

    async def test_stale_source_does_not_affect_the_connection_state_of_a_watch(self, client, daemon):
        async with client.watch() as watch:
            assert watch.source is None
            stale = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE)
            await begin(daemon, snapshot("1"), following("1", "2", engaged("a"), source=stale))
            await take(watch, 1)
            assert watch.source is not None
            assert watch.source.state.name == "STALE"
            assert watch.connected

    async def test_watch_feed_yields_notices_between_events(self, client, daemon):
        async with client.watch() as watch:
            feed = watch.feed()
            stream = await begin(daemon, snapshot("1", engaged("a")), following("1", "2", updated("a")))
            expected = ["connected", "ENGAGED a", "synced 1", "UPDATED a"]
            assert [summary(await anext(feed)) for _ in expected] == expected
            stream.end(GOODBYE)
            await begin(daemon, following("2", "3", disengaged("a")))
            expected = ["disconnected by Unavailable", "resumed", "DISENGAGED a"]
            assert [summary(await anext(feed)) for _ in expected] == expected

    async def test_synced_of_a_watch_returns_even_if_no_events_are_read(self, client, daemon):
        async with client.watch() as watch, asyncio.TaskGroup() as group:
            waiter = group.create_task(watch.synced())
            stream = await begin(daemon, waiting("", "0"), snapshot("1", engaged("a"), synced=False))
            assert not watch.is_synced
            stream.send(following("1", "2", engaged("b")))
            await waiter
            assert watch.is_synced
            assert watch.clusters.keys() == {"a", "b"}

    async def test_watch_backpressure_stops_reading_from_the_stream(self, client, daemon):
        async with client.watch() as watch:
            stream = await begin(daemon, snapshot("0"))
            await watch.synced()
            batches = [following(str(n), str(n + 1), engaged(f"c{n}")) for n in range(2000)]
            stream.send(*batches)
            daemon.answers["ListClusters"] = [pb.ListClustersResponse()] * 500
            while len(watch.clusters) < 250:
                await client.list()
            for _ in range(10):
                await client.list()  # gives the watch enough time to read all batches
            assert len(watch.clusters) < 260
            assert (await take(watch, 2000))[-1] == "ENGAGED c1999"


class TestReconnecting:
    async def test_watch_waits_for_a_daemon_that_starts_later(self, daemon):
        await daemon.stop()
        async with DiscoveryClient(daemon.address, backoff=AT_ONCE) as client, client.watch() as watch:
            feed = watch.feed()
            assert summary(await anext(feed)) == "disconnected by Unavailable"
            assert not watch.connected
            await daemon.start()
            await begin(daemon, snapshot("1", engaged("a")))
            assert [summary(await anext(feed)) for _ in range(3)] == ["connected", "ENGAGED a", "synced 1"]

    @pytest.mark.parametrize(
        "ending",
        [
            None,
            GOODBYE,
            Refusal(grpc.StatusCode.ABORTED, "stalled"),
            Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED),
            Refusal(grpc.StatusCode.INTERNAL),
            Refusal(grpc.StatusCode.UNKNOWN),
            Refusal(grpc.StatusCode.CANCELLED),
        ],
        ids=lambda ending: ending.code.name if ending else "OK",
    )
    async def test_watch_reconnects_after_retryable_status(self, client, daemon, ending):
        async with client.watch() as watch:
            stream = await begin(daemon, snapshot("1"))
            stream.end(ending)
            await begin(daemon, following("1", "2", engaged("a")))
            assert await take(watch, 1) == ["ENGAGED a"]

    @pytest.mark.parametrize(
        ("asked", "silent"),
        [
            ({}, timedelta(seconds=90)),
            ({"heartbeat_interval": timedelta(seconds=5)}, timedelta(seconds=15)),
            ({"heartbeat_interval": timedelta(milliseconds=1)}, timedelta(seconds=3)),
            ({"heartbeat_interval": timedelta(days=1)}, timedelta(hours=3)),
        ],
    )
    def test_heartbeat_timeout_is_three_clamped_heartbeat_intervals(self, asked, silent):
        assert silence_limit(asked) == silent

    async def test_reconnect_resumes_from_the_last_revision(self, client, daemon):
        async with client.watch() as watch, asyncio.TaskGroup() as group:
            stream = await begin(daemon, snapshot("1", engaged("a")))
            await take(watch, 1)
            reader = group.create_task(take(watch, 1))
            again = group.create_task(watch.reconnect())
            await stream.ended.wait()
            second = await begin(daemon, following("1", "1"))
            await again
            assert second.request.resume_revision == "1"
            second.send(following("1", "2", engaged("b")))
            assert await reader == ["ENGAGED b"]

    async def test_reconnect_reports_the_loss_of_the_stream_before_the_next_one_is_answered(self, client, daemon):
        async with client.watch() as watch:
            feed = watch.feed()
            await begin(daemon, snapshot("1"))
            assert [type(await anext(feed)) for _ in range(2)] == [Connected, Synced]
            again = asyncio.create_task(watch.reconnect())
            async with asyncio.timeout(5):
                lost = await anext(feed)
            assert isinstance(lost, Disconnected)
            assert not watch.connected
            await begin(daemon, following("1", "1"))
            await again
            assert isinstance(await anext(feed), Connected)


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
            (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
            (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
            (grpc.StatusCode.FAILED_PRECONDITION, PreconditionFailed),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    async def test_non_retryable_error_is_raised(self, client, daemon, code, error):
        async with client.watch() as watch:
            stream = await daemon.stream()
            stream.end(Refusal(code, "no", (ErrorInfo(reason="BECAUSE", domain="discovery.miloapis.com"),)))
            with pytest.raises(error, match=r"^no$") as raised:
                await watch.synced()
            assert (raised.value.code, raised.value.reason) == (code.name, "BECAUSE")
            with pytest.raises(error):
                await anext(watch)

    async def test_invalid_request_names_the_field(self, client, daemon):
        violation = BadRequest.FieldViolation(field="filter.label_selector", description="unexpected ','")
        async with client.watch(label_selector=",") as watch:
            stream = await daemon.stream()
            refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad", (BadRequest(field_violations=[violation]),))
            stream.end(refusal)
            with pytest.raises(InvalidRequest) as raised:
                await anext(watch)
            assert raised.value.violations == (FieldViolation("filter.label_selector", "unexpected ','"),)

    async def test_events_before_an_error_are_yielded(self, client, daemon):
        async with client.watch() as watch:
            stream = await begin(daemon, snapshot("1", engaged("a")))
            stream.end(Refusal(grpc.StatusCode.PERMISSION_DENIED, "revoked"))
            assert await take(watch, 1) == ["ENGAGED a"]
            with pytest.raises(PermissionDenied, match="revoked"):
                await anext(watch)

    async def test_close_ends_iterations_and_the_stream(self, client, daemon):
        async with asyncio.TaskGroup() as group:
            async with client.watch() as watch:
                stream = await begin(daemon, snapshot("1", engaged("a")))
                await take(watch, 1)
                loop = group.create_task(_drain(watch))
                feed = group.create_task(_drain(watch.feed()))
            await stream.ended.wait()
        assert (loop.result(), feed.result()) == ([], [])

    async def test_closed_watch_stays_closed(self, client):
        watch = client.watch()
        await watch.close()
        await watch.close()
        assert await _drain(watch) == []
        with pytest.raises(RuntimeError, match="closed before it was synced"):
            await watch.synced()
        with pytest.raises(RuntimeError, match="closed"):
            await watch.reconnect()
        with pytest.raises(RuntimeError, match="closed"):
            await watch.__aenter__()

    async def test_client_closes_its_watches(self, daemon):
        async with DiscoveryClient(daemon.address) as client:
            watch = client.watch()
            async with asyncio.TaskGroup() as group:
                group.create_task(watch.synced())
                stream = await begin(daemon, snapshot("1"))
        await stream.ended.wait()
        assert await _drain(watch) == []

    async def test_stream_that_ends_with_ok_is_reported_as_disconnected(self, client, daemon):
        async with client.watch() as watch:
            feed = watch.feed()
            stream = await daemon.stream()
            stream.end()
            lost = await anext(feed)
            assert isinstance(lost, Disconnected)
            assert isinstance(lost.error, StreamBroken)
            assert str(lost.error) == "the daemon ended the stream"


class TestCancellation:
    """Tests of canceled waits, and of close at any point."""

    async def test_cancelled_iteration_leaves_the_stream_open(self, client, daemon):
        async with client.watch() as watch:
            stream = await begin(daemon, snapshot("1"))
            await watch.synced()
            for _ in range(3):
                look = asyncio.create_task(anext(watch))
                await asyncio.wait([look], timeout=0)
                look.cancel()
                await asyncio.wait([look])
                assert look.cancelled()
            stream.send(following("1", "2", engaged("a")))
            assert await take(watch, 1) == ["ENGAGED a"]

    @pytest.mark.parametrize("turns", [*range(20), *(2**power for power in range(5, 13))])
    async def test_close_at_any_point_leaves_no_task(self, daemon, turns):
        async with DiscoveryClient(daemon.address, backoff=AT_ONCE) as client:
            watch = client.watch()
            look = asyncio.create_task(_drain(watch))
            server = asyncio.create_task(_serve(daemon))
            for _ in range(turns):
                await asyncio.sleep(0)
            await watch.close()
            await look
            server.cancel()
            await asyncio.wait([server])
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "milo-discovery watch"]

    async def test_close_interrupts_a_backoff(self, daemon):
        await daemon.stop()
        async with DiscoveryClient(daemon.address) as client, client.watch() as watch:
            lost = await anext(watch.feed())
            assert isinstance(lost, Disconnected)
            assert isinstance(lost.error, Unavailable)


async def _serve(daemon: ScriptedDaemon) -> None:
    """Serve streams that each end after a few batches."""
    revision = 0
    while True:
        stream = await begin(daemon, snapshot("0"))
        stream.send(*(following(str(a), str(b), engaged(f"c{b}")) for a, b in pairwise(range(revision, revision + 3))))
        stream.end(GOODBYE)


async def _drain(events) -> list[str]:
    return [summary(event) async for event in events]


@pytest.mark.parametrize("place", ["cluster", "kubeconfig"])
async def test_unexpected_error_about_one_cluster_does_not_end_the_watch(client, daemon, monkeypatch, caplog, place):
    failures = [1]

    def failing(*_: object) -> None:
        failures.clear()
        monkeypatch.undo()
        raise ZeroDivisionError

    async with client.watch() as watch:
        stream = await begin(daemon, snapshot("1", engaged("a")))
        assert await take(watch, 1) == ["ENGAGED a"]
        if place == "cluster":
            monkeypatch.setattr("milo_discovery._convert.cluster", failing)
            stream.send(following("1", "2", engaged("b")))
            stream = await begin(daemon, following("1", "2", engaged("b")))
            assert stream.request.resume_revision == "1"
        else:
            monkeypatch.setattr("milo_discovery._subscription.read_access", failing)
            stream.send(following("1", "2", engaged("b", token="t")))
        assert await take(watch, 1) == ["ENGAGED b"]
    assert not failures
    assert "ZeroDivisionError" in caplog.text


class TestLog:
    async def test_watch_without_a_daemon_warns_once_and_logs_the_connection(self, client, daemon, caplog):
        await daemon.stop()
        with caplog.at_level("INFO"):
            async with client.watch() as watch:
                following_watch = asyncio.create_task(take(watch, 1))
                await eventually(lambda: caplog.records)
                await daemon.start()
                await begin(daemon, snapshot("1", engaged("a")))
                assert await following_watch == ["ENGAGED a"]
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert caplog.messages[0].startswith("no stream from the daemon; retrying: ")
        assert caplog.messages[1] == "connected to the daemon"

    async def test_waiting_for_the_first_view_without_a_daemon_warns(self, client, daemon, caplog):
        await daemon.stop()
        async with client.watch() as watch:
            waiting_for = asyncio.create_task(watch.synced())
            await eventually(lambda: caplog.messages)
            waiting_for.cancel()
        assert caplog.messages[0].startswith("no stream from the daemon; retrying: ")

    async def test_user_of_the_feed_is_told_of_the_loss_and_it_is_not_logged(self, client, daemon, caplog):
        await daemon.stop()
        async with client.watch() as watch:
            assert isinstance(await anext(watch.feed()), Disconnected)
        assert caplog.messages == []
