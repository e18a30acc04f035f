"""Traces as received over OTLP/HTTP from a daemon with a sandbox."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.telemetry.traces import exporting
from tests.integration.kubeconfigs.daemon import a_daemon
from tests.integration.kubeconfigs.test_end_to_end import a_sandbox, credential, sources

SERVICE = "milo.discovery.v1.DiscoveryService"
CALLERS_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Receiver:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.endpoint = ""

    async def receive(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        return web.Response()

    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> dict[str, Span]:
        """Return the last span of each name."""
        return {
            span.name: span
            for request in self.requests()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.endpoint = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


def own_identity(directory: Path) -> Path:
    """Return a configuration in which the daemon's own credential is issued."""
    return sources(directory, {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True})


def attributes(span: Span) -> dict[str, str | int]:
    return {attribute.key: attribute.value.string_value or attribute.value.int_value for attribute in span.attributes}


async def test_calls_and_outgoing_requests_are_spans_without_secrets(tmp_path: Path, receiver: Receiver) -> None:
    async with a_sandbox(tmp_path):
        settings = {"discovery_kubeconfig": str(tmp_path / "upstream"), "traces.endpoint": receiver.endpoint}
        settings |= {"connectivity.per": "cluster"}
        async with a_daemon(tmp_path, own_identity(tmp_path), **settings) as stub:
            token = await asked(stub)
            with pytest.raises(grpc.RpcError):
                await stub.GetCluster(pb.GetClusterRequest(name="nobody"))
    spans = receiver.spans()
    issued = spans[f"{SERVICE}/IssueKubeconfig"]
    assert (issued.kind, issued.trace_id.hex()) == (Span.SPAN_KIND_SERVER, CALLERS_TRACE)
    assert attributes(issued)["rpc.grpc.status_code"] == 0
    missed = spans[f"{SERVICE}/GetCluster"]
    assert attributes(missed)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert missed.status.code == Status.STATUS_CODE_UNSET, "the span has an error that is the client's"
    assert not missed.events
    assert f"{SERVICE}/WatchClusters" in spans
    asked_upstream = [attributes(span) for name, span in spans.items() if re.match("GET|POST", name)]
    assert any("/apis/resourcemanager.miloapis.com/" in str(request.get("url.full")) for request in asked_upstream)
    assert not [body for body in receiver.bodies if token.encode() in body]


async def asked(stub: DiscoveryServiceStub) -> str:
    answer = await stub.IssueKubeconfig(
        pb.IssueKubeconfigRequest(cluster="alpha"),
        metadata=(("traceparent", f"00-{CALLERS_TRACE}-00f067aa0ba902b7-01"),),
    )
    return credential(answer.kubeconfig.kubeconfig)[1]


async def test_calls_succeed_if_the_trace_receiver_is_unreachable(tmp_path: Path) -> None:
    async with a_sandbox(tmp_path):
        settings = {"discovery_kubeconfig": str(tmp_path / "upstream"), "traces.endpoint": "http://127.0.0.1:9"}
        async with a_daemon(tmp_path, own_identity(tmp_path), **settings) as stub:
            assert await asked(stub)


async def test_missing_trace_extra_is_reported_with_install_hint() -> None:
    with (
        mock.patch.dict("sys.modules", {"opentelemetry.sdk.trace": None}),
        pytest.raises(StartError, match=r"opentelemetry\.sdk\.trace is not installed; install the extra `traces`"),
    ):
        async with exporting("http://localhost:4318", 1.0, version="1", mode="project"):
            pass
