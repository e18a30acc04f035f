"""Tests of the async client's unary calls: requests, results and errors."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from milo_discovery import (
    CallFailed,
    Cluster,
    ClusterNotFound,
    ClusterReport,
    Connectivity,
    ConnectivityState,
    DiscoveryClient,
    Engagement,
    EngagementReason,
    EventType,
    InvalidAddress,
    Kubeconfig,
    KubeconfigFormat,
    SourceState,
    StatusError,
    TimedOut,
    Transition,
    Unavailable,
)
from milo_discovery.v1 import discovery_pb2 as pb

from .eventually import eventually
from .kubeconfigs import text
from .messages import cluster
from .scripted_daemon import SILENCE, Refusal

MOMENT = datetime(2026, 3, 1, 12, 30, 15, 250000, tzinfo=UTC)
STAMP = Timestamp(seconds=int(MOMENT.timestamp()), nanos=250_000_000)
CONTENT = text(token="s3cret")


async def test_list_reads_all_pages(client, daemon):
    source = pb.SourceStatus(state=pb.SourceStatus.STATE_STREAMING)
    daemon.answers["ListClusters"] = [
        pb.ListClustersResponse(clusters=[cluster("a")], next_page_token="more", revision="7", total_size=2),
        pb.ListClustersResponse(clusters=[cluster("b")], revision="7", total_size=2, source=source),
    ]
    listing = await client.list(label_selector="env=prod", organizations=["acme"])
    assert [listed.name for listed in listing] == ["a", "b"]
    assert (len(listing), listing.total_size, listing.revision) == (2, 2, "7")
    assert listing.source.state is SourceState.STREAMING
    wanted = pb.ClusterFilter(label_selector="env=prod", organizations=["acme"])
    assert daemon.requests == [
        pb.ListClustersRequest(filter=wanted),
        pb.ListClustersRequest(filter=wanted, page_token="more"),
    ]


async def test_listed_cluster_is_converted(client, daemon):
    sent = pb.Cluster(
        name="a",
        uid="u",
        endpoint="https://a",
        organization="acme",
        labels={"env": "prod"},
        annotations={"note": "x"},
        engaged_at=STAMP,
        deletion_requested_at=STAMP,
        deletion_message="waiting",
        suspended=True,
        connectivity=pb.Connectivity(state=pb.Connectivity.STATE_REACHABLE, since=STAMP, message="ok"),
        source_resource_version="12",
        incarnation="i",
    )
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[sent])]
    (received,) = await client.list()
    assert received == Cluster(
        name="a",
        uid="u",
        endpoint="https://a",
        organization="acme",
        labels={"env": "prod"},
        annotations={"note": "x"},
        engaged_at=MOMENT,
        deletion_requested_at=MOMENT,
        deletion_message="waiting",
        suspended=True,
        connectivity=Connectivity(state=ConnectivityState.REACHABLE, since=MOMENT, message="ok"),
        source_resource_version="12",
        incarnation="i",
    )
    assert hash(received) == hash(received)


async def test_get_returns_the_report_of_a_cluster_that_is_not_engaged(client, daemon):
    daemon.answers["GetCluster"] = [
        pb.GetClusterResponse(
            engagement=pb.Engagement(reason=pb.Engagement.REASON_NOT_READY, message="not yet", since=STAMP),
            transitions=[pb.Transition(type=pb.ClusterEvent.TYPE_ENGAGED, at=STAMP, incarnation="i")],
        )
    ]
    assert await client.get("a") == ClusterReport(
        cluster=None,
        engagement=Engagement(engaged=False, reason=EngagementReason.NOT_READY, message="not yet", since=MOMENT),
        transitions=(Transition(type=EventType.ENGAGED, at=MOMENT, incarnation="i"),),
    )
    assert daemon.requests == [pb.GetClusterRequest(name="a")]


async def test_get_of_an_unknown_name_raises_cluster_not_found(client, daemon):
    daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.NOT_FOUND, "no such cluster")]
    with pytest.raises(ClusterNotFound, match="no such cluster"):
        await client.get("a")


async def test_server_info_is_converted(client, daemon):
    daemon.answers["GetServerInfo"] = [
        pb.GetServerInfoResponse(
            version="1.2",
            mode="project",
            synced=True,
            started_at=STAMP,
            counts=pb.FleetCounts(engaged=3, subscribers=1),
            credential_issuers=[pb.CredentialIssuer(name="main", type="exec", healthy=True, expires_at=STAMP)],
            limits=pb.Limits(default_heartbeat_interval=Duration(seconds=30), max_page_size=5000),
        )
    ]
    info = await client.server_info()
    assert (info.version, info.mode, info.synced, info.started_at) == ("1.2", "project", True, MOMENT)
    assert (info.counts.engaged, info.counts.subscribers) == (3, 1)
    assert info.credential_issuers[0].expires_at == MOMENT
    assert info.limits.default_heartbeat_interval == timedelta(seconds=30)
    assert info.limits.max_kubeconfig_ttl is None


async def test_content_of_an_issued_kubeconfig_is_omitted_from_repr(client, daemon):
    daemon.answers["IssueKubeconfig"] = [
        pb.IssueKubeconfigResponse(
            kubeconfig=pb.Kubeconfig(cluster="a", kubeconfig=CONTENT, expires_at=STAMP, issued_at=STAMP)
        )
    ]
    issued = await client.issue_kubeconfig(
        "a", ttl=timedelta(minutes=10), kubeconfig_format=KubeconfigFormat.EMBEDDED, incarnation="i"
    )
    assert issued == Kubeconfig(cluster="a", kubeconfig=CONTENT, expires_at=MOMENT, issued_at=MOMENT)
    assert "s3cret" not in repr(issued)
    assert daemon.requests == [
        pb.IssueKubeconfigRequest(
            cluster="a", ttl=Duration(seconds=600), format=pb.KUBECONFIG_FORMAT_EMBEDDED, incarnation="i"
        )
    ]


async def test_unavailable_error_has_retry_after(client, daemon):
    retry = RetryInfo(retry_delay=Duration(seconds=2))
    reason = ErrorInfo(reason="NOT_SYNCED", domain="discovery.miloapis.com")
    daemon.answers["ListClusters"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "not yet", (reason, retry))]
    with pytest.raises(Unavailable) as raised:
        await client.list()
    assert (raised.value.reason, raised.value.retry_after) == ("NOT_SYNCED", timedelta(seconds=2))


async def test_unclassified_grpc_status_raises_call_failed(client, daemon):
    daemon.answers["ListClusters"] = [Refusal(grpc.StatusCode.INTERNAL, "incident 7")]
    with pytest.raises(CallFailed, match="incident 7") as raised:
        await client.list()
    assert isinstance(raised.value, StatusError)
    assert raised.value.code == "INTERNAL"


async def test_call_to_an_unreachable_daemon_fails_and_the_next_call_reconnects(client, daemon):
    await daemon.stop()
    with pytest.raises(Unavailable):
        await client.list()
    daemon.answers["ListClusters"] = [pb.ListClustersResponse()]
    await daemon.start()
    assert len(await client.list()) == 0


async def test_concurrent_calls_to_an_unreachable_daemon_all_raise_unavailable(client, daemon):
    await daemon.stop()
    outcomes = await asyncio.gather(*(client.list() for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
    daemon.answers["ListClusters"] = [pb.ListClustersResponse()]
    await daemon.start()
    await client.list()


async def test_call_after_a_daemon_restart_succeeds(client, daemon):
    daemon.answers["ListClusters"] = [pb.ListClustersResponse()] * 2
    await client.list()
    await daemon.stop()
    await daemon.start()
    await client.list()


async def test_call_is_retried_once_after_a_connection_loss(client, daemon):
    lost = Refusal(grpc.StatusCode.UNAVAILABLE, "Stream removed")
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(), lost, pb.ListClustersResponse(), lost, lost]
    await client.list()
    await client.list()
    with pytest.raises(Unavailable, match="Stream removed"):
        await client.list()


async def test_call_without_a_response_raises_timed_out(daemon):
    async with DiscoveryClient(daemon.address, timeout=timedelta(milliseconds=20)) as client:
        daemon.answers["ListClusters"] = [SILENCE]
        with pytest.raises(TimedOut):
            await client.list()


def test_malformed_address_is_refused_by_the_constructor():
    with pytest.raises(InvalidAddress):
        DiscoveryClient("nowhere")


@pytest.mark.parametrize("seconds", [-(10**15), 253402300800, 2**62])
async def test_timestamp_out_of_range_is_none(client, daemon, seconds):
    at = Timestamp(seconds=seconds)
    alpha = pb.Cluster(name="alpha", deletion_requested_at=at, engaged_at=Timestamp(seconds=1, nanos=-5))
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[alpha])]
    [listed] = await client.list()
    assert (listed.deletion_requested_at, listed.engaged_at) == (None, None)
    daemon.answers["GetServerInfo"] = [
        pb.GetServerInfoResponse(limits=pb.Limits(stalled_timeout=Duration(seconds=seconds)))
    ]
    await client.server_info()


async def test_page_larger_than_the_default_message_limit_is_received(client, daemon):
    annotations = {f"a{n}": "x" * 10_000 for n in range(600)}
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[pb.Cluster(name="a", annotations=annotations)])]
    assert len((await client.list()).clusters) == 1


def test_client_used_in_another_event_loop_is_refused():
    async def make() -> DiscoveryClient:
        client = DiscoveryClient("unix:///nowhere.sock")
        with pytest.raises(Unavailable):
            await client.list()
        return client

    async def use(client: DiscoveryClient) -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await client.list()
        async with client.watch() as watch:
            with pytest.raises(RuntimeError, match="another event loop"):
                await anext(watch)
        await client.close()

    client = asyncio.run(make())
    asyncio.run(use(client))


async def test_client_can_be_created_outside_of_an_event_loop(daemon):
    daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(mode="single")]
    client = await asyncio.to_thread(DiscoveryClient, daemon.address)
    async with client:
        assert (await client.server_info()).mode == "single"


async def test_longest_timeout_is_accepted(daemon):
    daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(mode="single")]
    async with DiscoveryClient(daemon.address, timeout=timedelta.max) as client:
        assert (await client.server_info()).mode == "single"


async def test_call_in_flight_fails_when_the_client_is_closed(client, daemon):
    daemon.answers["ListClusters"] = [SILENCE]
    listing = asyncio.create_task(client.list())
    await eventually(lambda: bool(daemon.requests))
    await client.close()
    with pytest.raises(CallFailed) as failed:
        await listing
    assert failed.value.code == "CANCELLED"


async def test_call_in_flight_on_a_failed_connection_fails_when_the_client_is_closed(daemon):
    daemon.answers["ListClusters"] = [SILENCE]
    daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.UNAVAILABLE, "as if the connection were lost")]
    async with DiscoveryClient(daemon.address, timeout=None) as client:
        listing = asyncio.create_task(client.list())
        await eventually(lambda: bool(daemon.requests))
        with pytest.raises(Unavailable):
            await client.get("a")
        await client.close()
        with pytest.raises(CallFailed) as failed:
            async with asyncio.timeout(10):
                await listing
    assert failed.value.code == "CANCELLED"


async def test_client_does_not_replace_the_sigterm_handler():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        async with DiscoveryClient("unix:///nowhere"):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


WAITING = """
import asyncio
from milo_discovery import DiscoveryClient
async def main():
    async with DiscoveryClient("unix:///nowhere"):
        try:
            print("waiting", flush=True)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            print("cleaned up", flush=True)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
BLOCKING = """
import time
from milo_discovery.sync import SyncDiscoveryClient
try:
    with SyncDiscoveryClient("unix:///nowhere"):
        try:
            print("waiting", flush=True)
            time.sleep(600)
        finally:
            print("cleaned up", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("program", [WAITING, BLOCKING], ids=["asyncio", "blocking"])
@pytest.mark.parametrize("background", ["&", ""], ids=["background", "foreground"])
def test_sigterm_interrupts_a_program_that_a_shell_started_in_the_background(program, background):
    """A non-interactive shell starts a program with `&` with an ignored SIGINT."""
    script = '"$0" -c "$1" & wait' if background else 'exec "$0" -c "$1"'
    with subprocess.Popen(
        ["/bin/sh", "-c", script, sys.executable, f"import os\nprint(os.getpid())\n{program}"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            assert shell.stdout is not None
            pid = int(shell.stdout.readline())
            assert shell.stdout.readline() == "waiting\n"
            if background:
                os.kill(pid, signal.SIGINT)  # ignored, as the shell asked for
            os.kill(pid, signal.SIGTERM)
            out, _ = shell.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert out.splitlines() == ["cleaned up", "interrupted"]
