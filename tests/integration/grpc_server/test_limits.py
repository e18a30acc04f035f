"""Limits on calls, connections, filters and pages, on a real server."""

import asyncio
import gc
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.rights import quota
from milo_discoveryd.rights.quota import FILTER_BYTES_EACH
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from milo_discoveryd.server import server
from milo_discoveryd.server.calls import in_flight
from milo_discoveryd.server.calls.requests import kept_bytes
from milo_discoveryd.server.calls.service import PAGE_BYTES
from tests.integration.grpc_server.callers import NAMES, PROD, error_fields, open_rules_harness, rule
from tests.integration.grpc_server.conftest import Harness, a_harness, ready
from tests.integration.grpc_server.test_peer_credentials import reason
from tests.support.eventually import eventually

CHANNEL = (("grpc.use_local_subchannel_pool", 1),)


async def error(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def annotated(name: str, size: int) -> Ready:
    seen = ready(name)
    target = msgspec.structs.replace(seen.target, annotations=(("note", "x" * size),))
    return msgspec.structs.replace(seen, target=target)


async def test_health_and_reflection_require_an_authorization_rule(tmp_path: Path) -> None:
    async with open_rules_harness(tmp_path, rule("root", ALL_CLUSTERS)) as place:
        place.harness.server.set_ready({"": True})
        found = []
        for name in ("root", "nobody"):
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/{name}.sock", options=CHANNEL) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
                request = reflection_pb2.ServerReflectionRequest(list_services="")
                for call in (
                    health.Check(health_pb2.HealthCheckRequest()),
                    health.Watch(health_pb2.HealthCheckRequest()).read(),
                    reflection.ServerReflectionInfo(iter([request])).read(),
                ):
                    try:
                        await call
                        found.append((name, "OK"))
                    except grpc.aio.AioRpcError as refused:
                        found.append((name, error_fields(refused)[1]))
    assert found == [("root", "OK")] * 3 + [("nobody", "NO_RULE")] * 3


async def test_health_watches_count_against_the_stream_quota(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, rule("root", ALL_CLUSTERS, streams=2)),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/root.sock", options=CHANNEL) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        refused = await error(health.Watch(health_pb2.HealthCheckRequest()).read())
    assert reason(refused) == "TOO_MANY_STREAMS"


async def test_server_info_counts_only_watches_of_clusters_as_subscribers(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, rule("shop", PROD), rule("root", ALL_CLUSTERS)) as place,
        grpc.aio.insecure_channel(f"unix:{tmp_path}/shop.sock", options=CHANNEL) as channel,
        place.caller("shop") as shop,
        place.caller("root") as root,
        shop.watching() as mine,
        root.watching() as other,
    ):
        place.harness.listed()
        await mine.until_synced()
        await other.until_synced()
        await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
        counts = [(await caller.stub.GetServerInfo(pb.GetServerInfoRequest())).counts for caller in (shop, root)]
    assert [count.subscribers for count in counts] == [1, 2]


async def test_concurrent_denied_calls_are_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(in_flight, "MAX_CALLS", 5)
    monkeypatch.setattr(quota, "MISS_BURST", 0)
    async with open_rules_harness(tmp_path, rule("root", ALL_CLUSTERS)) as place, place.caller("nobody") as nobody:
        calls = [error(nobody.stub.ListClusters(pb.ListClustersRequest())) for _ in range(50)]
        reasons = [reason(failure) for failure in await asyncio.gather(*calls)]
        assert set(reasons) == {"NO_RULE", "TOO_MANY_CALLS"}
        assert reasons.count("NO_RULE") < 25
        async with place.caller("root") as root:
            await root.stub.GetServerInfo(pb.GetServerInfoRequest())


async def test_listeners_share_the_limit_of_calls_in_flight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(in_flight, "MAX_CALLS", len(NAMES))
    monkeypatch.setattr(quota, "MISS_BURST", 0)
    monkeypatch.setattr(quota, "MISSES_PER_S", 0.2)  # the response to the only admitted call is delayed
    async with open_rules_harness(tmp_path, rule("root", ALL_CLUSTERS)) as place, place.caller("nobody") as nobody:
        calls = [nobody.stub.ListClusters(pb.ListClustersRequest()) for _ in range(5)]
        codes = [await code for code in islice(asyncio.as_completed([call.code() for call in calls]), 4)]
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4


