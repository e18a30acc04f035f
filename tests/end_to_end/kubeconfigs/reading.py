"""Programs in other languages that read a kubeconfig, built in the cache directory where their toolchains exist."""

import hashlib
import os
import shutil
from pathlib import Path

from tests.end_to_end.examples.building import alone, run, tool

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "kubeconfig-readers"

Command = tuple[str, ...]


def go_reader() -> Command:
    go = tool("go")
    with alone(CACHE / "go"):
        built = CACHE / "go" / "reader"
        run((go, "build", "-o", str(built), "."), HERE / "go")
    return (str(built),)


def node_reader() -> Command:
    """Build in a copy, so that its packages are not installed into this repository."""
    node, npm = tool("node"), tool("npm")
    packages = b"".join((HERE / "node" / name).read_bytes() for name in ("package.json", "package-lock.json"))
    copy = CACHE / "node" / hashlib.sha256(packages).hexdigest()[:16]
    with alone(copy):
        shutil.copytree(HERE / "node", copy, dirs_exist_ok=True)
        if not (copy / "installed").exists():
            run((npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"), copy)
            (copy / "installed").touch()
    return (node, str(copy / "read.mjs"))


def java_reader() -> Command:
    """Build in a copy, so that its classes and packages do not get into this repository."""
    java, maven = tool("java"), tool("mvn")
    sources = b"".join((HERE / "java" / name).read_bytes() for name in ("pom.xml", "src/main/java/Read.java"))
    copy = CACHE / "java" / hashlib.sha256(sources).hexdigest()[:16]
    with alone(copy):
        shutil.copytree(HERE / "java", copy, dirs_exist_ok=True)
        if not (copy / "built").exists():
            run((maven, "-q", "-B", "compile", "dependency:copy-dependencies", "-DoutputDirectory=packages"), copy)
            (copy / "built").touch()
    return (java, "-cp", f"{copy}/target/classes:{copy}/packages/*", "Read")


READERS = {"go": go_reader, "java": java_reader, "node": node_reader}
