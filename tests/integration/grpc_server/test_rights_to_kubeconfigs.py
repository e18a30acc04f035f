"""Authorization of kubeconfigs: sources, terms and quotas."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from milo_discovery._gen import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import Scope as Kind
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.rights.name_patterns import name_patterns as some
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.rights.rights import Rights, Terms
from milo_discoveryd.rights.scope import ALL_CLUSTERS, ClusterScope
from tests.integration.grpc_server.callers import PROD, CallerStub, error_fields, mode, open_rules_harness, rule
from tests.integration.grpc_server.conftest import Subscriber, event_texts, ready
from tests.unit.kubeconfigs.backend import Backend

__all__ = ["mode"]

READER = rule("bank", ALL_CLUSTERS, terms=None)
SHOP = rule("shop", PROD)


def issue(guest: CallerStub, cluster: str = "alpha") -> Any:
    return guest.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=cluster))


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str, float | None]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return error_fields(raised.value)


def names(batch: pb.WatchClustersResponse) -> dict[str, bool]:
    """Return the names in the batch that have a kubeconfig."""
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


async def test_rule_limits_credential_issuers(tmp_path: Path) -> None:
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
            assert [each.name for each in info.credential_issuers] == ["viewer"]
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


async def test_kubeconfig_quota_is_charged_before_minting(
    tmp_path: Path,
) -> None:
    backend = Backend(scope=Kind.CLUSTER)
    shop = rule("shop", ALL_CLUSTERS, terms=Terms(per_minute=2))
    async with open_rules_harness(
        tmp_path, shop, rule("root", ALL_CLUSTERS), sources=[IssuerAssignment(backend)]
    ) as rules_harness:
        rules_harness.harness.listed(*(ready(f"p-{number}") for number in range(4)))
        async with rules_harness.caller("shop") as guest, rules_harness.caller("root") as other:
            for number in range(2):
                await issue(guest, f"p-{number}")
            code, reason, _, retry_s = await refused(issue(guest, "p-2"))
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_KUBECONFIGS")
            assert retry_s == pytest.approx(30.0, abs=5)
            assert len(backend.given) == 2
            assert (await issue(other, "p-2")).kubeconfig.cluster == "p-2"
    assert rules_harness.denials() == [("shop", "TOO_MANY_KUBECONFIGS")]


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
        rules_harness.harness.access.clock = lambda: now  # the quota refills while the snapshot is sent
        rules_harness.harness.listed(*(ready(f"p-{number}", env="prod") for number in range(count)))
        at_first = {name: has for batch in await watching.until_synced() for name, has in names(batch).items()}
        assert (len(at_first), sum(at_first.values())) == (count, 300)
        rules_harness.harness.access.clock = clock
        later: list[str] = []
        while len(later) < count - 300:
            later += event_texts([await watching.batch()])
        assert {line.split()[0] for line in later} == {"KUBECONFIG"}
        assert {line.split()[1] for line in later} == {name for name, has in at_first.items() if not has}
    assert rules_harness.denials() == [], "a wait for quota is not a denial"


async def test_stream_ends_when_kubeconfigs_are_revoked(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, SHOP, sources=[IssuerAssignment(Backend())]) as rules_harness,
        rules_harness.caller("shop") as shop,
    ):
        rules_harness.harness.listed(ready("alpha", env="prod"))
        async with shop.watching(include_kubeconfigs=True) as watching, shop.watching() as other:
            assert names((await watching.until_synced())[-1]) == {"alpha": True}
            await other.until_synced()
            rules_harness.harness.service.change_rights(Rights((rule("shop", PROD, terms=None),)))
            assert error_fields(await watching.error())[1] == "KUBECONFIGS_DENIED"
            rules_harness.harness.seen(ready("beta", env="prod"))
            assert await other.events() == ["ENGAGED beta"], "a stream without kubeconfigs continues"


async def kubeconfig_of(watching: Subscriber, name: str) -> str:
    """Return the next kubeconfig for that cluster."""
    while True:
        for event in (await watching.batch()).events:
            if event.cluster.name == name and event.HasField("kubeconfig"):
                token = json.loads(event.kubeconfig.kubeconfig)["users"][0]["user"]["token"]
                assert isinstance(token, str)
                return token


async def test_stream_follows_change_of_credential_issuers(tmp_path: Path) -> None:
    admin, viewer = Backend(), Backend()
    admin.name, viewer.name = "admin", "viewer"
    async with (
        open_rules_harness(
            tmp_path, SHOP, sources=[IssuerAssignment(admin), IssuerAssignment(viewer)]
        ) as rules_harness,
        rules_harness.caller("shop") as shop,
        shop.watching(include_kubeconfigs=True) as watching,
    ):
        rules_harness.harness.listed(ready("alpha", env="prod"))
        assert await kubeconfig_of(watching, "alpha") in admin.given
        terms = Terms(issuers=frozenset({"viewer"}))
        rules_harness.harness.service.change_rights(Rights((rule("shop", PROD, terms=terms),)))
        assert await kubeconfig_of(watching, "alpha") in viewer.given


async def test_kubeconfig_is_not_renewed_after_scope_change(tmp_path: Path) -> None:
    backend = Backend(life_s=1.5, scope=Kind.CLUSTER)
    async with (
        open_rules_harness(tmp_path, SHOP, sources=[IssuerAssignment(backend)]) as rules_harness,
        rules_harness.caller("shop") as shop,
        shop.watching(include_kubeconfigs=True) as watching,
    ):
        rules_harness.harness.listed(ready("alpha", env="prod"), ready("beta", env="prod"))
        await watching.until_synced()
        rules_harness.harness.service.change_rights(Rights((rule("shop", ClusterScope(names=some(["beta"]))),)))
        seen: list[str] = []
        while seen.count("KUBECONFIG beta") < 3:
            seen += event_texts([await watching.batch()])
        after = seen[seen.index("DISENGAGED alpha REVOKED") + 1 :]
        assert set(after) == {"KUBECONFIG beta"}
        handed = [line["cluster"] for line in rules_harness.harness.audited if line["event"] == "kubeconfig issued"]
        assert handed.count("alpha") <= 1


async def test_limited_caller_gets_reason_codes_of_failing_credential_issuers(tmp_path: Path) -> None:
    """Messages of a source may name other clusters."""
    backend = Backend(scope=Kind.CLUSTER)
    backend.failure = BackendError("the source failed for zz-secret")
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
