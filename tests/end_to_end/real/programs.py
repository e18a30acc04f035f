"""The programs of the two API servers on this host, and what is missing."""

import os
import subprocess
from pathlib import Path

import msgspec

from tests.end_to_end.real.builds import (
    ETCD,
    KUBE_APISERVERS,
    MILO,
    PEER,
    GoProgram,
    Say,
    UnobtainableError,
    module_version,
    obtain,
    source_directory,
)

# Environment variables: the paths of existing binaries, Milo's feature gates, and a minor version of Kubernetes.
KUBERNETES_BINARY = "KUBE_APISERVER"
MILO_BINARY = "MILO_APISERVER"
MILO_CONTROLLER_MANAGER = "MILO_CONTROLLER_MANAGER"
MILO_FEATURE_GATES = "MILO_FEATURE_GATES"
PEER_BINARY = "MILO_PEER"
KUBERNETES_MINOR = "KUBERNETES"

OWN_DEFINITIONS = Path(__file__).parents[3] / "sandbox/src/milo_sandbox/crds"
_CONTROL_PLANES = Path("config/crd/bases/infrastructure/infrastructure.miloapis.com_projectcontrolplanes.yaml")


class ApiProgram(msgspec.Struct, frozen=True, kw_only=True):
    """An API server and the resource definitions that it needs."""

    title: str
    argv: tuple[str, ...]
    definitions: tuple[str, ...] = ()  # YAML


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    etcd: Path
    milo: ApiProgram
    infrastructure: ApiProgram
    controllers: tuple[str, ...] = ()
    """The command of Milo's own controllers; empty unless given."""
    has_milo: bool = True
    """Whether `milo` is Milo's own API server, not a kube-apiserver in its place."""
    missing: tuple[str, ...] = ()
    """What was replaced, and why; empty if nothing was."""


def programs(say: Say) -> Programs:
    """Return all programs.

    Raises GoMissingError or UnobtainableError if not even the replacements can be built.
    """
    etcd = obtain(ETCD, say)
    kubernetes = _given(KUBERNETES_BINARY) or obtain(kubernetes_asked_for(), say)
    title = _title_of_kubernetes(kubernetes)
    missing, has_milo = [], True
    try:
        control_planes = source_directory(MILO) / _CONTROL_PLANES
    except UnobtainableError as error:
        control_planes = OWN_DEFINITIONS / "projectcontrolplanes.yaml"
        missing.append(f"Milo's definition of projectcontrolplanes, replaced by one of this repository ({error})")
    try:
        milo = _milo(say)
    except UnobtainableError as error:
        has_milo = False
        milo = ApiProgram(
            title=f"{title} with projects of our own definition, in Milo's place",
            argv=_kubernetes_argv(kubernetes),
            definitions=((OWN_DEFINITIONS / "projects.yaml").read_text(),),
        )
        missing.append(
            f"Milo's API server, so a kube-apiserver replaces it; set {MILO_BINARY} to the path of a binary ({error})"
        )
    return Programs(
        etcd=etcd,
        milo=milo,
        infrastructure=ApiProgram(
            title=title, argv=_kubernetes_argv(kubernetes), definitions=(control_planes.read_text(),)
        ),
        controllers=_controllers(),
        has_milo=has_milo,
        missing=tuple(missing),
    )


def peer(say: Say) -> Path:
    """Return the Go program that embeds Milo's own provider (bench/peer)."""
    return _given(PEER_BINARY) or obtain(PEER, say)


def peer_title() -> str:
    given = _given(PEER_BINARY)
    return f"{_titled('milo', given, PEER_BINARY) if given else MILO.title}, in bench/peer"


def _controllers() -> tuple[str, ...]:
    given = _given(MILO_CONTROLLER_MANAGER)
    return (str(given), "controller-manager", *_feature_gates()) if given else ()


def _feature_gates() -> tuple[str, ...]:
    gates = os.environ.get(MILO_FEATURE_GATES)
    return (f"--feature-gates={gates}",) if gates else ()


def _milo(say: Say) -> ApiProgram:
    more = _feature_gates()
    if given := _given(MILO_BINARY):
        return ApiProgram(title=_titled("milo", given, MILO_BINARY), argv=(str(given), "apiserver", *more))
    return ApiProgram(title=MILO.title, argv=(str(obtain(MILO, say)), "apiserver", *more))


def _titled(name: str, binary: Path, variable: str) -> str:
    return f"{name} {module_version(binary, MILO.module) or 'of an unknown version'}, a binary given by {variable}"


def _given(variable: str) -> Path | None:
    path = os.environ.get(variable)
    if not path:
        return None
    if not os.access(path, os.X_OK):
        raise UnobtainableError(f"{variable} is {path!r}, which is not a program: set it to the path of a binary")
    return Path(path)


def kubernetes_asked_for() -> GoProgram:
    newest = next(iter(KUBE_APISERVERS))
    minor = os.environ.get(KUBERNETES_MINOR) or newest
    if minor not in KUBE_APISERVERS:
        known = ", ".join(KUBE_APISERVERS)
        raise UnobtainableError(f"{KUBERNETES_MINOR} is {minor!r}, which cannot be built: set it to one of {known}")
    return KUBE_APISERVERS[minor]


def _title_of_kubernetes(binary: Path) -> str:
    """Return the title by the binary's version output, such as `Kubernetes v1.2.3`."""
    output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return f"kube-apiserver {output.stdout.split()[-1]}"


def _kubernetes_argv(binary: Path) -> tuple[str, ...]:
    return (str(binary), "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none")
