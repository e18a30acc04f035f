"""Watches of health checks: clients that do not read, and changes of rights."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.events import ResponseReceived

from milo_discoveryd.rights.rights import Rights, RightsRule
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope
from milo_discoveryd.server.calls import interceptor
from milo_discoveryd.server.calls.handlers import NAME
from tests.integration.grpc_server.callers import open_rules_harness, rule
from tests.integration.grpc_server.conftest import Harness, Subscriber, a_harness
from tests.integration.grpc_server.raw import Raw
from tests.integration.grpc_server.test_peer_credentials import reason
from tests.support.eventually import LIMIT_S

ROOT = rule("root", ALL_CLUSTERS)


@asynccontextmanager
async def stub(path: Path) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def unread(path: Path) -> AsyncIterator[Raw]:
    """Open a watch whose client lets the server send nothing but headers."""
    raw = await Raw.unix(path)
    with closing(raw):
        await raw.greet(window=0)
        raw.call("/grpc.health.v1.Health/Watch")
        await raw.flush()
        is_open = False
        while not is_open:
            events = await raw.read()
            assert events is not None
            is_open = any(isinstance(event, ResponseReceived) for event in events)
            await raw.flush()
        yield raw


async def name(answer: "asyncio.Future[health_pb2.HealthCheckResponse]") -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name((await answer).status))


async def test_unread_watch_holds_up_no_other_watch_no_change_of_health_and_no_shutdown(tmp_path: Path) -> None:
    path, request = tmp_path / "d.sock", health_pb2.HealthCheckRequest()
    async with asyncio.timeout(LIMIT_S), a_harness(tmp_path) as harness, unread(path):
        harness.server.set_ready({"": False})
        async with stub(path) as other:
            watch = other.Watch(request)
            assert await name(watch.read()) == "NOT_SERVING"
            harness.server.set_ready({"": True})
            assert await name(watch.read()) == "SERVING"
            assert await name(other.Check(request)) == "SERVING"
            stopping = asyncio.create_task(harness.server.stop())
            assert await name(watch.read()) == "NOT_SERVING"
            harness.server.set_ready({"": True})
            with pytest.raises(grpc.aio.AioRpcError):
                await watch.read()
            await stopping


async def test_connection_of_an_unread_watch_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "ABORT_S", 0.1)
    async with asyncio.timeout(LIMIT_S), a_harness(tmp_path, stalled_s=0.1), unread(tmp_path / "d.sock") as raw:
        while await raw.read() is not None:
            await raw.flush()


async def test_watch_of_an_unknown_service_is_answered_once_it_is_known(harness: Harness, tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S), stub(tmp_path / "d.sock") as caller:
        watch = caller.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert await name(watch.read()) == "SERVICE_UNKNOWN"
        harness.server.set_ready({"": True})
        assert await name(watch.read()) == "SERVING"


@pytest.mark.parametrize(
    ("rules", "denial"), [((ROOT,), "NO_RULE"), ((rule("shop", NO_CLUSTERS), ROOT), "DENIED_BY_RULE")]
)
async def test_watch_of_a_revoked_caller_ends(tmp_path: Path, rules: tuple[RightsRule, ...], denial: str) -> None:
    async with (
        open_rules_harness(tmp_path, ROOT, rule("shop", ALL_CLUSTERS)) as place,
        stub(tmp_path / "shop.sock") as shop,
    ):
        watch = shop.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        place.harness.service.change_rights(Rights(rules))
        error = await Subscriber(watch).error()
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, denial)
        assert place.denials() == [("shop", denial)]


async def test_watch_shows_a_source_only_while_it_is_in_scope(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(LIMIT_S),
        open_rules_harness(tmp_path, rule("shop", ClusterScope(sources=frozenset({"us"})))) as place,
        stub(tmp_path / "shop.sock") as shop,
    ):
        place.harness.server.set_ready({"us": True, "eu": True})
        watch = shop.Watch(health_pb2.HealthCheckRequest(service=f"{NAME}/us"))
        for sources, expected in ((("us",), "SERVING"), (("eu",), "SERVICE_UNKNOWN"), (("us", "eu"), "SERVING")):
            scope = ClusterScope(sources=frozenset(sources))
            place.harness.service.change_rights(Rights((rule("shop", scope),)))
            assert await name(watch.read()) == expected
