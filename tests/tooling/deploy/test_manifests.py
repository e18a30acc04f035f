"""The manifests: valid for the supported Kubernetes versions, and consistent with the daemon."""

import json
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from milo_discoveryd import __version__, cli
from milo_discoveryd.config import load
from milo_discoveryd.schema.values import UnixAddress
from tests.end_to_end.examples.building import go_program
from tests.tooling.deploy.manifests import (
    BUILT,
    DEPLOY,
    ROOT,
    TENANTS,
    WITH_DAEMON,
    arguments,
    containers,
    daemon,
    environment,
    of_kind,
    pod,
    with_components,
)
from tests.tooling.deploy.manifests import built as build
from tests.tooling.deploy.manifests import manifests as read
from tests.tooling.deploy.pod_security import violations
from tests.tooling.deploy.validators import validator

OLDEST, NEWEST = "1.29", "1.37"
# Kinds of the Prometheus operator and of cert-manager, which the schemas of Kubernetes don't have.
PROMETHEUS_KINDS = {"PodMonitor", "PrometheusRule"}
FOREIGN_KINDS = {*PROMETHEUS_KINDS, "Certificate"}

every_build = pytest.mark.parametrize("directory", BUILT, ids=lambda directory: directory.name)
every_pod = pytest.mark.parametrize("directory", WITH_DAEMON, ids=lambda directory: directory.name)


@pytest.mark.parametrize("directory", TENANTS, ids=lambda directory: directory.name)
def test_kustomizations_of_tenants_can_be_built(directory: Path) -> None:
    assert read(directory)


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, int]:
    """The number of valid manifests by directory, from one run of the validator, which takes long to start."""
    out = tmp_path_factory.mktemp("built")
    files = [out / f"{number}-{directory.name}.yaml" for number, directory in enumerate(BUILT)]
    for directory, file in zip(BUILT, files, strict=True):
        file.write_text(build(directory))
    return dict(zip(BUILT, strictly_valid(request.param, *files), strict=True))


@every_build
def test_manifests_are_strictly_valid(directory: Path, valid: dict[Path, int]) -> None:
    assert valid[directory] == sum(obj["kind"] not in FOREIGN_KINDS for obj in read(directory))


def strictly_valid(version: str, *files: Path) -> list[int]:
    """Validate files of manifests; return the number of manifests in each."""
    done = subprocess.run(
        [validator("kubernetes-validate"), "--strict", "-k", version, *files],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = (done.stdout + done.stderr).splitlines()
    assert {line.partition("kind ")[2].split()[0] for line in said if line.startswith("WARN")} <= FOREIGN_KINDS
    return [sum(line.startswith(f"INFO {file} ") for line in said) for file in files]


@every_pod
def test_pods_pass_the_restricted_pod_security_profile(directory: Path) -> None:
    assert list(violations(pod(directory))) == []


@pytest.mark.builds
def test_prometheus_operator_resources_have_only_known_fields() -> None:
    judge = go_program(Path(__file__).parent / "operator_kinds", "operator-kinds")
    manifests = "\n---\n".join(build(directory) for directory in BUILT)
    done = subprocess.run(judge, input=manifests, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.removesuffix(": valid") for line in done.stdout.splitlines()} == PROMETHEUS_KINDS
    wrong = manifests.replace("podMetricsEndpoints:", "podMetricEndpoints:")
    assert subprocess.run(judge, input=wrong, capture_output=True, text=True, check=False, timeout=60).returncode == 1


@pytest.mark.parametrize(
    ("mode", "group", "resource"),
    [
        ("project", "resourcemanager.miloapis.com", "projects"),
        ("project-control-plane", "infrastructure.miloapis.com", "projectcontrolplanes"),
    ],
)
def test_rbac_of_a_mode_allows_reading_its_resource_only(mode: str, group: str, resource: str) -> None:
    role = yaml.safe_load((DEPLOY / "base" / "rbac" / mode / "cluster-role.yaml").read_text())
    assert role["rules"] == [{"apiGroups": [group], "resources": [resource], "verbs": ["get", "list", "watch"]}]


@pytest.mark.parametrize(
    ("source", "file"), [("token-request", "role.yaml"), ("kubeconfig-secret", "cluster-role.yaml")]
)
def test_rbac_of_a_credential_issuer_matches_its_documentation(source: str, file: str) -> None:
    document = (ROOT / "docs" / "kubeconfigs.md").read_text()
    _, _, about = document.partition(f"### `{source}`")
    said = re.search(r"^```yaml\n(rules:\n.*?)^```", about, re.MULTILINE | re.DOTALL)
    assert said is not None
    role = yaml.safe_load((DEPLOY / "base" / "rbac" / source / file).read_text())
    assert role["rules"] == yaml.safe_load(said[1])["rules"]


def test_rbac_of_token_review_allows_creating_reviews_only() -> None:
    role = yaml.safe_load((DEPLOY / "base" / "rbac" / "token-review" / "cluster-role.yaml").read_text())
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]


