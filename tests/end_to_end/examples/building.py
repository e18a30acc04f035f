"""Builds of the subscribers under `examples/` and of a program on the Go provider, where their toolchains exist.

Binaries are kept in the user's cache directory.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "examples"

BUILT = {"target", "node_modules", "dist", "__pycache__"}
"""Directories that builds write beside the sources."""
MAVEN = {"MAVEN_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""Maven runs for seconds, in which the optimizing compiler costs more than it saves."""

Command = list[str]


def go_program(source: Path, name: str, package: str = ".") -> Command:
    go = tool("go")
    built = CACHE / "go" / name
    with alone(CACHE / "go"):
        run([go, "build", "-o", str(built), package], source)
    return [str(built)]


def go_subscriber() -> Command:
    return go_program(EXAMPLES / "go", "subscriber")


def go_provider() -> Command:
    return go_program(ROOT / "clients" / "go" / "multicluster", "engagements", "./internal/engagements")


def node_subscriber() -> Command:
    return [tool("node"), str(node_packages() / "examples/node/subscriber.mjs")]


def node_packages() -> Path:
    """Build the client and the examples in Node in a copy, so that nothing is installed into this repository."""
    npm = tool("npm")
    packages = [ROOT / "clients/node", EXAMPLES / "node", EXAMPLES / "objects-nats"]
    locks = b"".join((package / "package-lock.json").read_bytes() for package in packages)
    copy = CACHE / "node" / hashlib.sha256(locks).hexdigest()[:16]

    def build() -> None:
        for package in packages:
            target = copy / package.relative_to(ROOT)
            installed = target / "node_modules" / "installed"
            if not installed.exists():
                run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], target)
                installed.touch()
            if (target / "tsconfig.json").exists():
                run([npm, "run", "build"], target)

    return built_copy(copy, [*packages, ROOT / "clients/testdata"], build)


def node_namespaces() -> Command:
    return [tool("node"), str(node_packages() / "examples/objects-nats/namespaces.mjs")]


def java_namespaces() -> Command:
    maven, java, source = tool("mvn"), tool("java"), EXAMPLES / "objects-nats"
    copy = CACHE / "java-objects-nats"
    target = copy / source.relative_to(ROOT)
    libraries = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"]
    built_copy(copy, [source], lambda: run(libraries, target))
    return [java, "-cp", f"{target}/lib/*", str(target / "Namespaces.java")]


def built_copy(copy: Path, sources: Sequence[Path], build: Callable[[], None]) -> Path:
    """Copy the sources and build them there, unless the last build in that place was of the same content."""
    digest = hashlib.sha256()
    for path in sorted(entry for source in sources for entry in source.rglob("*")):
        relative = path.relative_to(ROOT)
        if path.is_file() and BUILT.isdisjoint(relative.parts):
            digest.update(f"{relative}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    with alone(copy):
        built_from = copy / "built-from"
        if not built_from.exists() or built_from.read_text() != digest.hexdigest():
            built_from.unlink(missing_ok=True)
            for source in sources:
                target = copy / source.relative_to(ROOT)
                _remove_others(source, target)
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*BUILT))
            build()
            built_from.write_text(digest.hexdigest())
    return copy


def _remove_others(source: Path, target: Path) -> None:
    """Remove files that another tree or an older commit has copied, which the build would compile."""
    for path in sorted(target.rglob("*")):
        relative = path.relative_to(target)
        if path.is_file() and BUILT.isdisjoint(relative.parts) and not (source / relative).exists():
            path.unlink()


def python_subscriber(kind: str) -> Command:
    return [sys.executable, "-m", "tests.end_to_end.examples.printing", kind]


BUILDERS = {
    "go": go_subscriber,
    "node": node_subscriber,
    "provider": go_provider,
    "python": partial(python_subscriber, "asyncio"),
    "python-blocking": partial(python_subscriber, "blocking"),
}
NEEDS_KUBERNETES = {"provider", "tutorial"}
"""Programs that compile Kubernetes libraries, which takes minutes without a build cache."""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on PATH: programs for it are neither built nor run")
    return found


def go_test() -> Command:
    """Return the command for tests of a Go module, with the race detector if there is a C compiler."""
    go = tool("go")
    has_cgo = subprocess.run([go, "env", "CGO_ENABLED"], capture_output=True, text=True, check=True).stdout.strip()
    return [go, "test", *(["-race"] if has_cgo == "1" and shutil.which("cc") else [])]


def run(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **MAVEN}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a lock across processes, so that one builds at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