async def test_open_streams_do_not_count_as_calls_in_flight(monkeypatch: pytest.MonkeyPatch, harness: Harness) -> None:
    monkeypatch.setattr(in_flight, "MAX_CALLS", 1)
    harness.listed(ready("alpha"))
    async with harness.subscriber() as one, harness.subscriber() as other, harness.client() as stub:
        await one.until_synced()
        await other.until_synced()
        await stub.ListClusters(pb.ListClustersRequest())


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"filter": pb.ClusterFilter(names=[f"name-{number:04}" for number in range(4000)])}, id="filter"),
        pytest.param({"subscriber": "operator" * 8}, id="another-field"),
    ],
)
async def test_total_request_size_of_open_streams_is_limited(
    monkeypatch: pytest.MonkeyPatch, harness: Harness, asked: dict[str, Any]
) -> None:
    request = pb.WatchClustersRequest(**asked)
    assert kept_bytes(request) * 2 < FILTER_BYTES_EACH
    monkeypatch.setattr(quota, "FILTER_BYTES_EACH", kept_bytes(request) * 2)
    harness.listed(ready("alpha"))
    async with harness.subscriber(**asked) as one, harness.subscriber(**asked) as two:
        await one.until_synced()
        await two.until_synced()
        async with harness.subscriber(**asked) as three:
            assert reason(await three.error()) == "TOO_MANY_FILTER_BYTES"
        async with harness.subscriber() as unfiltered:
            await unfiltered.until_synced()


async def test_refused_calls_are_freed_without_the_garbage_collector(harness: Harness) -> None:
    def held() -> list[Any]:
        parts = ("ClusterFilter", "ListClustersRequest", "WatchClustersRequest", "_ServicerContext")
        return [each for each in gc.get_objects() if type(each).__name__ in parts]

    gc.collect()
    gc.disable()
    of_other_tests = len(held())
    large = pb.ClusterFilter(names=[f"n{number}" for number in range(6_000)])
    try:
        async with harness.client() as stub:
            with suppress(grpc.aio.AioRpcError):
                await stub.ListClusters(pb.ListClustersRequest(filter=large))
            with suppress(grpc.aio.AioRpcError):
                await stub.WatchClusters(pb.WatchClustersRequest(filter=large)).read()
        del large
        await eventually(lambda: len(held()) <= of_other_tests)
    finally:
        gc.enable()


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = tuple((name, 200 if name == "grpc.max_connection_idle_ms" else value) for name, value in server.OPTIONS)
    monkeypatch.setattr(server, "OPTIONS", options)
    async with a_harness(tmp_path) as harness:
        harness.listed(ready("alpha"))
        async with grpc.aio.insecure_channel(harness.address, options=CHANNEL) as channel:
            await channel.unary_unary("/milo.discovery.v1.DiscoveryService/GetServerInfo")(b"")
            await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE)
            await channel.unary_unary("/milo.discovery.v1.DiscoveryService/GetServerInfo")(b"")


async def test_list_pages_fit_the_default_grpc_message_size(harness: Harness) -> None:
    """Clients with gRPC's default limit of 4 MiB read every page, whatever the size of annotations."""
    count = 600
    harness.listed(*(annotated(f"p-{number:03}", 10 * 1024) for number in range(count)))
    names: list[str] = []
    async with harness.client() as stub:
        answer = await stub.ListClusters(pb.ListClustersRequest(page_size=5000))
        names += [cluster.name for cluster in answer.clusters]
        while answer.next_page_token:
            assert answer.ByteSize() < PAGE_BYTES + 64 * 1024
            request = pb.ListClustersRequest(page_size=5000, page_token=answer.next_page_token)
            answer = await stub.ListClusters(request)
            names += [cluster.name for cluster in answer.clusters]
            assert answer.total_size == count
    assert names == [f"p-{number:03}" for number in range(count)]


async def test_cluster_larger_than_the_page_limit_is_sent_in_a_separate_page(harness: Harness) -> None:
    harness.listed(annotated("a", 3 << 20), annotated("b", 10), annotated("c", 3 << 20))
    async with harness.client() as stub:
        pages = []
        token = ""
        while True:
            answer = await stub.ListClusters(pb.ListClustersRequest(page_token=token))
            pages.append([cluster.name for cluster in answer.clusters])
            token = answer.next_page_token
            if not token:
                break
    assert pages == [["a"], ["b"], ["c"]]


async def test_forty_concurrent_listings_of_one_caller_complete(harness: Harness) -> None:
    harness.listed(*(ready(f"p-{number:03}") for number in range(100)))

    async def listing() -> int:
        async with harness.client() as stub:
            found, token = 0, ""
            while True:
                answer = await stub.ListClusters(pb.ListClustersRequest(page_size=10, page_token=token))
                found += len(answer.clusters)
                token = answer.next_page_token
                if not token:
                    return found

    assert await asyncio.gather(*(listing() for _ in range(40))) == [100] * 40
