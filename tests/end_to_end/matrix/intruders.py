"""Callers that exceed their rights, before and after a restart of the first daemon: one function for each."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc

from milo_discovery import DiscoveryClient
from milo_discovery.v1 import discovery_pb2 as pb
from milo_sandbox.resources import SECRETS, Document
from tests.end_to_end.matrix.cell import HUB, SETTLED_WITHIN_S, World, record
from tests.end_to_end.matrix.gate import GREEDY, STRANGER, TENANT
from tests.support.certificates import Authority
from tests.support.eventually import eventually

_AGAIN_S = 0.05
_OK = grpc.StatusCode.OK


async def status(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return _OK


@asynccontextmanager
async def tenant_that_asks_for_all_clusters(world: World) -> AsyncIterator[None]:
    """Follow everything at each daemon as a tenant, and request the kubeconfigs of other tenants' clusters."""
    tenants = world.tenants

    async def follow(number: int) -> None:
        name = f"tenant-{number}"
        tenants.views[name] = set()
        connect = lambda _: world.gate.connect(TENANT, number)  # noqa: E731
        async with DiscoveryClient(world.gate.addresses[number], connect=connect) as client:
            async for event in client.watch(include_kubeconfigs=True):
                record(tenants, name, event)

    async def told() -> None:
        await eventually(lambda: tenants.breaches or tenants.is_current, within_s=SETTLED_WITHIN_S)
        assert not tenants.breaches, "; ".join(tenants.breaches)

    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(number)) for number in range(world.cell.daemons)]
        await told()
        yield
        await told()
        for task in following:
            task.cancel()
    for number in range(world.cell.daemons):
        async with world.gate.calling(TENANT, number) as stub:
            for name in world.validator.truth - tenants.truth:
                answers = stub.GetCluster(pb.GetClusterRequest(name=name)), _kubeconfig(stub, name)
                assert [await status(answer) for answer in answers] == [grpc.StatusCode.NOT_FOUND] * 2, name


@asynccontextmanager
async def tenant_with_a_forged_revision(world: World) -> AsyncIterator[None]:
    """Resume repeatedly as a tenant that claims far more clusters than exist, also as the first caller of a starting
    daemon.
    """
    received: set[str] = set()

    async def resume(stub: Any) -> None:
        resumed = pb.WatchClustersRequest(resume_revision=forged)
        async for batch in stub.WatchClusters(resumed, wait_for_ready=True):
            received.update(event.cluster.name for event in batch.events)

    async with world.gate.calling(TENANT) as stub, asyncio.TaskGroup() as tasks:
        forged = re.sub(r"-\d+", "-999999999", await _revision(stub))
        resuming = tasks.create_task(_repeat(lambda: resume(stub)))
        yield
        resuming.cancel()
    assert all(map(world.gate.covers, received)), received


@asynccontextmanager
async def caller_that_takes_all_it_can(world: World) -> AsyncIterator[None]:
    """Open all streams that a caller may have, request kubeconfigs from an issuer that hangs, and then more of both."""
    statuses: Counter[grpc.StatusCode] = Counter()

    async def watch(stub: Any) -> None:
        async for _ in stub.WatchClusters(pb.WatchClustersRequest()):
            pass

    async def refused(more: int) -> None:
        wanted = statuses[grpc.StatusCode.RESOURCE_EXHAUSTED] + more
        await eventually(lambda: statuses[grpc.StatusCode.RESOURCE_EXHAUSTED] >= wanted)

    async with world.gate.calling(GREEDY) as stub, asyncio.TaskGroup() as tasks:
        calls: list[Callable[[], Awaitable[object]]] = [lambda: watch(stub)] * 20
        calls += [lambda name=name: _kubeconfig(stub, name) for name in world.validator.truth]  # type: ignore[misc]
        taking = [tasks.create_task(_repeat(call, statuses)) for call in calls]
        await refused(10)
        yield
        await refused(10)
        for task in taking:
            task.cancel()


@asynccontextmanager
async def holder_of_a_revoked_token(world: World) -> AsyncIterator[None]:
    """Call with a token that the first daemon has accepted, and that is revoked before its restart."""
    token = (("authorization", f"Bearer {world.gate.token()}"),)

    async def answer(number: int) -> grpc.StatusCode:
        async with world.gate.calling(STRANGER, number) as stub:
            return await status(stub.ListClusters(pb.ListClustersRequest(), metadata=token))

    assert await answer(0) is _OK
    world.gate.revoke()
    yield
    answers = {await answer(number) for number in range(world.cell.daemons)}
    assert answers == {grpc.StatusCode.UNAUTHENTICATED}


@asynccontextmanager
async def strangers(world: World) -> AsyncIterator[None]:
    """Call with a certificate of another CA, with an expired one, and with one that matches no rule."""
    wrong: dict[str, tuple[dict[str, Any], grpc.StatusCode]] = {
        "another CA": ({"authority": Authority()}, grpc.StatusCode.UNAVAILABLE),
        "expired": ({"life": timedelta(minutes=-1)}, grpc.StatusCode.UNAVAILABLE),
        "another name": ({}, grpc.StatusCode.PERMISSION_DENIED),
    }

    async def call() -> None:
        for number in range(world.cell.daemons):
            for kind, (certificate, expected) in wrong.items():
                name = STRANGER if kind == "another name" else TENANT
                async with world.gate.calling(name, number, **certificate) as stub:
                    assert await status(stub.ListClusters(pb.ListClustersRequest())) is expected, kind

    await call()
    yield
    await call()


@asynccontextmanager
async def writer_of_published_objects(world: World) -> AsyncIterator[None]:
    """Overwrite the objects that are published to the hub, to mislead their readers."""
    store = world.hub.control_plane(HUB)

    def led(secret: Document) -> Document:
        return {**secret, "data": {"value": "ZXZpbA=="}}

    async def lead_elsewhere() -> None:
        written = [f"default/{secret.name}" for secret in store[SECRETS] if secret.name.endswith("-kubeconfig")]
        for name in written:
            store.modify(SECRETS, name.partition("/")[2], led, namespace="default")

        def is_right(each: str) -> bool:
            secret = store.find(SECRETS, each)
            return secret is None or secret.document()["data"] != led({})["data"]

        await eventually(lambda: all(map(is_right, written)), within_s=SETTLED_WITHIN_S)

    await lead_elsewhere()
    yield
    await lead_elsewhere()


def _kubeconfig(stub: Any, name: str) -> Awaitable[object]:
    call: Awaitable[object] = stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name))
    return call


async def _revision(stub: Any) -> str:
    """Return the revision after a complete snapshot."""
    async for batch in stub.WatchClusters(pb.WatchClustersRequest()):
        if batch.synced and not batch.pending_sources:
            return str(batch.revision)
    raise AssertionError("the stream ended before a complete snapshot")


async def _repeat(call: Callable[[], Awaitable[object]], statuses: Counter[grpc.StatusCode] | None = None) -> None:
    while True:
        answer = await status(call())
        if statuses is not None:
            statuses[answer] += 1
        await asyncio.sleep(_AGAIN_S)


INTRUDERS: list[Callable[[World], AbstractAsyncContextManager[None]]] = [
    tenant_that_asks_for_all_clusters,
    tenant_with_a_forged_revision,
    caller_that_takes_all_it_can,
    holder_of_a_revoked_token,
    strangers,
    writer_of_published_objects,
]
