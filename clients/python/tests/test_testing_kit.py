"""Tests of the test kit for operators: control planes, FakeDiscovery, fake_clock, eventually and injected faults."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import kubernetes.aio.client
import pytest

from milo_discovery import DisengageReason, EngagedCluster, Fleet
from milo_discovery.testing import (
    ControlPlane,
    FakeDiscovery,
    KindNotServedError,
    MiloSandbox,
    ObjectNotFoundError,
    RefusedError,
    eventually,
    eventually_blocking,
    fake_clock,
)

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: v1
kind: Namespace
metadata: {name: team}
"""


def widget(name: str = "one", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name, **metadata}, "spec": {"a": 1}}


ONE = {"metadata": {"name": "one"}}


@pytest.fixture
def alpha(milo_sandbox: MiloSandbox) -> ControlPlane:
    return milo_sandbox.create_control_planes("alpha")[0]


def test_control_plane_stores_objects_of_an_installed_kind(alpha: ControlPlane, tmp_path: Path):
    with pytest.raises(ObjectNotFoundError, match=r"example\.com"):
        alpha.create(widget())
    for read in (alpha.find, alpha.get):
        with pytest.raises(KindNotServedError, match=r"alpha does not serve example\.com/v1/widgets: install"):
            read("example.com/v1/widgets", "one")
    for read_one_or_all in (lambda: alpha.find("v1/configmap", "one"), lambda: alpha.list("v1/configmap")):
        with pytest.raises(KindNotServedError, match="alpha does not serve v1/configmap: install"):
            eventually_blocking(read_one_or_all)
    (tmp_path / "crd.yaml").write_text(DEFINITION)
    installed = alpha.install(tmp_path / "crd.yaml")
    assert [obj["kind"] for obj in installed] == ["CustomResourceDefinition", "Namespace"]
    created = alpha.create(widget(finalizers=["example.com/hold"]))
    assert created["metadata"]["namespace"] == "default"
    alpha.create(widget("two", namespace="team", labels={"tier": "gold"}))
    assert [obj["metadata"]["name"] for obj in alpha.list("example.com/v1/widgets")] == ["one", "two"]
    assert len(alpha.list("example.com/v1/widgets", namespace="team")) == 1
    assert len(alpha.list("example.com/v1/widgets", label_selector="tier=gold")) == 1
    alpha.patch("example.com/v1/widgets", "one", {"status": {"ok": True}}, subresource="status")
    assert alpha.get("example.com/v1/widgets", "one")["status"] == {"ok": True}
    alpha.delete("example.com/v1/widgets", "one")
    assert alpha.get("example.com/v1/widgets", "one")["metadata"]["deletionTimestamp"]
    alpha.patch("example.com/v1/widgets", "one", {"metadata": {"finalizers": None}})
    assert alpha.find("example.com/v1/widgets", "one") is None


def test_kind_without_a_version_is_refused(alpha: ControlPlane):
    for call in (lambda: alpha.list("nope"), lambda: alpha.get("nope", "one"), lambda: alpha.create("nope", ONE)):
        with pytest.raises(ValueError, match=r"^'nope' does not name a resource: write GROUP/VERSION/PLURAL"):
            call()


def test_control_plane_applies_manifests_and_raises_refused_error(alpha: ControlPlane):
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "1"}}
    alpha.apply(manifest)
    assert alpha.apply({**manifest, "data": {"b": "2"}})["data"] == {"b": "2"}
    with pytest.raises(RefusedError) as refused:
        alpha.create(manifest)
    assert (refused.value.code, refused.value.reason) == (409, "AlreadyExists")


async def test_fleet_of_fake_discovery_has_working_api_clients(milo_sandbox: MiloSandbox):
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    discovery = FakeDiscovery(alpha)
    fleet = Fleet(discovery)
    seen: dict[str, list[str]] = {}

    @fleet.on_engage
    async def operate(cluster: EngagedCluster) -> None:
        async with cluster.api_client() as api:
            seen[cluster.name] = [
                namespace.metadata.name
                for namespace in (await kubernetes.aio.client.CoreV1Api(api).list_namespace()).items
            ]
            await asyncio.Event().wait()

    async with fleet:
        await fleet.synced()
        assert await eventually(lambda: seen.get("alpha")) == ["default", "milo-system"]
        discovery.engage(beta, labels={"env": "prod"})
        await eventually(lambda: "beta" in seen)
        assert fleet.get("beta").current.labels == {"env": "prod"}
        discovery.update("beta", suspended=True)
        await eventually(lambda: fleet.get("beta").current.suspended)
        before = fleet.get("beta").kubeconfig
        discovery.renew("beta")
        await eventually(lambda: fleet.get("beta").kubeconfig != before)
        discovery.disengage("alpha", DisengageReason.NOT_READY)
        await eventually(lambda: set(fleet.clusters) == {"beta"})


