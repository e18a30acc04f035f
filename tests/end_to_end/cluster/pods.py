"""Operators with the daemon in the same pod, as the Kustomize components define it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from milo_discoveryd import __version__
from tests.end_to_end.cluster.node import Node
from tests.tooling.deploy.manifests import DEPLOY, manifests, with_components

IMAGE = f"milo-discoveryd:{__version__}"
ACCOUNT = "milo-discoveryd"
_STANDALONE = yaml.safe_load((DEPLOY / "overlays/standalone/deployment.yaml").read_text())
_CHANGES: dict[str, Any] = _STANDALONE["spec"]["template"]["spec"]["containers"][0]


def container(
    name: str, *command: str, mounts: Sequence[dict[str, Any]] = (), variables: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return a container with the daemon's socket, its image and these environment variables."""
    environment = [*_CHANGES["env"], *({"name": key, "value": value} for key, value in variables.items())]
    volumes = [*_CHANGES["volumeMounts"], *mounts]
    return _CHANGES | {"name": name, "command": [*command], "env": environment, "volumeMounts": volumes}


def watcher(name: str) -> dict[str, Any]:
    """Return a container that logs each change."""
    return container(name, "milo-discovery", "watch", "--output=json")


def operator(
    directory: Path,
    namespace: str,
    containers: Sequence[dict[str, Any]],
    *,
    components: Sequence[str] = ("sidecar",),
    kind: str = "Deployment",
    volumes: Sequence[dict[str, Any]] = (),
    roles: Sequence[str] = ("project-control-plane",),
) -> list[dict[str, Any]]:
    """Return the objects of the workload `example-operator`, whose pods have the daemon beside these containers."""
    with_components(directory, *components, kind=kind)
    path = directory / "operator.yaml"
    _, workload = yaml.safe_load_all(path.read_text())
    pod = workload["spec"]["template"]["spec"]
    pod |= {"serviceAccountName": ACCOUNT, "containers": [*containers], "volumes": [*volumes]}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    path.write_text(yaml.safe_dump_all([workload, account]))
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text()) | {"namespace": namespace}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        *map(dict, manifests(directory)),
        *(obj for role in roles for obj in _bound(role, namespace)),
    ]


def _bound(role: str, namespace: str) -> Iterator[dict[str, Any]]:
    """Yield the shipped ClusterRole and its binding, with the namespace as a suffix of their names."""
    shipped = yaml.safe_load((DEPLOY / "base" / "rbac" / role / "cluster-role.yaml").read_text())
    metadata = {"name": f"{shipped['metadata']['name']}-{namespace}"}
    yield shipped | {"metadata": metadata}
    group = "rbac.authorization.k8s.io"
    yield {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", **metadata},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }


@contextmanager
def started(node: Node, objects: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Apply the objects, wait until their pods are ready, and finally delete all of them."""
    given = yaml.safe_dump_all(objects)
    node.kubectl("apply", "-f", "-", given=given)
    try:
        for obj in objects:
            if obj["kind"] in {"Deployment", "StatefulSet"}:
                name = f"{obj['kind']}/{obj['metadata']['name']}"
                node.kubectl("-n", obj["metadata"]["namespace"], "rollout", "status", name, "--timeout=300s")
        yield
    finally:
        node.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)
