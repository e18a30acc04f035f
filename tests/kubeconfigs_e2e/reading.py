"""Programs in other languages that read a kubeconfig, built where their toolchain is, in the user's cache folder."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "kubeconfig-readers"

Command = tuple[str, ...]


def go_reader() -> Command:
    go = _tool("go")
    with _alone(CACHE / "go"):
        built = CACHE / "go" / "reader"
        _run((go, "build", "-o", str(built), "."), HERE / "go")
    return (str(built),)


def node_reader() -> Command:
    """It runs from a copy, so that its packages don't come to lie in the tree."""
    node, npm = _tool("node"), _tool("npm")
    packages = b"".join((HERE / "node" / name).read_bytes() for name in ("package.json", "package-lock.json"))
    copy = CACHE / "node" / hashlib.sha256(packages).hexdigest()[:16]
    with _alone(copy):
        shutil.copytree(HERE / "node", copy, dirs_exist_ok=True)
        if not (copy / "installed").exists():
            _run((npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"), copy)
            (copy / "installed").touch()
    return (node, str(copy / "read.mjs"))


def java_reader() -> Command:
    """Built in a copy, so that its classes and packages don't come to lie in the tree."""
    java, maven = _tool("java"), _tool("mvn")
    sources = b"".join((HERE / "java" / name).read_bytes() for name in ("pom.xml", "src/main/java/Read.java"))
    copy = CACHE / "java" / hashlib.sha256(sources).hexdigest()[:16]
    with _alone(copy):
        shutil.copytree(HERE / "java", copy, dirs_exist_ok=True)
        if not (copy / "built").exists():
            _run((maven, "-q", "-B", "compile", "dependency:copy-dependencies", "-DoutputDirectory=packages"), copy)
            (copy / "built").touch()
    return (java, "-cp", f"{copy}/target/classes:{copy}/packages/*", "Read")


READERS = {"go": go_reader, "java": java_reader, "node": node_reader}


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on PATH: what its client makes of our kubeconfigs was not tried")
    return found


def _run(command: Command, directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Tests that run at the same time build one after the other."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
