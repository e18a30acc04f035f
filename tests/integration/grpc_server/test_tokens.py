"""Listeners with bearer tokens, which the sandbox reviews."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.review_budget import PER_CONNECTION
from milo_discoveryd.identity.token_review import TokenReviewer
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.server.calls import handlers, verification
from milo_discoveryd.server.calls.grpc_errors import UnavailableError
from milo_discoveryd.server.calls.stream import BatchSender
from milo_discoveryd.server.connections.listener import Listener, UnixSocket
from milo_discoveryd.watchers.transport import Transport
from milo_kube.upstream import load_kubeconfig
from milo_sandbox import Sandbox
from tests.integration.grpc_server.conftest import Harness, Subscriber, a_harness, ready
from tests.integration.grpc_server.test_peer_credentials import callers, reason
from tests.support.eventually import LIMIT_S
from tests.support.logs import capture_logs
from tests.unit.kubeconfigs.backend import Backend

__all__ = ["callers"]

OPERATOR = "system:serviceaccount:milo:operator"


@asynccontextmanager
async def taking_tokens(directory: Path, sandbox: Sandbox, *sources: Backend) -> AsyncIterator[Harness]:
    api = Transport(load_kubeconfig(sandbox.write_kubeconfig(directory / "kubeconfig")), environ={})
    reviewer = TokenReviewer(api, origin="the sandbox", audiences=["milo-discovery"])
    listener = Listener(name="tokens", address=UnixSocket(directory / "d.sock"), peer_credentials=True, tokens=True)
    try:
        async with a_harness(
            directory, listeners=[listener], reviewer=reviewer, sources=[IssuerAssignment(source) for source in sources]
        ) as harness:
            harness.listed(ready("alpha"))
            yield harness
    finally:
        await api.aclose()


async def listed(harness: Harness, *authorization: str) -> pb.ListClustersResponse:
    async with harness.client() as stub:
        metadata = tuple(("authorization", value) for value in authorization)
        answer = await stub.ListClusters(pb.ListClustersRequest(), metadata=metadata)
    assert isinstance(answer, pb.ListClustersResponse)
    return answer


async def refusal(harness: Harness, *authorization: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed(harness, *authorization)
    return caught.value


async def test_token_adds_user_to_connection_identity(callers: list[Caller], tmp_path: Path) -> None:
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        await listed(harness, f"Bearer {token}")
        await listed(harness)
    shown, silent = callers
    assert (shown.user, silent.user) == (OPERATOR, "")
    assert "system:authenticated" in shown.groups
    assert shown.expires_at is not None
    assert shown.uid == silent.uid
    assert silent.uid is not None


async def test_rejected_token_is_unauthenticated_and_not_logged(callers: list[Caller], tmp_path: Path) -> None:
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        for_another = sandbox.token(OPERATOR)
        revoked = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        sandbox.revoke_tokens()
        with capture_logs() as logs:
            for wrong in (f"Bearer {for_another}", f"Bearer {revoked}", "Basic YTpi", "Bearer ", "x"):
                error = await refusal(harness, wrong)
                assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REJECTED")
                assert wrong.partition(" ")[2] not in str(error.details()) or wrong in ("Bearer ", "x")
            await refusal(harness, "Bearer a", "Bearer b")
        assert [line["reason"] for line in harness.audited] == ["TOKEN_REJECTED"] * 6
        assert for_another not in str(logs)
        assert revoked not in str(logs)
    assert callers == []


async def test_token_review_outage_affects_token_callers_only(callers: list[Caller], tmp_path: Path) -> None:
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        await sandbox.stop()
        error = await refusal(harness, f"Bearer {token}")
        await listed(harness)
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "TOKEN_NOT_REVIEWED")
    status = rpc_status.from_call(error)
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    assert [caller.user for caller in callers] == [""]


async def test_streams_are_closed_when_token_expires(tmp_path: Path) -> None:
    async with (
        Sandbox() as sandbox,
        taking_tokens(tmp_path, sandbox) as harness,
        grpc.aio.insecure_channel(harness.address) as channel,
    ):
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"], life=1.0)
        metadata = (("authorization", f"Bearer {token}"),)
        clusters = DiscoveryServiceStub(channel).WatchClusters(pb.WatchClustersRequest(), metadata=metadata)
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(clusters.read(), health.read())
            for call in (clusters, health):
                error = await Subscriber(call).error()
                assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "IDENTITY_ENDED")


async def test_stream_of_revoked_token_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verification, "STREAM_MAX_AGE_S", 0.1)
    monkeypatch.setattr(verification, "HANDOUT_MAX_AGE_S", 0.0)
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness, harness.client() as stub:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        call = stub.WatchClusters(pb.WatchClustersRequest(), metadata=(("authorization", f"Bearer {token}"),))
        async with asyncio.timeout(LIMIT_S):
            assert (await call.read()).synced
            sandbox.revoke_tokens()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "IDENTITY_ENDED")


async def test_revoked_token_gets_no_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Calls that are not about kubeconfigs accept a revoked token for up to a minute."""
    monkeypatch.setattr(handlers, "HANDOUT_MAX_AGE_S", 0.0)
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness, harness.client() as stub:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        await listed(harness, f"Bearer {token}")
        sandbox.revoke_tokens()
        await listed(harness, f"Bearer {token}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.IssueKubeconfig(
                pb.IssueKubeconfigRequest(cluster="alpha"), metadata=(("authorization", f"Bearer {token}"),)
            )
    assert reason(caught.value) == "TOKEN_REJECTED"


