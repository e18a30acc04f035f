"""Kyverno and Flux in the node: their published manifests, with images of programs that their modules build."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from milo_discoveryd import __version__
from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node
from tests.end_to_end.real.builds import GoProgram, obtain, source_directory

Document = dict[str, Any]
FLUX_NAMESPACE = "flux-system"
_KYVERNO_CONTROLLERS = MappingProxyType(
    {
        "kyverno-admission-controller": "kyverno",
        "kyverno-background-controller": "background-controller",
    }
)
"""The programs of the Deployments that policies need; the others write reports and delete by schedules."""


def image_of(node: Node, name: str, programs: Sequence[Path], directory: Path) -> str:
    """Load an image with these programs in /usr/bin, and return its name."""
    directory.mkdir()
    for program in programs:
        shutil.copy(program, directory)
    names = " ".join(program.name for program in programs)
    (directory / "Dockerfile").write_text(f"FROM scratch\nCOPY {names} /usr/bin/\nUSER 65532\n")
    node.load(parts.images({name: directory}, say))
    return f"{name}:{__version__}"


def install_kyverno(node: Node, directory: Path) -> None:
    """Install what policies need of Kyverno, and wait until it is ready."""
    image = image_of(node, "kyverno", [obtain(program, say) for program in parts.KYVERNO], directory)
    published = source_directory(parts.KYVERNO[0]) / "config/install-latest-testing.yaml"
    found = [obj for obj in yaml.load_all(published.read_text(), Loader=yaml.CSafeLoader) if obj]
    _install(node, [*_of_kyverno(found, image)])
    _await_deployments(node, "kyverno")


def _of_kyverno(found: Sequence[Document], image: str) -> Iterator[Document]:
    for obj in found:
        if obj["kind"] == "Deployment":
            if (program := _KYVERNO_CONTROLLERS.get(obj["metadata"]["name"])) is None:
                continue
            pod = obj["spec"]["template"]["spec"]
            pod.pop("initContainers", None)  # removes what an older version left
            [container] = pod["containers"]
            container |= {"image": image, "command": [program]}
        yield obj


def install_flux(node: Node, directory: Path) -> None:
    """Install Flux's controllers of sources and of Kustomizations, and wait until they are ready."""
    image = image_of(node, "flux", [obtain(program, say) for program in parts.FLUX], directory)
    _install(node, [*_of_flux(image)])
    _await_deployments(node, FLUX_NAMESPACE)


def _of_flux(image: str) -> Iterator[Document]:
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": FLUX_NAMESPACE}}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": FLUX_NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": FLUX_NAMESPACE}],
    }
    for program in parts.FLUX:
        for obj in _published(program):
            if obj["kind"] == "Deployment":
                [container] = obj["spec"]["template"]["spec"]["containers"]
                container |= {"image": image, "command": [program.name]}
            elif obj["kind"] not in {"CustomResourceDefinition", "Service"}:
                continue
            yield obj if obj["kind"] == "CustomResourceDefinition" else _in_namespace(obj)


def _published(program: GoProgram) -> Iterator[Document]:
    sources = source_directory(program) / "config"
    for file in (*sorted((sources / "crd/bases").glob("*.yaml")), *sorted((sources / "manager").glob("*.yaml"))):
        yield from yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)


def _in_namespace(obj: Document) -> Document:
    return obj | {"metadata": obj["metadata"] | {"namespace": FLUX_NAMESPACE}}


def _install(node: Node, objects: Sequence[Mapping[str, Any]]) -> None:
    """Apply the definitions, and the other objects once those are established."""
    definitions = [obj for obj in objects if obj["kind"] == "CustomResourceDefinition"]
    given = yaml.dump_all(definitions, Dumper=yaml.CSafeDumper)
    # The annotation of a client-side apply cannot hold a definition of this size.
    node.kubectl("apply", "--server-side", "-f", "-", given=given)
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    node.kubectl("wait", "--for=condition=Established", *names)
    others = [obj for obj in objects if obj["kind"] != "CustomResourceDefinition"]
    node.kubectl("apply", "--server-side", "-f", "-", given=yaml.dump_all(others, Dumper=yaml.CSafeDumper))


def _await_deployments(node: Node, namespace: str) -> None:
    node.kubectl("-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=300s")
