"""The manifests as kustomize builds them."""

import os
import re
import subprocess
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.tooling.deploy.validators import kubectl

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OPERATOR = ROOT / "examples" / "go-operator" / "config"
MULTI_TENANT = ROOT / "examples" / "multi-tenant"
TENANTS = tuple(MULTI_TENANT / name for name in ("policies", "projects", "tenant"))
"""Kustomizations without a daemon."""
BUILT = (*sorted((*DEPLOY.glob("overlays/*"), *DEPLOY.glob("examples/*"))), OPERATOR, MULTI_TENANT / "operator")
WITH_DAEMON = tuple(directory for directory in BUILT if "control-plane" not in directory.name)

Manifest = Mapping[str, Any]


@cache
def built(directory: Path) -> str:
    done = subprocess.run([kubectl(), "kustomize", directory], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_components(directory: Path, *components: str, kind: str = "Deployment") -> Path:
    """Write a kustomization of an operator with these components into a new directory."""
    directory.mkdir()
    account, operator = yaml.safe_load_all((DEPLOY / "examples" / "operator" / "operator.yaml").read_text())
    operator["kind"] = kind
    operator["spec"] |= {"serviceName": "operator"} if kind == "StatefulSet" else {}
    (directory / "operator.yaml").write_text(yaml.safe_dump_all([account, operator]))
    relative = [os.path.relpath(DEPLOY / "components" / name, directory.resolve()) for name in components]
    kustomization = {"namespace": "operators", "resources": ["operator.yaml"], "components": relative}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


def manifests(directory: Path) -> tuple[Manifest, ...]:
    """Return the objects of a directory, as copies that the caller may change."""
    return deepcopy(_parsed(directory))


@cache
def _parsed(directory: Path) -> tuple[Manifest, ...]:
    return tuple(yaml.load_all(built(directory), Loader=yaml.CSafeLoader))


def of_kind(directory: Path, kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests(directory) if manifest["kind"] == kind]


def pod(directory: Path) -> Manifest:
    [deployment] = of_kind(directory, "Deployment")
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def containers(directory: Path) -> list[Manifest]:
    return [*pod(directory).get("initContainers", ()), *pod(directory)["containers"]]


def daemon(directory: Path) -> Manifest:
    [found] = [container for container in containers(directory) if container["name"] == "milo-discoveryd"]
    return found


def image_environment() -> dict[str, str]:
    """Return the environment that the image sets for Python."""
    return dict(re.findall(r"\b(PYTHON\w+)=(\w+)", (ROOT / "Dockerfile").read_text()))


def environment(directory: Path, container: Manifest) -> dict[str, str]:
    """Return the environment of a container, from `env` and `envFrom`, as the kubelet expands it."""
    maps = {config_map["metadata"]["name"]: config_map["data"] for config_map in of_kind(directory, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        reference = source["configMapRef"]
        assert reference["name"] in maps or reference["optional"]
        found |= maps.get(reference["name"], {})
    for variable in container.get("env", ()):
        found[variable["name"]] = _expanded(variable.get("value", ""), found)
    return found


def arguments(directory: Path, container: Manifest) -> list[str]:
    """Return the arguments of a container, with $(NAME) expanded as the kubelet does."""
    variables = environment(directory, container)
    return [_expanded(argument, variables) for argument in container.get("args", ())]


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """Expand variables that are defined earlier, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], text)
