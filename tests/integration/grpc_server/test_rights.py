"""Authorization: callers see the clusters of their rule, and nothing of others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights import quota
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.rights import Rights, RightsRule
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope
from milo_kube.label_selector import parse
from tests.integration.grpc_server.callers import (
    PROD,
    CallerStub,
    RulesHarness,
    error_fields,
    form,
    open_rules_harness,
    rule,
)
from tests.integration.grpc_server.conftest import event_texts, not_ready, ready
from tests.support.eventually import LIMIT_S, eventually

__all__ = ["form"]

SECRET = "zz-secret"
SHOP, BANK, ROOT = rule("shop", PROD), rule("bank", ClusterScope(parse("env=dev"))), rule("root", ALL_CLUSTERS)


@pytest.fixture
async def rules_harness(tmp_path: Path) -> AsyncIterator[RulesHarness]:
    async with open_rules_harness(tmp_path, SHOP, BANK, ROOT) as made:
        made.harness.listed(
            ready("alpha", env="prod"),
            ready("beta", env="prod"),
            ready(SECRET, env="dev", code="zz-label"),
        )
        yield made


async def error(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


# --- visibility ---


async def test_stream_is_limited_to_scope_regardless_of_the_filter(rules_harness: RulesHarness) -> None:
    async with rules_harness.caller("shop") as shop, rules_harness.caller("root") as root:
        async with shop.watching() as mine, root.watching() as all_of_it:
            assert event_texts(await mine.until_synced()) == ["ENGAGED alpha", "ENGAGED beta"]
            assert len(event_texts(await all_of_it.until_synced())) == 3
        for asked in (
            pb.ClusterFilter(names=[SECRET]),
            pb.ClusterFilter(label_selector="env=dev"),
            pb.ClusterFilter(label_selector="env notin (prod)"),
        ):
            async with shop.watching(filter=asked) as guessing:
                assert event_texts(await guessing.until_synced()) == []
        async with shop.watching(filter=pb.ClusterFilter(names=["alpha", SECRET])) as some:
            assert event_texts(await some.until_synced()) == ["ENGAGED alpha"]


async def test_list_get_and_counts_are_limited_to_scope(rules_harness: RulesHarness) -> None:
    rules_harness.harness.seen(not_ready("gamma"), ready("delta", env="dev"))
    async with rules_harness.caller("shop") as shop, rules_harness.caller("root") as root:
        listed = await shop.stub.ListClusters(pb.ListClustersRequest(page_size=1))
        assert (listed.total_size, listed.clusters[0].name) == (2, "alpha")
        info, whole = [await caller.stub.GetServerInfo(pb.GetServerInfoRequest()) for caller in (shop, root)]
        assert (info.counts.engaged, info.counts.not_ready, info.counts.subscribers) == (2, 0, 0)
        assert (whole.counts.engaged, whole.counts.not_ready) == (4, 1)
        assert (await shop.stub.GetCluster(pb.GetClusterRequest(name="alpha"))).engagement.engaged


# --- enumeration ---


async def test_calls_for_an_invisible_cluster_are_answered_like_calls_for_an_unknown_name(
    rules_harness: RulesHarness,
) -> None:
    def calls(guest: CallerStub, name: str) -> list[Any]:
        return [
            guest.stub.GetCluster(pb.GetClusterRequest(name=name)),
            guest.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name)),
            guest.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name, incarnation="x")),
            guest.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster=name, format=pb.KUBECONFIG_FORMAT_EXEC)),
        ]

    async with rules_harness.caller("shop") as shop:
        hidden = [error_fields(await error(call)) for call in calls(shop, SECRET)]
        absent = [error_fields(await error(call)) for call in calls(shop, "zz-absent")]
        assert [(code, reason, words.replace(SECRET, "NAME")) for code, reason, words, _ in hidden] == [
            (code, reason, words.replace("zz-absent", "NAME")) for code, reason, words, _ in absent
        ]
        assert {code for code, *_ in hidden} == {grpc.StatusCode.NOT_FOUND}
        rules_harness.harness.seen(not_ready(SECRET))
        after = [error_fields(await error(call)) for call in calls(shop, SECRET)]
        assert after == hidden, "the disengagement of the hidden cluster changed the responses"
    assert len(rules_harness.denials()) == 12
    assert set(rules_harness.denials()) == {("shop", "NEVER_SEEN"), ("shop", "NOT_ENGAGED")}


async def test_get_cluster_takes_as_long_for_an_invisible_cluster_as_for_an_unknown_name(
    rules_harness: RulesHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls the handler without a network, so that only the handler is measured."""
    service, caller = rules_harness.harness.service, Caller(listener="shop")

    async def once(name: str) -> float:
        began = time.perf_counter()
        with pytest.raises(Exception, match="not known"):
            await service.get_cluster(pb.GetClusterRequest(name=name), caller)
        return time.perf_counter() - began

    hidden, absent = [], []
    monkeypatch.setattr(quota, "MISS_BURST", 1000)
    for _ in range(300):  # alternating, so that other load on the machine affects both
        hidden.append(await once(SECRET))
        absent.append(await once("zz-absent"))
    fastest, other = min(hidden), min(absent)
    assert max(fastest, other) < 1.5 * min(fastest, other)


