"""Unary calls: responses and errors."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.server.calls.handlers import NAME
from milo_discoveryd.server.calls.server_info import CLUSTERS_PER_STEP
from milo_kube.reflect.view_status import ViewState, ViewStatus
from tests.integration.grpc_server.conftest import EPOCH, Harness, event_texts, not_ready, ready
from tests.support.eventually import eventually


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    status = rpc_status.from_call(error)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    return info, bad


async def test_list_clusters_returns_engaged_clusters_sorted_by_name(harness: Harness) -> None:
    harness.listed(ready("gamma"), ready("alpha"), ready("beta"))
    harness.seen(not_ready("beta"))
    async with harness.client() as stub:
        answer = await stub.ListClusters(pb.ListClustersRequest())
    assert [cluster.name for cluster in answer.clusters] == ["alpha", "gamma"]
    assert (answer.total_size, answer.next_page_token) == (2, "")


async def test_large_page_yields_to_the_event_loop(harness: Harness) -> None:
    harness.listed(*(ready(f"p-{number}") for number in range(4 * CLUSTERS_PER_STEP)))
    page = asyncio.create_task(
        harness.service.list_clusters(pb.ListClustersRequest(page_size=5000), Caller(listener="here"))
    )
    turns = 0
    while not page.done():
        await asyncio.sleep(0)
        turns += 1
    assert len((await page).clusters) == 4 * CLUSTERS_PER_STEP
    assert turns >= 4


async def test_watch_resumes_from_list_revision(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    async with harness.client() as stub:
        listed = await stub.ListClusters(pb.ListClustersRequest())
    harness.seen(ready("beta"))
    async with harness.subscriber(resume_revision=listed.revision) as subscriber:
        batch = await subscriber.batch()
    assert (event_texts([batch]), batch.reset) == (["ENGAGED beta"], False)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListClustersRequest(page_size=-1), "page_size"),
        (pb.ListClustersRequest(page_token="junk"), "page_token"),
        (pb.ListClustersRequest(page_token="x" * 1000), "page_token"),
        (pb.ListClustersRequest(filter=pb.ClusterFilter(label_selector="a in (b")), "filter.label_selector"),
        (pb.ListClustersRequest(filter=pb.ClusterFilter(names=["x" * 100] * 700)), "filter"),
        (pb.ListClustersRequest(filter=pb.ClusterFilter(names=["x" * 100] * 800)), "request"),
        (pb.ListClustersRequest(filter=pb.ClusterFilter(names=[""])), "filter.names"),
    ],
)
async def test_list_clusters_error_contains_the_invalid_request_field(
    harness: Harness, request_: pb.ListClustersRequest, field: str
) -> None:
    harness.listed()
    async with harness.client() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListClusters(request_)
    info, bad = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (info.domain, info.reason) == ("discovery.miloapis.com", "INVALID_REQUEST")
    assert [violation.field for violation in bad.field_violations] == [field]


async def test_list_clusters_is_unavailable_before_sync(harness: Harness) -> None:
    async with harness.client() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListClusters(pb.ListClustersRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details(caught.value)[0].reason == "NOT_SYNCED"


async def test_get_cluster_explains_why_not_engaged(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    harness.seen(not_ready("alpha"), Malformed("beta", "uid-beta", "1", "its status is a number"))
    async with harness.client() as stub:
        alpha = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
        beta = await stub.GetCluster(pb.GetClusterRequest(name="beta"))
    assert not alpha.engagement.engaged
    assert alpha.engagement.reason == pb.Engagement.REASON_NOT_READY
    assert alpha.engagement.message == "condition Ready is False"
    assert alpha.cluster.name == "alpha"
    assert [pb.ClusterEvent.Type.Name(transition.type) for transition in alpha.transitions] == [
        "TYPE_ENGAGED",
        "TYPE_DISENGAGED",
    ]
    assert beta.engagement.reason == pb.Engagement.REASON_MALFORMED
    assert beta.engagement.message == "its status is a number"
    assert not beta.HasField("cluster")


async def test_get_cluster_reports_a_stale_source(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    status = ViewStatus(ViewState.STALE, 0.0, "Unauthorized", "401: the token expired")
    harness.followed.set_followed(harness.followed.collections[0], status)
    async with harness.client() as stub:
        found = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
    assert found.engagement.engaged
    assert found.source.state == pb.SourceStatus.STATE_STALE
    assert (found.source.reason, found.source.message) == ("Unauthorized", "401: the token expired")


@pytest.mark.parametrize(
    ("name", "code"), [("nobody", "NOT_FOUND"), ("", "INVALID_ARGUMENT"), ("x" * 400, "INVALID_ARGUMENT")]
)
async def test_get_cluster_of_unknown_or_invalid_name_fails(harness: Harness, name: str, code: str) -> None:
    harness.listed()
    async with harness.client() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetCluster(pb.GetClusterRequest(name=name))
    assert caught.value.code().name == code


async def test_server_info_has_mode_counts_and_limits(harness: Harness) -> None:
    harness.listed(ready("alpha"), ready("beta"))
    harness.seen(not_ready("beta"))
    async with harness.subscriber() as subscriber, harness.client() as stub:
        await subscriber.batch()
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.mode, info.incarnation, info.synced) == ("project", EPOCH, True)
    assert (info.counts.engaged, info.counts.not_ready, info.counts.subscribers) == (1, 1, 1)
    assert info.limits.max_page_size == 5000


async def test_internal_error_is_reported_with_incident_number_and_without_its_text(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(registry: Engagements, name: str) -> None:
        raise ValueError("token=SECRET123")

    monkeypatch.setattr(Engagements, "__getitem__", broken)
    async with harness.client() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "SECRET123" not in (caught.value.details() or "")
    assert "incident" in (caught.value.details() or "")


async def test_health_check_follows_readiness(harness: Harness) -> None:
    async with grpc.aio.insecure_channel(harness.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for is_ready, expected in ((False, "NOT_SERVING"), (True, "SERVING")):
            harness.server.set_ready({"": is_ready})
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=NAME))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == expected


async def test_reflection_is_available_on_unix_sockets(harness: Harness) -> None:
    async with grpc.aio.insecure_channel(harness.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()
    assert NAME in [service.name for service in answer.list_services_response.service]


async def test_calls_are_counted_by_method_and_code(harness: Harness) -> None:
    harness.listed()
    async with harness.client() as stub:
        await stub.ListClusters(pb.ListClustersRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetCluster(pb.GetClusterRequest(name="nobody"))
    unary = {"grpc_type": "unary", "grpc_service": NAME}

    def handled(method: str, code: str) -> float | None:
        labels = {**unary, "grpc_method": method, "grpc_code": code}
        return harness.metrics.registry.get_sample_value("grpc_server_handled_total", labels)

    # A failed call is counted after its status is sent.
    await eventually(lambda: handled("ListClusters", "OK") == 1 and handled("GetCluster", "NotFound") == 1)