async def test_fake_clock_advances_timers_of_the_event_loop():
    loop = asyncio.get_running_loop()
    with fake_clock() as clock:
        before = loop.time()
        sleeping = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        clock.advance(timedelta(minutes=59))
        await asyncio.sleep(0)
        assert not sleeping.done()
        clock.advance(timedelta(minutes=1))
        async with asyncio.timeout(30):
            await sleeping
        assert loop.time() >= before + 3600
        sleeping = asyncio.create_task(asyncio.sleep(0.01))
        await asyncio.sleep(0)
    async with asyncio.timeout(30):  # an operator goes on after the block
        await sleeping


async def test_eventually_returns_the_first_true_result():
    results = iter([0, "", "yes"])
    assert await eventually(lambda: next(results)) == "yes"

    async def slowly() -> str:
        await asyncio.sleep(0)
        return "slowly"

    assert await eventually(slowly) == "slowly"


async def test_eventually_ends_if_its_check_does_not():
    with pytest.raises(TimeoutError, match="the check did not return in time"):
        await eventually(asyncio.Event().wait, within_s=0.05)


async def test_eventually_retries_failed_assertions_and_raises_the_last_one():
    calls = 0

    def check() -> bool:
        nonlocal calls
        calls += 1
        assert calls > 2, f"call {calls}"
        return True

    assert await eventually(check)
    calls = -1_000_000
    with pytest.raises(AssertionError, match="call"):
        await eventually(check, within_s=0.0)
    with pytest.raises(TimeoutError, match="still returned 0 after"):
        await eventually(lambda: 0, within_s=0.0)


def test_eventually_blocking_works_without_an_event_loop():
    results = iter([0, 1])
    assert eventually_blocking(lambda: next(results)) == 1
    with pytest.raises(ZeroDivisionError):
        eventually_blocking(lambda: 1 // 0, within_s=0.0)
    with pytest.raises(TimeoutError):
        eventually_blocking(lambda: None, within_s=0.0)


async def test_fake_discovery_disengages_a_cluster_at_once_if_the_fleet_does_not_confirm_releases(
    alpha: ControlPlane,
):
    discovery = FakeDiscovery(alpha)
    fleet, seen = Fleet(discovery, confirm_releases=False), []

    @fleet.on_disengage
    async def disengaged(cluster: EngagedCluster) -> None:
        seen.append((cluster.disengage_reason, cluster.draining))

    async with fleet:
        await fleet.synced()
        discovery.drain("alpha")
        await eventually(lambda: seen == [(DisengageReason.NOT_READY, None)])


async def test_fake_discovery_drains_a_cluster_until_it_is_released(alpha: ControlPlane):
    discovery = FakeDiscovery(alpha)
    fleet, ended = Fleet(discovery), []

    @fleet.on_engage
    async def operate(cluster: EngagedCluster) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(cluster.name)

    async with fleet:
        await fleet.synced()
        discovery.drain("alpha", DisengageReason.MOVED)
        await eventually(lambda: not fleet.clusters)
        assert (ended, discovery.released) == (["alpha"], ["alpha"])


BUILT_IN_KINDS = [
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("batch/v1", "Job", "jobs"),
    ("v1", "Service", "services"),
    ("networking.k8s.io/v1", "Ingress", "ingresses"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "Endpoints", "endpoints"),
    ("v1", "ResourceQuota", "resourcequotas"),
    ("v1", "LimitRange", "limitranges"),
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
]
CLUSTER_SCOPED_KINDS = [
    ("v1", "PersistentVolume", "persistentvolumes"),
    ("v1", "Node", "nodes"),
    ("storage.k8s.io/v1", "StorageClass", "storageclasses"),
    ("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses"),
]


async def test_fake_discovery_engages_a_cluster_once_whose_ownership_was_lost(alpha: ControlPlane):
    discovery = FakeDiscovery(alpha)
    fleet, operated = Fleet(discovery), list[EngagedCluster]()

    @fleet.on_engage
    async def operate(cluster: EngagedCluster) -> None:
        operated.append(cluster)
        await asyncio.Event().wait()

    async with fleet:
        await eventually(lambda: len(operated) == 1)
        discovery.lose_ownership()
        discovery.engage(alpha)
        await eventually(lambda: len(operated) == 2)
        discovery.restart()
        await eventually(lambda: fleet.get(alpha.project).current.incarnation == "3")
        assert fleet.get(alpha.project) is operated[-1]


async def test_fake_discovery_is_neither_connected_nor_synced_without_its_ownership(alpha: ControlPlane):
    discovery = FakeDiscovery(alpha)
    async with (fleet := Fleet(discovery)):
        await fleet.synced()
        discovery.lose_ownership()
        await eventually(lambda: not fleet.discovery.connected)
        assert (fleet.discovery.synced, [*fleet.clusters]) == (False, [])
        discovery.restart()
        await eventually(lambda: fleet.discovery.synced)
        assert (fleet.discovery.connected, [*fleet.clusters]) == (True, [alpha.project])


async def test_fake_discovery_replaces_a_cluster_by_another_uid(alpha: ControlPlane):
    discovery = FakeDiscovery(alpha)
    first, second = discovery.engage(alpha).uid, discovery.engage(alpha).uid
    assert first != second
    discovery.disengage(alpha.project, DisengageReason.NOT_READY)
    assert discovery.engage(alpha).uid == second
    assert discovery.engage(alpha, uid="given").uid == "given"


def test_control_plane_serves_common_built_in_kinds(alpha: ControlPlane):
    for version, kind, plural in BUILT_IN_KINDS + CLUSTER_SCOPED_KINDS:
        manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": {"any": {"field": [1]}}}
        alpha.create(manifest)
        stored = alpha.get(f"{version}/{plural}", "web")
        assert stored["spec"] == {"any": {"field": [1]}}
        assert ("namespace" in stored["metadata"]) == ((version, kind, plural) in BUILT_IN_KINDS)


def test_injected_faults_apply_to_one_kind_and_verb_of_one_project(milo_sandbox: MiloSandbox):
    alpha, beta = milo_sandbox.create_control_planes("alpha", "beta")
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}}
    milo_sandbox.fail("alpha", "create", "v1/configmaps", status=409, times=2)
    for _ in range(2):
        with pytest.raises(RefusedError, match="409") as refused:
            alpha.create(made)
        assert refused.value.reason == "Conflict"
    beta.create(made)
    alpha.create(made)
    milo_sandbox.fail("alpha", "*", "v1/secrets", status=403)
    with pytest.raises(RefusedError, match=r"403 .*secrets"):
        alpha.list("v1/secrets")
    milo_sandbox.fail("alpha", "get", "v1/configmaps", status=429)
    with pytest.raises(RefusedError, match="429"):
        alpha.get("v1/configmaps", "made")
    milo_sandbox.stop_failing()
    assert alpha.list("v1/secrets") == []
    alpha.get("v1/configmaps", "made")


