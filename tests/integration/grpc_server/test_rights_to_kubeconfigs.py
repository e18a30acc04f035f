"""Authorization of kubeconfigs: issuers, terms and quotas."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import Scope as Kind
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Terms
from milo_discoveryd.rights.scope import ALL_CLUSTERS
from tests.integration.grpc_server.callers import PROD, CallerStub, error_fields, form, open_rules_harness, rule
from tests.integration.grpc_server.conftest import event_texts, ready
from tests.unit.kubeconfigs.backend import Backend

__all__ = ["form"]

READER = rule("bank", ALL_CLUSTERS, terms=None)
SHOP = rule("shop", PROD)


def issue(guest: CallerStub, cluster: str = "alpha") -> Any:
    return guest.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=cluster))


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str, float | None]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return error_fields(raised.value)


def names(batch: pb.WatchClustersResponse) -> dict[str, bool]:
    """Return, for each cluster in the batch, whether its event has a kubeconfig."""
    return {event.cluster.name: event.HasField("kubeconfig") for event in batch.events}


async def test_rule_without_kubeconfigs_denies_kubeconfig_requests(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, READER, sources=[IssuerAssignment(Backend())]) as rules_harness,
        rules_harness.caller("bank") as reader,
    ):
        rules_harness.harness.listed(ready("alpha"))
        for name in ("alpha", "zz-absent"):
            code, reason, _, _ = await refused(issue(reader, name))
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "KUBECONFIGS_DENIED")
        async with reader.watching(include_kubeconfigs=True) as watching:
            assert error_fields(await watching.error())[1] == "KUBECONFIGS_DENIED"
        async with reader.watching() as watching:
            assert names((await watching.until_synced())[-1]) == {"alpha": False}
        info = await reader.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert list(info.credential_issuers) == []
    assert rules_harness.denials() == [("bank", "KUBECONFIGS_DENIED")] * 3


async def test_rule_limits_the_issuers_whose_credentials_a_caller_gets(tmp_path: Path) -> None:
    admin, viewer = Backend(), Backend()
    admin.name, viewer.name = "admin", "viewer"
    shop = rule("shop", ALL_CLUSTERS, terms=Terms(issuers=frozenset({"viewer"}), max_ttl_s=60.0))
    async with open_rules_harness(
        tmp_path, shop, rule("root", ALL_CLUSTERS), sources=[IssuerAssignment(admin), IssuerAssignment(viewer)]
    ) as rules_harness:
        rules_harness.harness.listed(ready("alpha"))
        async with rules_harness.caller("shop") as less, rules_harness.caller("root") as more:
            for guest, backend in ((less, viewer), (more, admin)):
                kubeconfig = json.loads((await issue(guest)).kubeconfig.kubeconfig)
                assert kubeconfig["users"][0]["user"]["token"] in backend.given
            info = await less.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert [issuer.name for issuer in info.credential_issuers] == ["viewer"]
            assert info.limits.max_kubeconfig_ttl.ToTimedelta().total_seconds() == 60


async def test_issued_kubeconfig_is_audited(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, SHOP, sources=[IssuerAssignment(Backend())]) as rules_harness,
        rules_harness.caller("shop") as shop,
    ):
        rules_harness.harness.listed(ready("alpha", env="prod"))
        token = json.loads((await issue(shop)).kubeconfig.kubeconfig)["users"][0]["user"]["token"]
    (line,) = rules_harness.harness.audited
    assert line["caller"]["listener"] == "shop"
    assert (line["event"], line["rule"], line["cluster"]) == ("kubeconfig issued", "shop", "alpha")
    assert line["incarnation"]
    assert line["expires_at"]
    assert line["fingerprint"]
    assert token not in json.dumps(rules_harness.harness.audited)


async def test_stream_gets_remaining_kubeconfigs_as_quota_refills(tmp_path: Path) -> None:
    count = 303
    each = QuotaLimits(streams=9, streams_each=9, per_minute_each=300)
    async with (
        open_rules_harness(tmp_path, SHOP, sources=[IssuerAssignment(Backend())], limits=each) as rules_harness,
        rules_harness.caller("shop") as shop,
        shop.watching(include_kubeconfigs=True) as watching,
    ):
        clock = rules_harness.harness.access.clock
        now = clock()
        # Frozen: otherwise the quota would refill while the snapshot is sent.
        rules_harness.harness.access.clock = lambda: now
        rules_harness.harness.listed(*(ready(f"p-{number}", env="prod") for number in range(count)))
        at_first = {name: has for batch in await watching.until_synced() for name, has in names(batch).items()}
        assert (len(at_first), sum(at_first.values())) == (count, 300)
        rules_harness.harness.access.clock = clock
        later: list[str] = []
        while len(later) < count - 300:
            later += event_texts([await watching.batch()])
        assert {line.split()[0] for line in later} == {"KUBECONFIG"}
        assert {line.split()[1] for line in later} == {name for name, has in at_first.items() if not has}
    assert rules_harness.denials() == [], "a wait for quota was audited as a denial"


async def test_limited_caller_gets_reason_codes_of_failing_credential_issuers(tmp_path: Path) -> None:
    """Messages of an issuer may name other clusters."""
    backend = Backend(scope=Kind.CLUSTER)
    backend.failure = BackendError("the issuer failed for zz-secret")
    root = rule("root", ALL_CLUSTERS)
    async with open_rules_harness(tmp_path, SHOP, root, sources=[IssuerAssignment(backend)]) as rules_harness:
        rules_harness.harness.listed(ready("alpha", env="prod"))
        async with rules_harness.caller("shop") as shop, rules_harness.caller("root") as other:
            errors = [await refused(issue(guest, "alpha")) for guest in (shop, other)]
            clusters = [await guest.stub.GetCluster(pb.GetClusterRequest(name="alpha")) for guest in (shop, other)]
            infos = [await guest.stub.GetServerInfo(pb.GetServerInfoRequest()) for guest in (shop, other)]
    assert {reason for _, reason, *_ in errors} == {"CREDENTIALS_UNAVAILABLE"}
    (source,), _ = (info.credential_issuers for info in infos)
    assert (source.healthy, source.message) == (False, "CREDENTIALS_UNAVAILABLE")
    for limited, whole in ((errors[0][2], errors[1][2]), map(str, clusters)):
        assert "zz-secret" not in limited
        assert "zz-secret" in whole
    assert "zz-secret" in str(infos[1])
    assert "zz-secret" not in str(infos[0])
