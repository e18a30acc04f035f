"""The example `multi-tenant` with Kyverno and Flux: a Project gets an API server of its own, and is deleted with it."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.cluster import git_server, parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.conftest import a_node
from tests.end_to_end.cluster.installations import FLUX_NAMESPACE, image_of, install_flux, install_kyverno
from tests.end_to_end.cluster.node import ADDRESS, Node
from tests.end_to_end.cluster.pods import operator, started, watcher
from tests.end_to_end.cluster.test_examples import running
from tests.end_to_end.cluster.test_pods import ended, eventually
from tests.end_to_end.real.programs import OWN_DEFINITIONS
from tests.tooling.deploy.manifests import MULTI_TENANT, ROOT, manifests

pytestmark = pytest.mark.timeout(3600)  # the first run builds Kyverno and Flux

MODES = {"project": "outside", "project-control-plane": "inside"}
"""The namespace of the daemon in each mode."""
DEFINITIONS = [OWN_DEFINITIONS / f"{plural}.yaml" for plural in ("projects", "projectcontrolplanes")]
POLICIES = [MULTI_TENANT / name for name in ("policies", "projects")]
PROGRAMS = {"etcd", "kube-apiserver", "kube-controller-manager", "kubectl"}
IMAGES = [*(f"registry.k8s.io/{name}" for name in sorted(PROGRAMS - {"kubectl"})), "tools"]
GIT_PORT = 9418


@pytest.fixture(scope="module")
def node(pytestconfig: pytest.Config) -> Iterator[Node]:
    """A node of its own, since the policies also act on the objects of other tests."""
    with a_node(pytestconfig, f"multi-tenant-{os.getpid()}") as node:
        yield node


@pytest.fixture(scope="module")
def daemons(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kyverno with the policies, Flux with a repository, and a daemon in each mode."""
    directory = tmp_path_factory.mktemp("multi-tenant")
    definitions = "\n---\n".join(path.read_text() for path in DEFINITIONS)
    node.kubectl("apply", "-f", "-", given=definitions)
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=definitions)
    install_kyverno(node, directory / "kyverno")
    install_flux(node, directory / "flux")
    programs = [program for program in parts.programs(say) if program.name in PROGRAMS]
    image = image_of(node, "tenant", programs, directory / "tenant")
    apply_policies(node)
    with (
        serving(node, tenants_repository(directory / "repository", image)),
        started(node, of_mode("project", directory)),
        started(node, of_mode("project-control-plane", directory)),
    ):
        yield


def apply_policies(node: Node) -> None:
    """Apply the policies once Kyverno has the rights that they need, and wait until they take effect."""
    objects = [obj for directory in POLICIES for obj in manifests(directory)]
    for are_rights in (True, False):
        file = node.files / "policies.yaml"
        chosen = [obj for obj in objects if (obj["kind"] == "ClusterRole") is are_rights]
        file.write_text(yaml.safe_dump_all(chosen))
        eventually(partial(ended, node, "apply", "-f", f"/{file.name}"))
    node.kubectl("wait", "--for=condition=Ready", "clusterpolicy", "--all", "--timeout=120s")


