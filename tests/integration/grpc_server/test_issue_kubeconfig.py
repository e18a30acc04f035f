"""IssueKubeconfig: responses and errors."""

import json
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import Scope
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_kube.credential import CredentialError
from milo_kube.reflect.messages import Listed, ListStarted
from tests.integration.grpc_server.conftest import EPOCH, Harness, a_harness, not_ready, ready
from tests.integration.grpc_server.race import race
from tests.support.eventually import eventually
from tests.unit.kubeconfigs.backend import CANARY, Backend


async def issued(harness: Harness, **request: object) -> pb.Kubeconfig:
    async with harness.client() as stub:
        answer = await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(**request))  # type: ignore[arg-type]
    return answer.kubeconfig


async def refused(harness: Harness, **request: object) -> tuple[grpc.StatusCode, str, str]:
    """Return the status code, the reason and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await issued(harness, **request)
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    assert CANARY not in str(caught.value)
    return caught.value.code(), info.reason, caught.value.details() or ""


async def test_issued_embedded_kubeconfig_has_issue_refresh_and_expiry_times(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend(life_s=600))]) as harness:
        harness.listed(ready("alpha"))
        made = await issued(harness, cluster="alpha")
    config = json.loads(made.kubeconfig)
    assert made.cluster == "alpha"
    assert config["clusters"][0]["cluster"]["server"] == "https://alpha.test"
    assert config["users"][0]["user"]["token"].startswith(CANARY)
    issued_at, refresh_after, expires_at = (
        timestamp.ToMicroseconds() / 1e6 for timestamp in (made.issued_at, made.refresh_after, made.expires_at)
    )
    assert abs(issued_at - time.time()) < 10
    assert issued_at + 290 < refresh_after < issued_at + 370
    assert 590 < expires_at - issued_at <= 600


async def test_exec_kubeconfig_is_issued_while_the_credential_issuer_fails(tmp_path: Path) -> None:
    backend = Backend()
    backend.failure = BackendError("down")
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        made = await issued(harness, cluster="alpha", format=pb.KUBECONFIG_FORMAT_EXEC)
    assert not made.HasField("expires_at")
    assert not made.HasField("refresh_after")
    command = json.loads(made.kubeconfig)["users"][0]["user"]["exec"]
    assert command["args"] == ["credential", "--cluster", "alpha"]
    assert {"name": "MILO_DISCOVERY_ADDRESS", "value": "unix:///d.sock"} in command["env"]


async def test_issue_kubeconfig_for_unengaged_cluster_is_not_found(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"))
        harness.seen(not_ready("alpha"))
        for name in ("alpha", "nobody"):
            code, reason, _ = await refused(harness, cluster=name)
            assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NOT_ENGAGED")


async def test_issue_kubeconfig_is_unavailable_before_sync(tmp_path: Path) -> None:
    """Before the first list is complete, a cluster must not be reported as not engaged."""
    backend = Backend(Scope.CLUSTER)
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.found(ListStarted(), Listed(ready("alpha")))
        for name in ("alpha", "beta"):
            code, reason, _ = await refused(harness, cluster=name)
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_SYNCED")
        assert backend.asked == []
        harness.listed(ready("alpha"))
        assert (await issued(harness, cluster="alpha")).cluster == "alpha"


async def test_issue_kubeconfig_fails_for_another_incarnation_of_the_cluster(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"))
        async with harness.client() as stub:
            incarnation = (await stub.GetCluster(pb.GetClusterRequest(name="alpha"))).cluster.incarnation
        assert (await issued(harness, cluster="alpha", incarnation=incarnation)).cluster == "alpha"
        harness.seen(ready("alpha", uid="another"))
        code, reason, message = await refused(harness, cluster="alpha", incarnation=incarnation)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OTHER_INCARNATION")
    assert f"is engaged as incarnation {EPOCH}." in message


async def test_issue_kubeconfig_without_issuer_is_a_failed_precondition(harness: Harness) -> None:
    harness.listed(ready("alpha"))
    for form in (pb.KUBECONFIG_FORMAT_EMBEDDED, pb.KUBECONFIG_FORMAT_EXEC):
        code, reason, message = await refused(harness, cluster="alpha", format=form)
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_CREDENTIAL_ISSUER")
        assert "kubeconfigs.issuers" in message


async def test_issue_kubeconfig_with_unsuitable_credential_is_a_failed_precondition(tmp_path: Path) -> None:
    backend = Backend()
    backend.failure = UnfitError("it stands in the kubeconfig")
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        code, _, message = await refused(harness, cluster="alpha")
        async with harness.subscriber(include_kubeconfigs=True) as subscriber:
            assert (await subscriber.error()).code() is grpc.StatusCode.FAILED_PRECONDITION
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "it stands in the kubeconfig" in message


async def test_issue_kubeconfig_while_issuer_is_down_is_unavailable(tmp_path: Path) -> None:
    backend = Backend(Scope.CLUSTER)
    backend.failure = BackendError("the backend is down")
    async with a_harness(tmp_path, sources=[IssuerAssignment(backend)]) as harness:
        harness.listed(ready("alpha"))
        async with harness.client() as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))
            got = await stub.GetCluster(pb.GetClusterRequest(name="alpha"))
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        status = rpc_status.from_call(caught.value)
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert retry.retry_delay.ToMilliseconds() >= 1000
        assert got.engagement.engaged
        assert "the backend is down" in got.engagement.message
        (source,) = info.credential_issuers
        assert (source.name, source.type, source.healthy) == ("backend", "test", False)
        assert source.message == "the backend is down"
        backend.failure = None
        await eventually(lambda: harness.kubeconfigs.health()[0].expires_at)
        assert (await issued(harness, cluster="alpha")).cluster == "alpha"


@pytest.mark.parametrize("form", [pb.KUBECONFIG_FORMAT_EMBEDDED, pb.KUBECONFIG_FORMAT_EXEC])
async def test_issue_kubeconfig_without_the_ca_of_the_cluster_is_unavailable(
    form: pb.KubeconfigFormat.ValueType, tmp_path: Path
) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"))
        harness.kubeconfigs.issuance.trust = no_trust
        assert await refused(harness, cluster="alpha", format=form) == (
            grpc.StatusCode.UNAVAILABLE,
            "CREDENTIALS_UNAVAILABLE",
            "/ca.crt cannot be read",
        )


def no_trust(*_: object) -> ClusterTrust:
    raise CredentialError("/ca.crt cannot be read")


async def test_server_info_has_credential_issuers_and_max_ttl(tmp_path: Path) -> None:
    async with a_harness(tmp_path, sources=[IssuerAssignment(Backend())]) as harness:
        harness.listed(ready("alpha"))
        await issued(harness, cluster="alpha")
        async with harness.client() as stub:
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    (source,) = info.credential_issuers
    assert (source.healthy, source.message, source.HasField("expires_at")) == (True, "", True)
    assert info.limits.max_kubeconfig_ttl.seconds == 900


async def test_issue_kubeconfig_racing_with_disengagement_issues_nothing_after_disengagement(tmp_path: Path) -> None:
    assert await race(tmp_path, rounds=1500, seed=1) > 300
