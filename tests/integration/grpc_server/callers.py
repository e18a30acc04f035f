"""Several callers: each has a listener of its own, and the rules match by listener."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.rights import UNLIMITED, Grant, Rights, RightsRule, Terms
from milo_discoveryd.rights.scope import ClusterScope
from milo_discoveryd.server.connections.listener import Listener, UnixSocket
from milo_kube.label_selector import parse
from tests.integration.grpc_server.conftest import Harness, Subscriber, a_harness

NAMES = ("shop", "bank", "root", "nobody")
PROD = ClusterScope(parse("env=prod"))


def rule(name: str, scope: ClusterScope, terms: Terms | None = UNLIMITED, streams: int | None = None) -> RightsRule:
    """Return a rule for the caller of that name."""
    return RightsRule(
        CallerSelector(listeners=frozenset({name})), Grant(rule=name, scope=scope, terms=terms, streams=streams)
    )


def rules(*those: RightsRule) -> Rights:
    return Rights(those)


class CallerStub:
    def __init__(self, harness: Harness, stub: DiscoveryServiceStub) -> None:
        self.harness = harness
        self.stub: Any = stub

    @asynccontextmanager
    async def watching(self, **request: object) -> AsyncIterator[Subscriber]:
        call = self.stub.WatchClusters(pb.WatchClustersRequest(**request))
        try:
            yield Subscriber(call)
        finally:
            call.cancel()


class RulesHarness:
    def __init__(self, harness: Harness, directory: Path) -> None:
        self.harness = harness
        self._directory = directory

    @asynccontextmanager
    async def caller(self, name: str) -> AsyncIterator[CallerStub]:
        address = f"unix:{self._directory / name}.sock"
        async with grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            yield CallerStub(self.harness, DiscoveryServiceStub(channel))

    def denials(self) -> list[tuple[str, str]]:
        return [
            (line["caller"]["listener"], line["reason"]) for line in self.harness.audited if line["event"] == "refused"
        ]


@pytest.fixture(params=["one source", "two sources", "after a restart"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each form of a fleet; in the last two, a project's UID differs from that of its object."""
    monkeypatch.setattr(Harness, "has_rival", request.param == "two sources")
    monkeypatch.setattr(Harness, "is_restarted", request.param == "after a restart")
    if request.param != "one source":
        monkeypatch.setattr(Harness, "object_uid", staticmethod("object of {}".format))
    return str(request.param)


@asynccontextmanager
async def open_rules_harness(directory: Path, *those: RightsRule, **others: Any) -> AsyncIterator[RulesHarness]:
    listeners = [Listener(name=name, address=UnixSocket(directory / f"{name}.sock")) for name in NAMES]
    async with a_harness(directory, rights=rules(*those), listeners=listeners, **others) as harness:
        yield RulesHarness(harness, directory)


def error_fields(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, str, float | None]:
    """Return the status code, the reason, the message and the retry delay."""
    status = rpc_status.from_call(error)
    assert status is not None
    info, retry, after = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            after = retry.retry_delay.ToTimedelta().total_seconds()
    return error.code(), info.reason, status.message, after