@every_build
def test_bindings_refer_to_existing_roles_and_accounts(directory: Path) -> None:
    accounts = {
        (account["metadata"].get("namespace"), account["metadata"]["name"])
        for account in of_kind(directory, "ServiceAccount")
    }
    roles = {role["metadata"]["name"] for role in of_kind(directory, "ClusterRole")}
    for binding in of_kind(directory, "ClusterRoleBinding"):
        assert binding["roleRef"]["name"] in roles
        for subject in binding["subjects"]:
            assert subject["kind"] == "User" or (subject["namespace"], subject["name"]) in accounts


@every_pod
def test_cluster_scoped_objects_are_named_after_the_namespace_of_the_pods(directory: Path) -> None:
    """Two operators then have objects of their own, and deleting one operator does not delete the RBAC of the other."""
    found = [obj for kind in ("ClusterRole", "ClusterRoleBinding") for obj in of_kind(directory, kind)]
    [deployment] = of_kind(directory, "Deployment")
    for obj in found:
        assert f"-{deployment['metadata']['namespace']}" in obj["metadata"]["name"]


@every_pod
def test_daemon_accepts_the_arguments_and_environment_of_the_manifests(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: dict[str, Any] = {}
    container = daemon(directory)

    def note(**flags: Any) -> None:
        taken.update(flags)

    monkeypatch.setattr(cli.run, "callback", note)
    [command, *rest] = arguments(directory, container)
    done = CliRunner().invoke(cli.command, [command, *rest])
    assert done.exit_code == 0, done.output

    given = {name: value for name, value in taken.items() if value not in (None, ())}
    variables = environment(directory, container)
    if "MILO_DISCOVERYD_CONFIG" in variables:
        found = [config_map["data"].get("config.yaml") for config_map in of_kind(directory, "ConfigMap")]
        [content] = filter(None, found)
        variables["MILO_DISCOVERYD_CONFIG"] = str(tmp_path / "config.yaml")
        (tmp_path / "config.yaml").write_text(content)
    settings = load(given, variables, None)
    assert settings.title == variables["MILO_DISCOVERYD_MODE"]
    assert load({}, variables, None) == settings, "the checks in the container use these settings"
    assert settings.http_listen is not None
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.http_listen.port == ports["discovery-http"]


@every_pod
def test_sidecar_starts_before_the_operator_and_has_probes(directory: Path) -> None:
    container = daemon(directory)
    assert container in pod(directory)["initContainers"]
    assert container["restartPolicy"] == "Always"
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "discovery-http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "discovery-http"}
    assert "readinessProbe" not in container, "an unready sidecar would make the whole pod unready"


@every_pod
def test_subscribers_use_the_address_that_the_daemon_listens_on(directory: Path) -> None:
    volumes = {volume["name"]: volume for volume in pod(directory)["volumes"]}
    assert volumes["milo-discovery"]["emptyDir"]["medium"] == "Memory"
    addresses = {
        environment(directory, container).get("MILO_DISCOVERY_ADDRESS") for container in containers(directory)
    } - {None}
    [address] = addresses
    [listener] = load({"listen": (address,)}, {}, None).listen
    listen = listener.address
    assert isinstance(listen, UnixAddress)
    for container in containers(directory):
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", ())}
        if "milo-discovery" in mounts:
            # Not in the volume's root, which is world-writable and which the daemon refuses.
            assert listen.path.parent.parent == Path(mounts["milo-discovery"])


@pytest.mark.parametrize("directory", WITH_DAEMON, ids=lambda path: path.name)
def test_no_variable_of_the_manifests_has_an_empty_value(directory: Path) -> None:
    assert [
        variable["name"]
        for made in containers(directory)
        for variable in made.get("env", ())
        if variable.get("value") == ""
    ] == []


@pytest.mark.parametrize("page", ["tutorial.md", "tutorial-go.md"])
def test_tutorial_mounts_the_socket_directory_of_the_sidecar_component(page: str, overlay: Callable[..., Path]) -> None:
    found = re.search(
        r"^```yaml\n(name: operator\n.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    container = yaml.safe_load(found[1])
    directory = overlay("sidecar")
    address = environment(directory, daemon(directory))["MILO_DISCOVERY_ADDRESS"]
    assert {variable["name"]: variable["value"] for variable in container["env"]}["MILO_DISCOVERY_ADDRESS"] == address
    [mounted] = daemon(directory)["volumeMounts"]
    assert container["volumeMounts"] == [{**mounted, "readOnly": True}]


@every_pod
def test_socket_volume_is_writable_for_the_daemon_only(directory: Path) -> None:
    for container in containers(directory):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] == "milo-discovery":
                assert mount.get("readOnly", False) is (container["name"] != "milo-discoveryd"), container["name"]


@pytest.mark.parametrize("directory", [DEPLOY / "overlays" / "demo", DEPLOY / "examples" / "operator"], ids=str)
def test_state_directory_is_a_subdirectory_of_its_volume(directory: Path) -> None:
    """Every user may write to the root of an emptyDir, and a state file there would be refused."""
    [mount] = [mount for mount in daemon(directory)["volumeMounts"] if mount["name"] == "milo-discovery-state"]
    state = Path(environment(directory, daemon(directory))["MILO_DISCOVERYD_STATE_DIRECTORY"])
    assert Path(mount["mountPath"]) in state.parents


@every_build
def test_disruption_budget_never_blocks_a_node_drain(directory: Path) -> None:
    for budget in of_kind(directory, "PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]
        [deployment] = of_kind(directory, "Deployment")
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]


def test_network_policy_of_the_demo_denies_all_connections() -> None:
    [policy] = of_kind(DEPLOY / "overlays" / "demo", "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not policy["spec"].keys() & {"ingress", "egress"}


@every_pod
def test_containers_have_a_restricted_security_context(directory: Path) -> None:
    restricted(directory)


def restricted(directory: Path) -> None:
    for container in containers(directory):
        if "milo-discoveryd" not in container["image"]:
            continue
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert set(container["resources"]["limits"]) == {"memory"}, "a CPU limit would throttle the first list"
    assert pod(directory)["securityContext"]["fsGroup"] == 65532


@every_pod
def test_daemon_resources_exceed_the_measured_usage(directory: Path) -> None:
    usual = {**measured("sandbox"), **measured("churn")}
    given = daemon(directory)["resources"]
    assert quantity(given["requests"]["memory"]) > max(usual["churn.rss_mib"], usual["idle.probed.rss_mib"])
    assert quantity(given["requests"]["cpu"]) > usual["idle.probed.cpu_percent"] / 100
    assert quantity(given["limits"]["memory"]) > 2 * usual["sync_100k.peak_mib"]


def measured(run: str) -> dict[str, float]:
    """Return the figures of a benchmark run, from which docs/reviewers/performance.md is made."""
    figures: dict[str, float] = json.loads((ROOT / "bench" / "results" / f"{run}.json").read_text())["figures"]
    return figures


def quantity(text: str) -> float:
    """Parse a quantity as MiB or cores."""
    return float(text.removesuffix("Mi")) if text.endswith("Mi") else float(text.removesuffix("m")) / 1000


@every_pod
def test_images_have_the_package_version(directory: Path) -> None:
    ours = {container["image"] for container in containers(directory) if "milo-discoveryd" in container["image"]}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}


@every_pod
def test_selectors_match_the_daemon_pods(directory: Path) -> None:
    [deployment] = of_kind(directory, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    others = [made["spec"]["template"]["metadata"]["labels"].items() for made in of_kind(directory, "StatefulSet")]
    for monitor in of_kind(directory, "PodMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels
        of_daemon, of_objects = (endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"])
        assert of_daemon in {port["name"] for port in daemon(directory)["ports"]}
        publishers = [made for made in containers(directory) if made["name"] == "publish-objects"]
        assert all(of_objects in {port["name"] for port in made["ports"]} for made in publishers)
    for policy in of_kind(directory, "NetworkPolicy"):
        selected = policy["spec"]["podSelector"]["matchLabels"].items()
        assert any(selected <= each for each in (labels, *others))


@pytest.fixture
def overlay(tmp_path: Path) -> Callable[..., Path]:
    """A factory of kustomizations of an operator with given components."""
    return partial(with_components, tmp_path / "overlay")


def test_core_kubeconfig_component_selects_mode_project(overlay: Callable[..., Path]) -> None:
    directory = overlay("sidecar", "core-kubeconfig")
    variables = environment(directory, daemon(directory))
    assert variables["MILO_DISCOVERYD_MODE"] == "project"
    mounts = {mount["name"]: mount["mountPath"] for mount in daemon(directory)["volumeMounts"]}
    assert set(mounts) == {"milo-discovery", "milo-kubeconfig"}
    assert Path(variables["MILO_DISCOVERYD_DISCOVERY_KUBECONFIG"]).parent == Path(mounts["milo-kubeconfig"])


def test_cluster_names_component_restricts_access_to_the_metrics_port(overlay: Callable[..., Path]) -> None:
    directory = overlay("sidecar", "prometheus-monitoring", "prometheus-cluster-names")
    assert environment(directory, daemon(directory))["MILO_DISCOVERYD_HTTP_NAMES"] == "everyone"
    [policy] = of_kind(directory, "NetworkPolicy")
    [deployment] = of_kind(directory, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels


def test_client_component_copies_the_client_before_the_operator_starts(
    overlay: Callable[..., Path], tmp_path: Path
) -> None:
    directory = overlay("sidecar", "client")
    [copying] = [
        container for container in pod(directory)["initContainers"] if container["name"] == "milo-discovery-client"
    ]
    assert "restartPolicy" not in copying
    [mount] = copying["volumeMounts"]
    assert copying["command"] == ["copy-client", mount["mountPath"]]
    assert mount["name"] in {volume["name"] for volume in pod(directory)["volumes"]}
    (tmp_path / "built.yaml").write_text(build(directory))
    strictly_valid(OLDEST, tmp_path / "built.yaml")
    restricted(directory)