def test_injected_fault_of_create_refuses_an_apply_that_creates(milo_sandbox: MiloSandbox):
    [alpha] = milo_sandbox.create_control_planes("alpha")
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}}
    milo_sandbox.fail("alpha", "create", "v1/configmaps", status=403)
    with pytest.raises(RefusedError, match="403"):
        alpha.apply(made)
    milo_sandbox.stop_failing()
    alpha.apply(made)
    milo_sandbox.fail("alpha", "create", "v1/configmaps", status=403)
    alpha.apply({**made, "data": {"a": "b"}})
    milo_sandbox.fail("alpha", "patch", "v1/configmaps", status=403)
    with pytest.raises(RefusedError, match="403"):
        alpha.apply(made)


STREAMING_LIST = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}


def test_injected_fault_of_list_refuses_a_streaming_list(milo_sandbox: MiloSandbox):
    milo_sandbox.create_control_planes("alpha")
    path = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/alpha/control-plane/api/v1/secrets?timeoutSeconds=1&"
    milo_sandbox.fail("alpha", "list", "v1/secrets", status=403)
    with pytest.raises(RefusedError, match="403"):
        milo_sandbox._http.request("GET", path + urlencode(STREAMING_LIST))
    with pytest.raises(ValueError, match="Expecting value"):  # the body of a watch without events is empty
        milo_sandbox._http.request("GET", path + "watch=1")


async def test_hanging_request_gets_its_response_after_stop_failing(milo_sandbox: MiloSandbox):
    [alpha] = milo_sandbox.create_control_planes("alpha")
    milo_sandbox.fail("alpha", "list", "v1/secrets", status="hang", times=1)
    hanging = asyncio.create_task(asyncio.to_thread(alpha.list, "v1/secrets"))
    await eventually(lambda: milo_sandbox.hanging == 1)
    assert await asyncio.to_thread(alpha.list, "v1/secrets") == []
    assert not hanging.done()
    milo_sandbox.stop_failing()
    assert await hanging == []


REFUSED_FAULTS: list[tuple[tuple[Any, ...], str]] = [
    (("alpha", "read", "v1/secrets", 403), "verb 'read' is not one of get, list, watch, create"),
    (("alpha", "get", "secrets", 403), "'secrets' does not name a resource"),
    (("alpha", "get", "v1/secrets", 200), "status 200 is not one of"),
    (("alpha", "get", "v1/secret", 403), "alpha does not serve v1/secret"),
    (("alpah", "get", "v1/secrets", 403), "project 'alpah' does not exist"),
]


def test_fault_for_an_unknown_project_or_with_an_invalid_argument_is_refused(milo_sandbox: MiloSandbox):
    milo_sandbox.create_control_planes("alpha")
    for (project, verb, kind, status), message in REFUSED_FAULTS:
        with pytest.raises((ValueError, KindNotServedError), match=message):
            milo_sandbox.fail(project, verb, kind, status=status)
    for times in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match=rf"times {times!r} is not an integer of at least 1; leave it out"):
            milo_sandbox.fail("alpha", "get", "v1/secrets", status=403, times=times)  # type: ignore[arg-type]