async def test_name_enumeration_is_throttled_without_effect_on_other_callers(
    rules_harness: RulesHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "MISS_BURST", 5)
    async with rules_harness.caller("shop") as shop, rules_harness.caller("bank") as bank:
        began = time.monotonic()
        guesses = [
            asyncio.create_task(error(shop.stub.GetCluster(pb.GetClusterRequest(name=f"zz-{number}"))))
            for number in range(10)
        ]
        assert (await bank.stub.GetCluster(pb.GetClusterRequest(name=SECRET))).engagement.engaged
        assert (await shop.stub.GetCluster(pb.GetClusterRequest(name="alpha"))).engagement.engaged
        assert {error_fields(failure)[1] for failure in await asyncio.gather(*guesses)} == {"NEVER_SEEN"}
        assert time.monotonic() - began > 0.4


async def test_calls_that_are_denied_or_resume_from_revisions_of_other_callers_are_throttled(
    rules_harness: RulesHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "MISS_BURST", 0)  # even the first call is delayed, by a tenth of a second
    async with (
        rules_harness.caller("shop") as shop,
        rules_harness.caller("root") as root,
        rules_harness.caller("nobody") as nobody,
    ):
        of_root = await revision(root)
        for refused in (shop.watching(resume_revision=of_root), nobody.watching()):
            began = time.monotonic()
            async with refused as watching:
                with suppress(grpc.aio.AioRpcError):
                    await watching.until_synced()
            assert time.monotonic() - began >= 0.1
    assert rules_harness.denials() == [("shop", "REVISION_OF_ANOTHER"), ("nobody", "NO_RULE")]


# --- callers without a rule ---


@pytest.mark.parametrize(
    ("rules", "reason"), [((ROOT,), "NO_RULE"), ((rule("nobody", NO_CLUSTERS), ROOT), "DENIED_BY_RULE")]
)
async def test_calls_of_a_caller_without_a_rule_or_with_no_clusters_are_denied(
    rules_harness: RulesHarness, rules: tuple[RightsRule, ...], reason: str
) -> None:
    rules_harness.harness.service.change_rights(Rights(rules))
    async with rules_harness.caller("nobody") as nobody:
        errors = [
            await error(nobody.stub.ListClusters(pb.ListClustersRequest())),
            await error(nobody.stub.GetCluster(pb.GetClusterRequest(name="alpha"))),
            await error(nobody.stub.IssueKubeconfig(pb.IssueKubeconfigRequest(cluster="alpha"))),
            await error(nobody.stub.GetServerInfo(pb.GetServerInfoRequest())),
            await error(nobody.stub.ListClusters(pb.ListClustersRequest(page_token="x"))),
            await error(nobody.stub.GetCluster(pb.GetClusterRequest(name="x" * 10_000))),
            await error(nobody.stub.IssueKubeconfig(pb.IssueKubeconfigRequest())),
        ]
        async with nobody.watching() as watching:
            errors.append(await watching.error())
    assert {error_fields(failure)[:2] for failure in errors} == {(grpc.StatusCode.PERMISSION_DENIED, reason)}
    assert {"(listener nobody)" in error_fields(failure)[2] for failure in errors} == {True}
    assert rules_harness.denials() == [("nobody", reason)] * 8
    assert max(len(line.get("cluster", "")) for line in rules_harness.harness.audited) == 253 + 64


# --- changes of the rules ---


async def test_change_of_authorization_rules_applies_to_running_streams_without_reset(
    rules_harness: RulesHarness,
) -> None:
    async with rules_harness.caller("shop") as shop, shop.watching() as mine, rules_harness.caller("root") as root:
        before = (await mine.until_synced())[-1]
        async with root.watching() as other:
            await other.until_synced()
            began = time.monotonic()
            rules_harness.harness.service.change_rights(
                Rights((rule("shop", ClusterScope(names=name_patterns(["beta", "zz-*"]))), ROOT))
            )
            batch = await mine.batch()
            assert time.monotonic() - began < 5
            assert event_texts([batch]) == ["DISENGAGED alpha REVOKED", f"ENGAGED {SECRET}"]
            assert (batch.reset, batch.synced, batch.previous_revision) == (False, True, before.revision)
            rules_harness.harness.seen(
                ready("alpha", version="2", env="prod", n="1"), ready(SECRET, version="2", env="dev", n="1")
            )
            assert await mine.events() == [f"UPDATED {SECRET}"]
            assert await other.events() == ["UPDATED alpha", f"UPDATED {SECRET}"], (
                "a caller with unchanged rights received other events"
            )


