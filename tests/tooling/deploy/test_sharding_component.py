"""The component `sharding`: replicas of an operator that share the clusters, in a Deployment or a StatefulSet."""

import os
from pathlib import Path

import pytest
import yaml

from milo_discoveryd.config import load
from milo_discoveryd.sharding.lease_client import REQUIRED_RULE
from milo_discoveryd.wiring.sharding import is_stable, member_name
from tests.tooling.deploy.manifests import DEPLOY, Manifest, built, of_kind, with_components
from tests.tooling.deploy.test_manifests import NEWEST, OLDEST, strictly_valid

KINDS = ("Deployment", "StatefulSet")
PUBLICATIONS = sorted(path.name.removeprefix("publish-") for path in (DEPLOY / "components").glob("publish-*"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def directory(kind: str, tmp_path: Path) -> Path:
    """A kustomization of an operator of that kind, with a daemon beside it and the component."""
    return with_components(tmp_path / "overlay", "sidecar", "sharding", kind=kind)


def workload(directory: Path, kind: str) -> Manifest:
    [found] = of_kind(directory, kind)
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_rendered_sharding_component_is_strictly_valid(directory: Path, version: str, tmp_path: Path) -> None:
    (tmp_path / "built.yaml").write_text(built(directory))
    assert strictly_valid(version, tmp_path / "built.yaml") == [5]


def test_replicas_of_a_workload_share_a_group_and_are_named_after_their_pods(directory: Path, kind: str) -> None:
    spec = workload(directory, kind)["spec"]
    assert spec["replicas"] == 3
    [daemon] = [
        container for container in spec["template"]["spec"]["initContainers"] if container["name"] == "milo-discoveryd"
    ]
    fields = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in daemon["env"]
        if "valueFrom" in variable
    }
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
    }
    given = {variable["name"]: variable["value"] for variable in daemon["env"] if "_SHARDING__" in variable["name"]}
    settings = load({}, given, None)
    assert settings.sharding.group == "operator"
    pod_name = {"Deployment": "example-operator-7d9c5b8f6d-x2x7q", "StatefulSet": "example-operator-0"}[kind]
    assert member_name(settings, {"POD_NAME": pod_name}) == pod_name
    assert is_stable(pod_name) is (kind == "StatefulSet")


@pytest.mark.parametrize("publication", PUBLICATIONS)
def test_replicas_of_a_group_publish_as_one_owner(directory: Path, kind: str, publication: str) -> None:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    added = os.path.relpath(DEPLOY / "components" / f"publish-{publication}", directory.resolve())
    kustomization["components"].append(added)
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    containers = workload(directory, kind)["spec"]["template"]["spec"]["containers"]
    [publisher] = [container for container in containers if container["name"] == f"publish-{publication}"]
    assert publisher["command"] == ["milo-discovery", "publish", publication], "the same --publisher in all replicas"


def test_rollout_replaces_one_replica_at_a_time(directory: Path, kind: str) -> None:
    spec = workload(directory, kind)["spec"]
    if kind == "Deployment":
        assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    else:
        assert "strategy" not in spec, "a StatefulSet has none, and replaces one pod at a time by default"


def test_disruption_budget_selects_the_replicas(directory: Path, kind: str) -> None:
    [budget] = of_kind(directory, "PodDisruptionBudget")
    assert budget["spec"]["selector"] == workload(directory, kind)["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


def test_role_allows_what_the_daemon_requires_on_leases_of_its_namespace(directory: Path) -> None:
    [role] = of_kind(directory, "Role")
    [binding] = of_kind(directory, "RoleBinding")
    [rule] = role["rules"]
    verbs = " and ".join([", ".join(rule["verbs"][:-1]), rule["verbs"][-1]])
    assert f"{verbs} on {rule['resources'][0]}.{rule['apiGroups'][0]} in this namespace" == REQUIRED_RULE
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "operators"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not of_kind(directory, "ClusterRole")


def test_operators_in_one_namespace_have_separate_permissions_and_disruption_budgets(
    directory: Path, kind: str, tmp_path: Path
) -> None:
    other = with_components(tmp_path / "other", "sidecar", "sharding", kind=kind)
    operator = other / "operator.yaml"
    operator.write_text(operator.read_text().replace("example-operator", "other-operator"))
    for added in ("Role", "RoleBinding", "PodDisruptionBudget"):
        names = [obj["metadata"]["name"] for path in (directory, other) for obj in of_kind(path, added)]
        assert names == ["milo-discoveryd-sharding-example-operator", "milo-discoveryd-sharding-other-operator"]
    for path, account in ((directory, "example-operator"), (other, "other-operator")):
        [binding] = of_kind(path, "RoleBinding")
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "operators"}]
        assert binding["roleRef"]["name"] == f"milo-discoveryd-sharding-{account}"
        [budget] = of_kind(path, "PodDisruptionBudget")
        assert budget["spec"]["selector"] == {"matchLabels": {"app.kubernetes.io/name": account}}
