"""The parts of a node: programs from Go modules, a tree of Debian packages, and images that buildah builds.

All of it is cached in the user's cache directory, by version and definition.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from milo_discoveryd import __version__
from tests.end_to_end.real.builds import (
    ETCD,
    KUBE_APISERVERS,
    GoProgram,
    Say,
    UnobtainableError,
    cache_directory,
    exclusively,
    obtain,
)

ROOT = Path(__file__).parents[3]
_HERE = Path(__file__).parent
_API_SERVER = KUBE_APISERVERS["1.35"]
_NODE = (
    "containerd,runc,containernetworking-plugins,iptables,ipset,conntrack,buildah,iproute2,ca-certificates,ethtool,"
    "socat,mount,kmod,procps"
)
_BASE = "python3,python3-venv,python3-pip,ca-certificates,libstdc++6"
"""The packages of the base image, as documented in docs/releasing.md."""

_TARGETS = {"milo-discoveryd": "daemon", "milo-discoveryd-sandbox": "sandbox"}
OURS = dict.fromkeys(_TARGETS, ROOT)
"""The Dockerfile's images."""

_NOT_IN_IMAGES = {"bench", "changelog.d", "conformance", "docs", "examples", "tests", "tools"}
"""Directories of this repository from which the Dockerfile copies nothing."""


def _program(name: str, version: str, module: str, package: str, definition: str, link: str = "-s -w") -> GoProgram:
    return GoProgram(
        name=name, version=version, module=module, package=package, definition=_HERE / "go" / definition, link=link
    )


def _of_kubernetes(name: str) -> GoProgram:
    package, link = f"{_API_SERVER.module}/cmd/{name}", _API_SERVER.link
    return _program(name, _API_SERVER.version, _API_SERVER.module, package, "kubernetes-1.35", link)


_ROUTER = "github.com/cloudnativelabs/kube-router/v2"
_PROGRAMS = (
    ETCD,
    _API_SERVER,
    *map(_of_kubernetes, ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl")),
    _program("coredns", "v1.14.2", "github.com/coredns/coredns", ".", "coredns"),
    _program("kube-router", "v2.1.0", _ROUTER, f"{_ROUTER}/cmd/kube-router", "kube-router"),
)

_KYVERNO, _FLUX = "github.com/kyverno/kyverno", "github.com/fluxcd"
KYVERNO = tuple(
    _program(name, "v1.19.1", _KYVERNO, f"{_KYVERNO}/cmd/{name}", "kyverno")
    for name in ("kyverno", "background-controller")
)
FLUX = tuple(
    _program(name, version, f"{_FLUX}/{name}", f"{_FLUX}/{name}", name)
    for name, version in (("source-controller", "v1.9.3"), ("kustomize-controller", "v1.9.6"))
)


def directory() -> Path:
    return cache_directory().with_name("cluster")


def programs(say: Say) -> list[Path]:
    """Return all programs, which are built unless they are cached."""
    return [obtain(program, say) for program in _PROGRAMS]


def node_tree(say: Say) -> Path:
    """Return a directory with a Debian system and the packages that a node needs."""
    return _debian("node", _NODE, say)


def base_archive(say: Say) -> Path:
    """Return the base image's files, as a tar archive."""
    return _debian("base.tar", _BASE, say)


def _debian(name: str, packages: str, say: Say) -> Path:
    made = directory() / f"{hashlib.sha256(packages.encode()).hexdigest()[:8]}-{name}"
    with exclusively(directory()):
        if not made.exists():
            say(f"Debian with {packages}: unpacking (cold: minutes)")
            unfinished = directory() / f"unfinished-{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ["--mode=root", "--variant=essential", '--aptopt=APT::Sandbox::User "root"', "--quiet"]
            _run([_mmdebstrap(), *options, f"--include={packages}", "bookworm", unfinished])
            unfinished.replace(made)
    return made


def _mmdebstrap() -> str:
    """Return the path of mmdebstrap, which is unpacked, not installed, if the host has none."""
    if found := shutil.which("mmdebstrap"):
        return found
    unpacked = directory() / "mmdebstrap"
    if not (unpacked / "usr/bin/mmdebstrap").exists():
        apt = directory() / "apt"
        for needed in ("state/lists/partial", "cache/archives/partial"):
            (apt / needed).mkdir(parents=True, exist_ok=True)
        own = [f"Dir::State={apt}/state", "Dir::State::status=/var/lib/dpkg/status", f"Dir::Cache={apt}/cache"]
        command = ["apt-get", "-qq", *(part for option in (*own, "APT::Sandbox::User=root") for part in ("-o", option))]
        _run([*command, "update"])
        _run([*command, "download", "mmdebstrap"], cwd=apt)
        _run(["dpkg", "-x", *apt.glob("mmdebstrap_*.deb"), unpacked])
    return str(unpacked / "usr/bin/mmdebstrap")


def images(contexts: Mapping[str, Path], say: Say) -> Path:
    """Build the images of directories by their names, each with its own Dockerfile, as one archive.

    All use the cached base image. From this repository's Dockerfile, the target of the image's name is built.
    """
    work = directory() / "images"
    (work / "containers").mkdir(parents=True, exist_ok=True)
    archive = work / f"{'+'.join(contexts)}.tar"
    inputs, digest = archive.with_suffix(".inputs"), _digest(contexts.values())
    with exclusively(work):
        if archive.exists() and inputs.exists() and inputs.read_text() == digest:
            return archive
        say(f"images {', '.join(contexts)}: building")
        lines = [f"{name} {_TARGETS.get(name, '-')} {context.absolute()}" for name, context in contexts.items()]
        outside = (*contexts.values(), *map(Path, ("/etc/ssl/certs", "/etc/resolv.conf", "/etc/pip.conf")))
        binds = {base_archive(say): "/base.tar", work: "/images"}
        binds |= {path.resolve(): str(path.absolute()) for path in outside if path.exists()}
        shutil.rmtree(work / "root", ignore_errors=True)
        script = (_HERE / "images.sh", f"/images/{archive.name}", __version__, *lines)
        _run(in_copy(node_tree(say), work / "root", binds, script))
        inputs.write_text(digest)
    return archive


def _digest(contexts: Iterable[Path]) -> str:
    """Return a digest of all files that the images can contain."""
    digest = hashlib.sha256(_BASE.encode())
    for context in contexts:
        for path in sorted(_tracked() if context == ROOT else context.rglob("*")):
            digest.update(str(path.relative_to(context)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _tracked() -> Iterator[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    yield from (ROOT / path for path in done.stdout.split("\0") if path.partition("/")[0] not in _NOT_IN_IMAGES)


def in_copy(
    tree: Path, state: Path, binds: Mapping[Path, str], script: Sequence[object], *namespaces: str
) -> list[str]:
    """Return the command that runs a script as the first process in a writable copy of a tree.

    The script runs in a mount namespace, and can write to the host only through `binds`, which maps paths of the host
    to paths in the copy. The tree stays as it is.
    """
    for name in ("upper", "work", "root"):
        (state / name).mkdir(parents=True, exist_ok=True)
    bound = "\n".join(f"{source}\t{to}" for source, to in ((script[0], "/run.sh"), *binds.items()))
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *namespaces, "sh", _HERE / "private.sh"]
    return [str(argument) for argument in (*command, tree, state, bound, "/bin/sh", "/run.sh", *script[1:])]


def _run(command: Sequence[object], cwd: Path | None = None) -> None:
    argv = [str(argument) for argument in command]
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UnobtainableError(f"{Path(argv[0]).name} failed ({done.returncode}): {done.stdout[-2000:]}")
