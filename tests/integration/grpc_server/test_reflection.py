"""Calls of reflection: clients that ask too much or do not read, and changes of rights."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from milo_discoveryd.rights.rights import Rights
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from milo_discoveryd.server.calls import in_flight, interceptor
from milo_discoveryd.server.calls.reflection import NAME, ReflectionService
from milo_discoveryd.server.connections.call_queue import CallQueue
from tests.integration.grpc_server.callers import open_rules_harness, rule
from tests.integration.grpc_server.conftest import Harness, Subscriber, a_harness
from tests.integration.grpc_server.raw import Raw
from tests.integration.grpc_server.test_peer_credentials import reason
from tests.support.eventually import LIMIT_S

REQUEST = reflection_pb2.ServerReflectionRequest(list_services="")


@asynccontextmanager
async def stub(path: Path) -> AsyncIterator[Any]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with asyncio.timeout(LIMIT_S), grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        yield reflection_pb2_grpc.ServerReflectionStub(channel)


async def asked(service: Any) -> Any:
    """Return a call that has been answered once and goes on."""
    call = service.ServerReflectionInfo()
    await call.write(REQUEST)
    assert (await call.read()).original_request == REQUEST
    return call


async def test_call_answers_several_requests(harness: Harness, tmp_path: Path) -> None:
    async with stub(tmp_path / "d.sock") as service:
        call = service.ServerReflectionInfo(iter([REQUEST] * 3))
        assert [answer.original_request async for answer in call] == [REQUEST] * 3


async def test_large_request_is_refused_unanswered(harness: Harness, tmp_path: Path) -> None:
    async with stub(tmp_path / "d.sock") as service:
        call = await asked(service)
        await call.write(reflection_pb2.ServerReflectionRequest(file_by_filename="f" * 2000))
        error = await Subscriber(call).error()
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_caller_may_have_a_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MAX_REFLECTIONS", 2)
    async with a_harness(tmp_path), stub(tmp_path / "d.sock") as service:
        calls = [await asked(service), await asked(service)]
        error = await Subscriber(service.ServerReflectionInfo()).error()
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        for call in calls:
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        await asked(service)


async def test_idle_call_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "REFLECTION_S", 0.1)
    async with a_harness(tmp_path), stub(tmp_path / "d.sock") as service:
        error = await Subscriber(service.ServerReflectionInfo()).error()
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "REFLECTION_ENDED")


async def test_connection_of_a_call_that_is_not_read_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "REFLECTION_S", 0.1)
    monkeypatch.setattr(interceptor, "ABORT_S", 0.1)
    async with asyncio.timeout(LIMIT_S), a_harness(tmp_path):
        raw = await Raw.unix(tmp_path / "d.sock")
        with closing(raw):
            await raw.greet(window=0)
            raw.call(f"/{NAME}/ServerReflectionInfo", REQUEST.SerializeToString(), end=False)
            while await raw.read() is not None:
                await raw.flush()


async def test_call_of_a_revoked_caller_ends(tmp_path: Path) -> None:
    root = rule("root", ALL_CLUSTERS)
    async with (
        open_rules_harness(tmp_path, root, rule("shop", ALL_CLUSTERS)) as place,
        stub(tmp_path / "shop.sock") as service,
    ):
        call = await asked(service)
        place.harness.service.change_rights(Rights((root,)))
        await call.write(REQUEST)
        error = await Subscriber(call).error()
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "NO_RULE")
        assert place.denials() == [("shop", "NO_RULE")]


async def test_call_leaves_the_queue_of_calls(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, ...]] = []
    monkeypatch.setattr(CallQueue, "taken", lambda _, owners: taken.append(owners))
    async with stub(tmp_path / "d.sock") as service:
        await asked(service)
    assert len(taken) == 1


async def test_text_of_an_unexpected_error_is_not_sent(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(ReflectionService, "response", fail)
    async with stub(tmp_path / "d.sock") as service:
        error = await Subscriber(service.ServerReflectionInfo(iter([REQUEST]))).error()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
