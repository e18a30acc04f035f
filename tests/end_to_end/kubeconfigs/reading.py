"""Programs in other languages that read a kubeconfig, built in the cache directory where their toolchains exist."""

import os
from functools import partial
from pathlib import Path

from tests.end_to_end.examples.building import ROOT, alone, built_copy, run, tool

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
    sources = HERE / "node"
    built = CACHE / "node" / sources.relative_to(ROOT)
    install = partial(run, (npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"), built)
    built_copy(CACHE / "node", [sources], install)
    return (node, str(built / "read.mjs"))


def java_reader() -> Command:
    """Build in a copy, so that its classes and packages are not written into this repository."""
    java, maven = tool("java"), tool("mvn")
    sources = HERE / "java"
    built = CACHE / "java" / sources.relative_to(ROOT)
    compile_ = ("compile", "dependency:copy-dependencies", "-DoutputDirectory=packages")
    built_copy(CACHE / "java", [sources], partial(run, (maven, "-q", "-B", *compile_), built))
    return (java, "-cp", f"{built}/target/classes:{built}/packages/*", "Read")


READERS = {"go": go_reader, "java": java_reader, "node": node_reader}
