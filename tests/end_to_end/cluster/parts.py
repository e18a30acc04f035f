"""The parts of a node: programs from Go modules, a tree of Debian packages, and images that buildah builds.

All of it is cached in the user's cache directory, by version and definition.
"""

import hashlib
import json
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
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

_NOT_IN_IMAGES = {"bench", "changelog.d", "conformance", "docs", "examples", "tests", "tools"}
"""Directories of this repository from which the Dockerfile copies nothing."""


def _of_kubernetes(name: str) -> GoProgram:
    return GoProgram(
        name=name,
        version=_API_SERVER.version,
        module=_API_SERVER.module,
        package=f"k8s.io/kubernetes/cmd/{name}",
        definition=_HERE / "go" / "kubernetes-1.35",
        link=_API_SERVER.link,
    )


_COREDNS = GoProgram(
    name="coredns",
    version="v1.14.2",
    module="github.com/coredns/coredns",
    package=".",
    definition=_HERE / "go" / "coredns",
)
_KUBE_ROUTER = GoProgram(
    name="kube-router",
    version="v2.1.0",
    module="github.com/cloudnativelabs/kube-router/v2",
    package="github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    definition=_HERE / "go" / "kube-router",
)
_KUBERNETES = ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl")


def directory() -> Path:
    return cache_directory().with_name("cluster")


def programs(say: Say) -> list[Path]:
    """Return all programs; those that are not cached are built."""
    return [
        obtain(each, say) for each in (ETCD, _API_SERVER, *map(_of_kubernetes, _KUBERNETES), _COREDNS, _KUBE_ROUTER)
    ]


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
        command = ["apt-get", "-qq", *(part for each in (*own, "APT::Sandbox::User=root") for part in ("-o", each))]
        _run([*command, "update"])
        _run([*command, "download", "mmdebstrap"], cwd=apt)
        _run(["dpkg", "-x", *apt.glob("mmdebstrap_*.deb"), unpacked])
    return str(unpacked / "usr/bin/mmdebstrap")


def images(contexts: Mapping[str, Path], say: Say) -> Path:
    """Build the Dockerfile's images, and those of other directories by their names, as one archive.

    The base image of each is the cached one. The archive also contains the image of a pod's infrastructure container.
    """
    work = directory() / "images"
    (work / "containers").mkdir(parents=True, exist_ok=True)
    wanted = {"milo-discoveryd": ("daemon", ROOT), "milo-discoveryd-sandbox": ("sandbox", ROOT)}
    wanted |= {name: ("", context) for name, context in contexts.items()}
    archive, inputs, digest = work / "images.tar", work / "inputs", _digest(contexts)
    with exclusively(work):
        if archive.exists() and inputs.exists() and inputs.read_text() == digest:
            return archive
        shutil.rmtree(work / "layout", ignore_errors=True)
        say(f"images {', '.join(wanted)}: building")
        lines = [f"{name} {target or '-'} {context.resolve()}" for name, (target, context) in wanted.items()]
        binds: dict[Path, str] = {
            base_archive(say): "/base.tar",
            work: "/images",
            **{path.resolve(): "" for _, path in wanted.values()},
        }
        binds |= {Path(each): "" for each in ("/etc/ssl/certs", "/etc/resolv.conf", "/etc/pip.conf")}
        private = Private(
            node_tree(say), work / "root", {source: to for source, to in binds.items() if source.exists()}
        )
        private.run([_HERE / "images.sh", __version__, *lines])
        index = work / "layout" / "index.json"
        found = json.loads(index.read_text())
        for manifest in found["manifests"]:
            name = manifest["annotations"]["org.opencontainers.image.ref.name"]
            manifest["annotations"]["io.containerd.image.name"] = f"docker.io/library/{name}"
        index.write_text(json.dumps(found))
        with tarfile.open(archive, "w") as tar:
            tar.add(work / "layout", ".")
        inputs.write_text(digest)
    return archive


def _digest(contexts: Mapping[str, Path]) -> str:
    """Return a digest of all files that this repository's images can contain; with other images a random one, which is
    never cached.
    """
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    named = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256((secrets.token_hex() if contexts else _BASE).encode())
    for name in sorted(each for each in named if each.partition("/")[0] not in _NOT_IN_IMAGES):
        digest.update(name.encode() + ((ROOT / name).read_bytes() if (ROOT / name).is_file() else b""))
    return digest.hexdigest()


class Private:
    """A copy of a tree in a mount namespace, in which nothing is written to the tree or to the host."""

    def __init__(self, tree: Path, state: Path, binds: Mapping[Path, str]) -> None:
        """`binds` are paths of the host and where they appear, by default under the same path."""
        self._tree = tree
        self._state = state
        self._binds = binds

    def argv(self, script: Sequence[object], *namespaces: str) -> list[str]:
        """Return the command that runs a script in the copy, as the first process of its namespaces."""
        for each in ("upper", "work", "root"):
            (self._state / each).mkdir(parents=True, exist_ok=True)
        named: list[tuple[object, str]] = [(script[0], "/run.sh"), *self._binds.items()]
        binds = "\n".join(f"{source}\t{to or source}" for source, to in named)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *namespaces, "sh", _HERE / "private.sh"]
        return [str(each) for each in (*command, self._tree, self._state, binds, "/bin/sh", "/run.sh", *script[1:])]

    def run(self, script: Sequence[object]) -> None:
        shutil.rmtree(self._state, ignore_errors=True)
        _run(self.argv(script))


def _run(command: Sequence[object], cwd: Path | None = None) -> None:
    argv = [str(each) for each in command]
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UnobtainableError(f"{Path(argv[0]).name} failed ({done.returncode}): {done.stdout[-2000:]}")