async def test_revoked_token_gets_no_kubeconfig_on_a_new_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(handlers, "HANDOUT_MAX_AGE_S", 0.0)
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox, Backend()) as harness, harness.client() as stub:
        metadata = (("authorization", f"Bearer {sandbox.token(OPERATOR, audiences=['milo-discovery'])}"),)
        await stub.ListClusters(pb.ListClustersRequest(), metadata=metadata)
        sandbox.revoke_tokens()
        assert (await stub.WatchClusters(pb.WatchClustersRequest(), metadata=metadata).read()).synced
        call = stub.WatchClusters(pb.WatchClustersRequest(include_kubeconfigs=True), metadata=metadata)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REJECTED")


async def test_stream_continues_without_kubeconfigs_while_tokens_cannot_be_reviewed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verification, "STREAM_MAX_AGE_S", 0.1)
    monkeypatch.setattr(verification, "HANDOUT_MAX_AGE_S", 0.0)
    monkeypatch.setattr(verification, "GRACE_S", 0.0)
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox, Backend()) as harness, harness.client() as stub:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        request = pb.WatchClustersRequest(include_kubeconfigs=True)
        call = stub.WatchClusters(request, metadata=(("authorization", f"Bearer {token}"),))
        async with asyncio.timeout(LIMIT_S):
            while not (await call.read()).synced:
                pass
            await sandbox.stop()
            harness.seen(ready("beta"))
            events = []
            while not any(event.cluster.name == "beta" for event in events):
                events = (await call.read()).events
        assert not any(event.HasField("kubeconfig") for event in events)
        call.cancel()


async def test_flood_of_invalid_tokens_does_not_lock_out_an_accepted_token(tmp_path: Path) -> None:
    """A connection without a valid token uses up its own budget, not the shared one."""
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        await listed(harness, f"Bearer {token}")
        reasons = []
        async with harness.client() as stub:
            for number in range(30):
                metadata = (("authorization", f"Bearer made-up-{number}"),)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ListClusters(pb.ListClustersRequest(), metadata=metadata)
                reasons.append(reason(caught.value))
        assert set(reasons) == {"TOKEN_REJECTED", "TOKEN_NOT_REVIEWED"}
        assert reasons.count("TOKEN_REJECTED") <= PER_CONNECTION.burst / 2
        await listed(harness, f"Bearer {token}")
    audited: Counter[str] = Counter()
    for line in harness.audited:
        audited[line["reason"]] += ("problem" in line) + line.get("suppressed", 0)
    assert audited == Counter(reasons)


async def test_unexpected_error_of_a_verification_ends_only_the_stream_that_it_verifies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails = asyncio.Event()

    async def failing(self: verification.StreamVerification) -> None:
        await fails.wait()
        raise ZeroDivisionError

    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness, harness.client() as stub:
        without_token = stub.WatchClusters(pb.WatchClustersRequest())
        assert (await without_token.read()).synced
        monkeypatch.setattr(verification.StreamVerification, "run", failing)
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        call = stub.WatchClusters(pb.WatchClustersRequest(), metadata=(("authorization", f"Bearer {token}"),))
        async with asyncio.timeout(LIMIT_S):
            assert (await call.read()).synced
            fails.set()
            with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        harness.seen(ready("beta"))
        async with asyncio.timeout(LIMIT_S):
            assert [event.cluster.name for event in (await without_token.read()).events] == ["beta"]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "call failed" in [entry["event"] for entry in logs]


async def test_stream_whose_token_is_rejected_while_its_first_batch_is_sent_ends_for_the_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sends = asyncio.Event()
    send = BatchSender.send

    async def sending(self: BatchSender, data: bytes, cursor: Cursor | None) -> None:
        sends.set()
        await send(self, data, cursor)

    async def rejected(self: verification.StreamVerification) -> None:
        await sends.wait()
        raise UnavailableError("IDENTITY_ENDED", "the token is rejected")

    monkeypatch.setattr(BatchSender, "send", sending)
    monkeypatch.setattr(verification.StreamVerification, "run", rejected)
    async with Sandbox() as sandbox, taking_tokens(tmp_path, sandbox) as harness, harness.client() as stub:
        token = sandbox.token(OPERATOR, audiences=["milo-discovery"])
        call = stub.WatchClusters(pb.WatchClustersRequest(), metadata=(("authorization", f"Bearer {token}"),))
        assert reason(await Subscriber(call).error()) == "IDENTITY_ENDED"
