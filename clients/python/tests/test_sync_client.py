"""Tests of the blocking client, with gRPC's testing channel and with a server on a Unix socket."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import grpc_testing
import pytest

from milo_discovery import (
    BackoffPolicy,
    CallFailed,
    KubeconfigFormat,
    PermissionDenied,
    SyncDiscoveryClient,
    TimedOut,
)
from milo_discovery.sync import SyncWatch
from milo_discovery.v1 import discovery_pb2 as pb
from milo_kube.background_loop import BackgroundLoop

from .conftest import AT_ONCE
from .eventually import eventually
from .kubeconfigs import text
from .messages import cluster, disengaged, draining, engaged, following, snapshot, waiting
from .scripted_daemon import SILENCE, Refusal, ScriptedDaemon, Stream
from .summaries import summary
from .testing_channel import AioTestingChannel

SERVICE = pb.DESCRIPTOR.services_by_name["DiscoveryService"]


class Wire:
    """The server side of a testing channel, with threads for the blocking client."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.channel = grpc_testing.channel([SERVICE], grpc_testing.strict_fake_time(0))
        channel: Any = AioTestingChannel(self.channel)
        self.client = SyncDiscoveryClient("localhost:1", backoff=AT_ONCE, connect=lambda _: channel)
        self._pool = pool

    def start(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        return self._pool.submit(work, *arguments, **options)

    def answer(self, method: str, response: Any) -> Any:
        """Respond to the next call of the method, and return its request."""
        _, request, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def refuse(self, method: str, code: grpc.StatusCode, message: str, trailers: tuple[Any, ...] = ()) -> None:
        _, _, rpc = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        rpc.terminate(None, trailers, code, message)

    def stream(self, *batches: pb.WatchClustersResponse) -> tuple[pb.WatchClustersRequest, Any]:
        """Wait for the next stream, and send its first batches."""
        _, request, rpc = self.channel.take_unary_stream(SERVICE.methods_by_name["WatchClusters"])
        for batch in batches:
            rpc.send_response(batch)
        return request, rpc


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        wire = Wire(pool)
        yield wire
        wire.client.close()


def take(watch: SyncWatch, count: int) -> list[str]:
    return [summary(next(watch)) for _ in range(count)]


class TestCalls:
    def test_list_reads_all_pages(self, wire):
        listing = wire.start(wire.client.list, organizations=["acme"])
        first = pb.ListClustersResponse(clusters=[cluster("a")], next_page_token="more", revision="7")
        assert wire.answer("ListClusters", first).filter.organizations == ["acme"]
        second = wire.answer("ListClusters", pb.ListClustersResponse(clusters=[cluster("b")], revision="7"))
        assert [listed.name for listed in listing.result()] == ["a", "b"]
        assert second.page_token == "more"

    def test_unary_calls_of_the_sync_client_return_values(self, wire):
        report = wire.start(wire.client.get, "a")
        wire.answer("GetCluster", pb.GetClusterResponse(cluster=cluster("a")))
        assert report.result().cluster.name == "a"
        info = wire.start(wire.client.server_info)
        wire.answer("GetServerInfo", pb.GetServerInfoResponse(mode="single"))
        assert info.result().mode == "single"
        issued = wire.start(
            wire.client.issue_kubeconfig,
            "a",
            ttl=timedelta(minutes=1),
            kubeconfig_format=KubeconfigFormat.EMBEDDED,
            incarnation="i",
        )
        kubeconfig = pb.Kubeconfig(cluster="a", kubeconfig=text(token="t"))
        request = wire.answer("IssueKubeconfig", pb.IssueKubeconfigResponse(kubeconfig=kubeconfig))
        assert issued.result().kubeconfig == text(token="t")
        assert (request.ttl.seconds, request.format, request.incarnation) == (60, pb.KUBECONFIG_FORMAT_EMBEDDED, "i")

    def test_release_contains_the_subscriber_name_of_the_watch(self, wire):
        with wire.client.watch(confirm_releases=True, subscriber="operator-0") as watch:
            reading = wire.start(next, watch)
            request, _ = wire.stream(snapshot("1", engaged(draining("a", incarnation="i"))))
            assert (request.confirm_releases, request.subscriber) == (True, "operator-0")
            releasing = wire.start(watch.release, reading.result().cluster)
            assert wire.answer("ReleaseCluster", pb.ReleaseClusterResponse()) == pb.ReleaseClusterRequest(
                cluster="a", incarnation="i", subscriber="operator-0"
            )
            releasing.result()
        ending = wire.start(wire.client.end_subscription, watch.subscriber)
        assert wire.answer("EndSubscription", pb.EndSubscriptionResponse()).subscriber == "operator-0"
        ending.result()


class TestWatch:
    def test_watch_yields_engagements_and_disengagements(self, wire):
        with wire.client.watch(label_selector="env=prod") as watch:
            reading = wire.start(take, watch, 3)
            request, _ = wire.stream(
                snapshot("1", engaged("a"), synced=False),
                following("1", "2", engaged("b")),
                following("2", "3", disengaged("a")),
            )
            assert reading.result() == ["ENGAGED a", "ENGAGED b", "DISENGAGED a"]
            assert request.filter.label_selector == "env=prod"
            assert watch.clusters.keys() == {"b"}
            assert watch.revision == "3"
            assert watch.connected

    def test_synced_of_a_blocking_watch_does_not_consume_events(self, wire):
        with wire.client.watch() as watch:
            synced = wire.start(watch.synced)
            wire.stream(waiting("", "0"), snapshot("1", engaged("a")))
            synced.result()
            assert watch.is_synced
            assert take(watch, 1) == ["ENGAGED a"]

    def test_non_retryable_error_is_raised(self, wire):
        with wire.client.watch() as watch:
            look = wire.start(next, watch)
            _, rpc = wire.stream()
            rpc.terminate((), grpc.StatusCode.PERMISSION_DENIED, "no")
            with pytest.raises(PermissionDenied, match="no"):
                look.result()

    def test_close_from_another_thread_ends_the_iteration(self, wire):
        with wire.client.watch() as watch:
            loop = wire.start(lambda: [summary(event) for event in watch])
            wire.stream(snapshot("1", engaged("a")))
            again = wire.start(watch.close)
            again.result()
            assert loop.result() in (["ENGAGED a"], []), "events before close may be returned"

    def test_closed_watch_stays_closed(self, wire):
        watch = wire.client.watch()
        watch.close()
        watch.close()
        assert list(watch) == []
        with pytest.raises(RuntimeError, match="closed before it was synced"):
            watch.synced()
        with pytest.raises(RuntimeError, match="closed"):
            watch.reconnect()
        with pytest.raises(RuntimeError, match="closed"):
            watch.__enter__()


class TestConnections:
    """Tests of connections to a server on a Unix socket."""

    @pytest.fixture
    def client(self, daemon: ScriptedDaemon) -> Iterator[SyncDiscoveryClient]:
        with SyncDiscoveryClient(daemon.address, backoff=AT_ONCE) as client:
            yield client

    async def test_pending_events_do_not_block_close(self, client, daemon):
        watch = client.watch()
        synced = asyncio.create_task(asyncio.to_thread(watch.synced))
        stream = await daemon.stream()
        stream.send(snapshot("0"), *(following(str(n), str(n + 1), engaged(f"c{n}")) for n in range(100)))
        await synced
        await asyncio.to_thread(watch.close)
        await stream.ended.wait()
        assert list(watch) == []

    async def test_sync_call_without_a_response_raises_timed_out(self, daemon):
        with SyncDiscoveryClient(daemon.address, timeout=timedelta(milliseconds=20)) as client:
            daemon.answers["ListClusters"] = [SILENCE]
            with pytest.raises(TimedOut):
                await asyncio.to_thread(client.list)

    async def test_closing_the_client_ends_its_watches_even_during_backoff(self, daemon):
        patient = BackoffPolicy(initial=timedelta(hours=1), maximum=timedelta(hours=1))
        with SyncDiscoveryClient(daemon.address, backoff=patient) as client:
            following_one = asyncio.create_task(asyncio.to_thread(list, client.watch()))
            backing_off = asyncio.create_task(asyncio.to_thread(list, client.watch()))
            streams: list[Stream] = [await daemon.stream(), await daemon.stream()]
            streams[1].end(Refusal(grpc.StatusCode.UNAVAILABLE))
            await streams[1].ended.wait()
        await streams[0].ended.wait()
        assert (await following_one, await backing_off) == ([], [])


def interrupt_reader(wire: Wire, by: signal.Signals) -> None:
    """Send a signal to the main thread when it reads a stream."""
    wire.stream()
    signal.pthread_kill(threading.main_thread().ident, by)


class TestLoop:
    """Tests of a blocking client's background event loop: close, signals and threads."""

    def test_closed_client_refuses_calls(self, wire):
        wire.client.close()
        wire.client.close()
        with pytest.raises(CallFailed, match="closed"):
            wire.client.list()

    async def test_close_cancels_a_call_without_a_response(self, daemon):
        daemon.answers["ListClusters"] = [SILENCE]
        client = SyncDiscoveryClient(daemon.address)
        listing = asyncio.create_task(asyncio.to_thread(client.list))
        await eventually(lambda: daemon.requests)
        await asyncio.to_thread(client.close)
        with pytest.raises(CallFailed, match="closed"):
            await listing

    @pytest.mark.parametrize("is_submitted", [False, True], ids=["before", "after"])
    def test_keyboard_interrupt_during_submission_cancels_the_coroutine(self, is_submitted, monkeypatch):
        submit, submitted = asyncio.run_coroutine_threadsafe, []

        def interrupted(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
            if is_submitted:
                submitted.append(submit(coroutine, loop))
            raise KeyboardInterrupt

        background = BackgroundLoop()
        background.start()
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        coroutine = asyncio.sleep(3600)
        with pytest.raises(KeyboardInterrupt):
            background.run(coroutine)
        background.stop()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        assert all(future.cancelled() for future in submitted)

    def test_client_is_usable_after_a_keyboard_interrupt(self, wire):
        wire.start(interrupt_reader, wire, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(wire.client.watch())
        info = wire.start(wire.client.server_info)
        wire.answer("GetServerInfo", pb.GetServerInfoResponse(mode="single"))
        assert info.result().mode == "single"

    def test_signal_handler_can_close_the_client_while_its_thread_waits(self, wire):
        def stop(*_: object) -> None:
            wire.client.close()

        previous = signal.signal(signal.SIGUSR2, stop)
        try:
            wire.start(interrupt_reader, wire, signal.SIGUSR2)
            assert list(wire.client.watch()) == []
        finally:
            signal.signal(signal.SIGUSR2, previous)

    def test_unused_client_has_no_thread(self):
        before = threading.active_count()
        with SyncDiscoveryClient("localhost:1"):
            assert threading.active_count() == before


async def test_blocking_watch_without_a_daemon_warns(tmp_path, caplog):
    def follow() -> None:
        with SyncDiscoveryClient(f"unix://{tmp_path}/nowhere") as client, client.watch() as watch:
            closing = threading.Timer(0.5, watch.close)
            closing.start()
            assert list(watch) == []
            closing.join()

    await asyncio.to_thread(follow)
    assert caplog.messages[0].startswith("no stream from the daemon; retrying: ")
