"""Builds of the servers from published Go modules, into the user's cache directory.

This repository has none of their code: a go.mod names modules and versions, and the go command downloads them. The
cache directory of a program is named by its version and its definition, so that a change of either builds it again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import click
import msgspec

_DEFINITIONS = Path(__file__).parent / "go"
_PEER = Path(__file__).parents[3] / "bench" / "peer"
_SAY_EVERY_S = 15
_LAST_LINES = 3
_AT_A_PLACE = re.compile(r"^\S+:\d+:\d+: ")  # the position of an import, before an error of its module

Say = Callable[[str], None]


class GoMissingError(Exception):
    """There is no go command on this host."""


class UnobtainableError(Exception):
    """The go command failed to download or build a program."""


class GoProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program built from published modules."""

    name: str
    version: str
    module: str
    package: str
    definition: Path  # the directory of its go.mod
    link: str = "-s -w"

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"

    def directory(self) -> Path:
        digest = hashlib.sha256(self.link.encode())
        for path in sorted(self.definition.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return cache_directory() / f"{self.name}-{self.version}-{digest.hexdigest()[:8]}"

    def binary(self) -> Path:
        return self.directory() / self.name


ETCD = GoProgram(
    name="etcd",
    version="v3.6.14",
    module="go.etcd.io/etcd/server/v3",
    package="go.etcd.io/etcd/server/v3",
    definition=_DEFINITIONS / "etcd",
)

_KUBERNETES = "k8s.io/component-base/version"


def _kube_apiserver(version: str) -> GoProgram:
    major, minor, _ = version.split(".")
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    return GoProgram(
        name="kube-apiserver",
        version=f"v{version}",
        module="k8s.io/kubernetes",
        package="k8s.io/kubernetes/cmd/kube-apiserver",
        definition=_DEFINITIONS / f"kube-apiserver-{major}.{minor}",
        # Without these flags the binary reports version v0.0.0, about which kubectl warns.
        link=" ".join(["-s -w", *(f"-X {_KUBERNETES}.{name}={value}" for name, value in stamps.items())]),
    )


KUBE_APISERVERS = {"1.35": _kube_apiserver("1.35.4"), "1.33": _kube_apiserver("1.33.13")}
"""Versions by minor version; the first one is the default."""

MILO = GoProgram(
    name="milo",
    version="v0.32.5",
    module="go.miloapis.com/milo",
    package=".",
    definition=_DEFINITIONS / "milo",
)

_CLUSTER_API = "sigs.k8s.io/cluster-api"
CLUSTER_API = tuple(
    GoProgram(
        name=f"cluster-api-{name}",
        version="v1.13.4",
        module=module,
        package=f"{module}{path}",
        definition=_DEFINITIONS / "cluster-api",
    )
    for name, module, path in (
        ("core", _CLUSTER_API, ""),
        ("bootstrap", _CLUSTER_API, "/bootstrap/kubeadm"),
        ("control-plane", _CLUSTER_API, "/controlplane/kubeadm"),
        ("infrastructure", f"{_CLUSTER_API}/test", "/infrastructure/docker"),
    )
)
"""The controllers of Cluster API, with the kubeadm providers and the infrastructure provider of its own tests."""

GARDENER = GoProgram(
    name="gardener-apiserver",
    version="v1.145.0",
    module="github.com/gardener/gardener",
    package="github.com/gardener/gardener/cmd/gardener-apiserver",
    definition=_DEFINITIONS / "gardener-apiserver",
)

# A program of this repository with Milo's provider, and therefore of the provider's version.
PEER = GoProgram(
    name="peer",
    version=MILO.version,
    module=MILO.module,
    package=".",
    definition=_PEER,
)


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "real"


def go_command() -> str:
    go = shutil.which("go")
    if go is None:
        raise GoMissingError(
            "the real servers are built by the go command, and there is none on PATH: install Go 1.25 or newer"
        )
    return go


def obtain(program: GoProgram, say: Say) -> Path:
    """Return the program's binary, which is built unless it is cached."""
    binary = program.binary()
    if binary.exists():
        return binary
    go = go_command()
    with exclusively(program.directory()):
        if not binary.exists():  # another process may have built it while this one waited
            _build(go, program, say)
    return binary


def source_directory(program: GoProgram) -> Path:
    """Return the directory of a module's sources in the module cache, downloading them if they are missing."""
    download = subprocess.run(
        [go_command(), "mod", "download", "-json", f"{program.module}@{program.version}"],
        cwd=program.definition.parent,  # outside of any module
        capture_output=True,
        text=True,
        check=False,
    )
    if download.returncode != 0:
        answer = json.loads(download.stdout or "{}").get("Error", download.stderr)
        raise UnobtainableError(f"{program.title}: {_complaint(answer.splitlines())}")
    return Path(json.loads(download.stdout)["Dir"])


def module_version(binary: Path, module: str) -> str | None:
    """Return the version of a module in a binary, as the binary reports it; None for a script or another program."""
    output = subprocess.run([go_command(), "version", "-m", binary], capture_output=True, text=True, check=False)
    found = (line.split() for line in output.stdout.splitlines())
    return next((fields[2] for fields in found if fields[:2] in (["mod", module], ["dep", module])), None)


def _build(go: str, program: GoProgram, say: Say) -> None:
    # The build uses a copy, since the go command changes go.mod and go.sum.
    module = program.directory() / "module"
    shutil.copytree(program.definition, module, dirs_exist_ok=True)
    begun = time.monotonic()
    say(f"{program.title}: building from {program.module} (cold: minutes)")
    _compile(go, program, module, say)
    say(f"{program.title}: built in {_spell(time.monotonic() - begun)}")


def _compile(go: str, program: GoProgram, module: Path, say: Say) -> None:
    binary = program.binary()
    unfinished = binary.with_suffix(".unfinished")
    begun = time.monotonic()
    output: list[str] = []
    argv = [go, "build", "-v", "-mod=mod", "-trimpath", f"-ldflags={program.link}", "-o", str(unfinished)]
    with (
        subprocess.Popen(
            [*_politely(), *argv, program.package], cwd=module, stderr=subprocess.PIPE, text=True
        ) as compiler,
        ThreadPoolExecutor(1) as reader,
    ):
        assert compiler.stderr is not None
        reading = reader.submit(_append_each, compiler.stderr, output)
        # Also while the compiler prints nothing: it does so for minutes in a large package, and while it links.
        while not wait([reading], _SAY_EVERY_S).done:
            packages = sum(map(_names_a_package, output))
            last = output[-1].strip() if output else "reading the modules"
            say(f"{program.title}: {_spell(time.monotonic() - begun)}, {packages} packages compiled, now {last}")
    if compiler.returncode:
        raise UnobtainableError(f"{program.title}: {_complaint(output)}")
    unfinished.replace(binary)


def _append_each(lines: Iterable[str], output: list[str]) -> None:
    for line in lines:
        output.append(line)  # noqa: PERF402 - each line once it is read


def _politely() -> list[str]:
    nice = shutil.which("nice")
    return [nice, "-n", "19"] if nice else []


def _names_a_package(line: str) -> bool:
    return " " not in line.strip()


def _complaint(output: Iterable[str]) -> str:
    """Return the last lines of the output without duplicates and without progress."""
    complaints = [
        _AT_A_PLACE.sub("", line.strip())
        for line in output
        if not _names_a_package(line) and not line.startswith("go: downloading")
    ]
    return " / ".join(list(dict.fromkeys(complaints))[-_LAST_LINES:])


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def exclusively(directory: Path) -> Iterator[None]:
    """Hold a lock across processes, so that one builds at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say_to_stderr(line: str) -> None:
    click.echo(f"dev real: {line}", err=True)