def tenants_repository(directory: Path, image: str) -> Path:
    """Return a Git repository with the example's tenant, whose images are the one that is available."""
    tenant = directory / (MULTI_TENANT / "tenant").relative_to(ROOT)
    shutil.copytree(MULTI_TENANT / "tenant", tenant)
    kustomization = yaml.safe_load((tenant / "kustomization.yaml").read_text())
    repository, tag = image.split(":")
    kustomization["images"] = [{"name": name, "newName": repository, "newTag": tag} for name in IMAGES]
    (tenant / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    author = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for command in (("init", "--initial-branch=main"), ("add", "."), (*author, "commit", "--message=tenants")):
        subprocess.run(["git", *command], cwd=directory, check=True, capture_output=True)
    return directory


@contextmanager
def serving(node: Node, repository: Path) -> Iterator[None]:
    """Serve a repository in the node's network, and make it the GitRepository of the policies."""
    assert node.process is not None
    script = [sys.executable, git_server.__file__, ADDRESS, str(GIT_PORT), str(repository)]
    enter = ["nsenter", "--target", str(node.process.pid), "--net", "--"]
    source = {
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "GitRepository",
        "metadata": {"name": "tenants", "namespace": FLUX_NAMESPACE},
        "spec": {"interval": "10m", "url": f"http://{ADDRESS}:{GIT_PORT}/tenants", "ref": {"branch": "main"}},
    }
    with subprocess.Popen([*enter, *script], stderr=subprocess.DEVNULL) as server:
        try:
            node.kubectl("apply", "-f", "-", given=yaml.safe_dump(source))
            wait = ["wait", "--for=condition=Ready", "gitrepository/tenants", "--timeout=120s"]
            node.kubectl("-n", FLUX_NAMESPACE, *wait)
            yield
        finally:
            server.terminate()


def of_mode(mode: str, directory: Path) -> list[dict[str, Any]]:
    """Return the objects of a daemon in this mode, with a watcher beside it."""
    objects = operator(directory / mode, MODES[mode], [watcher("changes")], roles=(mode,))
    [workload] = [obj for obj in objects if obj["kind"] == "Deployment"]
    [daemon] = workload["spec"]["template"]["spec"]["initContainers"]
    [variable] = [variable for variable in daemon["env"] if variable["name"] == "MILO_DISCOVERYD_MODE"]
    variable["value"] = mode
    return objects


def changes(node: Node, mode: str, project: str) -> dict[str, float]:
    """Return when the watcher in this mode logged each change of a project, in order."""
    logs = ["-n", MODES[mode], "logs", "deployment/example-operator", "-c", "changes", "--timestamps", "--tail=-1"]
    found = {}
    for line in ended(node, *logs).splitlines():
        logged_at, _, content = line.partition(" ")
        if content.startswith("{") and (change := json.loads(content))["cluster"]["name"] == project:
            ending = "DELETION REQUESTED" if "deletionRequestedAt" in change["cluster"] else "UPDATED"
            kind = change["type"].removeprefix("TYPE_")
            found[ending if kind == "UPDATED" else kind] = datetime.fromisoformat(logged_at).timestamp()
    return found


def await_change(node: Node, mode: str, project: str, what: str) -> float:
    """Return when the watcher in this mode logged a change of a project, once it has."""
    return float(eventually(lambda: changes(node, mode, project).get(what), within_s=300.0))


def create(node: Node, project: str) -> float:
    """Create a project, and return when that was."""
    document = {
        "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
        "kind": "Project",
        "metadata": {"name": project},
        "spec": {"ownerRef": {"kind": "Organization", "name": "acme"}},
    }
    begun = time.time()
    node.kubectl("create", "-f", "-", given=yaml.safe_dump(document))
    return begun


def inside(node: Node, project: str) -> tuple[str, Sequence[str]]:
    """Return the namespace of a project's control plane, and kubectl's options for its API."""
    namespace = f"project-{node.get('project', project)['metadata']['uid']}"
    file = f"{project}.kubeconfig"
    encoded = ["-o", "jsonpath={.data.kubeconfig}"]
    content = node.kubectl("-n", namespace, "get", "secret", "kubeconfig", *encoded)
    (node.files / file).write_bytes(base64.b64decode(content))
    address = node.get("-n", namespace, "service", "api-server")["spec"]["clusterIP"]
    host = f"api-server.{namespace}.svc.cluster.local"
    return namespace, [f"--kubeconfig=/{file}", f"--server=https://{address}", f"--tls-server-name={host}"]


@pytest.mark.usefixtures("daemons")
def test_project_gets_a_control_plane_is_engaged_in_both_modes_and_is_deleted_in_order(
    node: Node, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    created = create(node, "alpha")
    engaged = {mode: await_change(node, mode, "alpha", "ENGAGED") - created for mode in MODES}
    namespace, options = inside(node, "alpha")
    with running(node, "tutorial", tmp_path / "context"):
        found = eventually(lambda: ended(node, *options, "get", "configmap", "greeting", "-o", "json"))
        assert json.loads(found)["data"] == {"greeting": "hello alpha"}
    node.kubectl(*options, "create", "deployment", "web", "--image=web")
    made = eventually(lambda: ended(node, *options, "get", "replicasets", "-o", "name"))
    assert made.startswith("replicaset.apps/web-")

    deleted = time.time()
    node.kubectl("delete", "project", "alpha", "--cascade=foreground")  # returns when the project is gone
    gone = time.time() - deleted
    for kind, name in (("projectcontrolplane", "alpha"), ("namespace", namespace)):
        assert node.kubectl("get", kind, name, "--ignore-not-found") == ""
    for mode in MODES:
        disengaged = await_change(node, mode, "alpha", "DISENGAGED") - deleted
        assert [what for what in changes(node, mode, "alpha") if what != "UPDATED"] == [
            "ENGAGED",
            "DELETION REQUESTED",
            "DISENGAGED",
        ]
        row = f"{mode}: created → engaged {engaged[mode]:.1f} s, deleted → disengaged {disengaged:.1f} s"
        record_property("chain", row)
    record_property("chain", f"deleted → gone {gone:.1f} s")