@pytest.mark.parametrize(
    ("rules", "denial"), [((ROOT,), "NO_RULE"), ((rule("shop", NO_CLUSTERS), ROOT), "DENIED_BY_RULE")]
)
async def test_revoked_caller_gets_disengagements_then_permission_denied(
    rules_harness: RulesHarness, rules: tuple[RightsRule, ...], denial: str
) -> None:
    async with rules_harness.caller("shop") as shop, shop.watching() as mine:
        await mine.until_synced()
        rules_harness.harness.service.change_rights(Rights(rules))
        assert await mine.events() == ["DISENGAGED alpha REVOKED", "DISENGAGED beta REVOKED"]
        code, reason, _, _ = error_fields(await mine.error())
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, denial)
    assert rules_harness.denials() == [("shop", denial)]


async def test_stream_waiting_for_sync_uses_current_rights(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, SHOP) as rules_harness,
        rules_harness.caller("shop") as shop,
        shop.watching() as mine,
    ):
        await mine.batch()
        rules_harness.harness.service.change_rights(
            Rights((BANK, rule("shop", ClusterScope(names=name_patterns(["beta"])))))
        )
        rules_harness.harness.listed(ready("alpha", env="prod"), ready("beta", env="prod"))
        assert event_texts(await mine.until_synced()) == ["ENGAGED beta"]


async def test_page_token_is_rejected_after_authorization_rules_change(rules_harness: RulesHarness) -> None:
    async with rules_harness.caller("shop") as shop:
        first = await shop.stub.ListClusters(pb.ListClustersRequest(page_size=1))
        rules_harness.harness.service.change_rights(Rights((rule("shop", ALL_CLUSTERS),)))
        code, _, words, _ = error_fields(
            await error(shop.stub.ListClusters(pb.ListClustersRequest(page_size=1, page_token=first.next_page_token)))
        )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "list again from the first page" in words


# --- resuming ---


async def revision(guest: CallerStub, **request: object) -> str:
    async with guest.watching(**request) as watching:
        return str((await watching.until_synced())[-1].revision)


async def test_stream_that_resumes_from_revision_of_other_caller_or_filter_gets_snapshot(
    rules_harness: RulesHarness,
) -> None:
    only_alpha = pb.ClusterFilter(names=["alpha"])
    async with (
        rules_harness.caller("shop") as shop,
        rules_harness.caller("root") as root,
        rules_harness.caller("bank") as bank,
    ):
        of_root, of_shop, filtered = await revision(root), await revision(shop), await revision(shop, filter=only_alpha)
        for guest, known, seen in (
            (shop, of_root, ["ENGAGED alpha", "ENGAGED beta"]),
            (bank, of_shop, [f"ENGAGED {SECRET}"]),
            (shop, filtered, ["ENGAGED alpha", "ENGAGED beta"]),
        ):
            async with guest.watching(resume_revision=known) as watching:
                batches = await watching.until_synced()
                assert (batches[0].reset, event_texts(batches)) == (True, seen)
    assert rules_harness.denials() == [(name, "REVISION_OF_ANOTHER") for name in ("shop", "bank", "shop")]


# --- stream limits ---


async def test_streams_are_limited_by_the_rule_of_their_caller(tmp_path: Path) -> None:
    async with (
        open_rules_harness(tmp_path, rule("shop", ALL_CLUSTERS, streams=1), ROOT) as rules_harness,
        rules_harness.caller("shop") as shop,
    ):
        rules_harness.harness.listed(ready("alpha"))
        async with shop.watching() as first:
            await first.until_synced()
            async with shop.watching() as second:
                code, reason, _, retry_s = error_fields(await second.error())
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
            assert retry_s
            assert retry_s > 0
            async with rules_harness.caller("root") as root, root.watching() as other:
                assert event_texts(await other.until_synced()) == ["ENGAGED alpha"]
        await eventually(lambda: not rules_harness.harness.service.streams)
        async with shop.watching() as third:
            assert event_texts(await third.until_synced()) == ["ENGAGED alpha"]


async def test_change_of_authorization_rules_applies_to_an_idle_stream_at_once(rules_harness: RulesHarness) -> None:
    async with rules_harness.caller("shop") as shop, shop.watching(heartbeat_interval=Duration(seconds=3600)) as mine:
        await mine.until_synced()
        rules_harness.harness.service.change_rights(
            Rights((rule("shop", ClusterScope(names=name_patterns(["beta"]))),))
        )
        async with asyncio.timeout(LIMIT_S):
            assert await mine.events() == ["DISENGAGED alpha REVOKED"]
