"""The clients that the conformance kit judges: how their subscribers are built, and what they claim."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from milo_conformance.run import Feature, Profile
from tests.end_to_end.examples.building import node_packages

ROOT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "conformance"

Command = list[str]


class ToolMissing(Exception):  # noqa: N818  (a reason to skip)
    """The toolchain of a language is not on this machine."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client, with its subscriber for the kit."""

    build: Callable[[], Command]
    lacks_profiles: frozenset[Profile] = frozenset()
    lacks_features: frozenset[Feature] = frozenset()

    @property
    def profiles(self) -> list[Profile]:
        return [profile for profile in Profile if profile not in self.lacks_profiles]

    def arguments(self) -> Iterable[str]:
        """Return the options of the kit for what the client claims."""
        for profile in self.profiles:
            yield from ("--profile", profile.value)
        for feature in sorted(self.lacks_features, key=lambda each: each.value):
            yield from ("--without", feature.value)


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"there is no {name} on PATH")
    return found


def run(command: Command, directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def python() -> Command:
    return [sys.executable, str(ROOT / "clients/python/tests/conformance/subscriber.py")]


def go() -> Command:
    built = CACHE / "go" / "subscriber"
    run([tool("go"), "build", "-o", str(built), "./internal/conformance"], ROOT / "clients/go")
    return [str(built)]


def node() -> Command:
    tool("npm")
    return [tool("node"), str(node_packages() / "clients/node/dist/conformance/subscriber.js")]


def node_operator() -> Command:
    tool("npm")
    return [tool("node"), str(node_packages() / "examples/node/operator.mjs")]


def java_sources() -> Path:
    """Copy the client and the example in Java, so that nothing is written into this repository."""
    copy = CACHE / "java"
    for source in ("clients/java", "clients/testdata", "examples/java", "proto"):
        kept = shutil.ignore_patterns("target")
        shutil.copytree(ROOT / source, copy / source, dirs_exist_ok=True, ignore=kept)
    return copy


def java_program(module: Path, main: str, goals: Iterable[str], *classes: str) -> Command:
    classpath = ["dependency:build-classpath", "-Dmdep.outputFile=target/classpath", "-DincludeScope=test"]
    run([tool("mvn"), "--quiet", "--batch-mode", *goals, *classpath], module)
    entries = [*(str(module / "target" / each) for each in classes), (module / "target/classpath").read_text()]
    # The processes live for seconds.
    return [tool("java"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", ":".join(entries), main]


def java() -> Command:
    tool("mvn")
    main = "com.miloapis.discovery.ConformanceSubscriber"
    return java_program(java_sources() / "clients/java", main, ["test-compile"], "classes", "test-classes")


def java_operator() -> Command:
    maven, copy = tool("mvn"), java_sources()
    run([maven, "--quiet", "--batch-mode", "-DskipTests", "install"], copy / "clients/java")
    main = "com.miloapis.discovery.example.GreetingOperator"
    return java_program(copy / "examples/java", main, ["compile"], "classes")


def rust_program(name: str) -> Command:
    target = CACHE / "rust"
    command = [tool("cargo"), "build", "--locked", "--quiet", "--bin", name, "--target-dir", str(target)]
    run(command, ROOT / "examples/rust")
    return [str(target / "debug" / name)]


def rust() -> Command:
    return rust_program("conformance")


def rust_operator() -> Command:
    return rust_program("milo-discovery-subscriber")


CLIENTS = {
    "python": Client(python),
    # The provider for multicluster-runtime renews the credentials of API clients, and not the client below it.
    "go": Client(go, lacks_features=frozenset({Feature.CREDENTIALS})),
    # Node.js cannot tell who serves a Unix socket.
    "node": Client(node, lacks_features=frozenset({Feature.SERVER_UID})),
    "java": Client(java, lacks_features=frozenset({Feature.SERVER_UID})),
    # An example to copy, without releases, ownership and credentials of its own.
    "rust": Client(
        rust,
        lacks_profiles=frozenset({Profile.RELEASE, Profile.SHARDED, Profile.IDENTITY}),
        lacks_features=frozenset({Feature.CREDENTIALS}),
    ),
}
