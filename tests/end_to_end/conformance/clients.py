"""The clients that the conformance kit tests: how their subscribers are built, and what they claim."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from milo_conformance.run import Feature, Profile
from tests.end_to_end.examples.building import Command, built_copy, node_packages, run

ROOT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / "conformance"


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


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"there is no {name} on PATH")
    return found


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


def java_packages() -> Path:
    """Build the client and the example in Java in a copy, so that nothing is written into this repository."""
    maven, copy = [tool("mvn"), "--quiet", "--batch-mode", "-DskipTests"], CACHE / "java"
    classpath = ["dependency:build-classpath", "-Dmdep.outputFile=target/classpath", "-DincludeScope=test"]

    def build() -> None:
        run([*maven, "install", *classpath], copy / "clients/java")
        run([*maven, "compile", *classpath], copy / "examples/java")

    return built_copy(
        copy, [ROOT / path for path in ("clients/java", "clients/testdata", "examples/java", "proto")], build
    )


def java_program(package: str, *classes: str, main: str) -> Command:
    java, copy = tool("java"), java_packages()
    entries = [*(str(copy / path) for path in classes), (copy / package / "target/classpath").read_text()]
    # Options for a fast start, since the processes run for seconds.
    return [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", ":".join(entries), main]


def java() -> Command:
    built = ("clients/java/target/classes", "clients/java/target/test-classes")
    return java_program("clients/java", *built, main="com.miloapis.discovery.ConformanceSubscriber")


def java_operator() -> Command:
    built = ("examples/java/target/classes", "clients/java/target/classes")
    return java_program("examples/java", *built, main="com.miloapis.discovery.example.GreetingOperator")


def rust_programs() -> Path:
    cargo, target, copy = tool("cargo"), CACHE / "rust", CACHE / "rust-programs"

    def build() -> None:
        run([cargo, "build", "--locked", "--quiet", "--bins", "--target-dir", str(target)], copy / "examples/rust")
        for name in ("conformance", "milo-discovery-subscriber"):
            shutil.copy(target / "debug" / name, copy)

    return built_copy(copy, [ROOT / "examples/rust", ROOT / "proto"], build)


def rust() -> Command:
    return [str(rust_programs() / "conformance")]


def rust_operator() -> Command:
    return [str(rust_programs() / "milo-discovery-subscriber")]


CLIENTS = {
    "python": Client(python),
    # The module has no API clients. The tests of the multicluster-runtime provider verify that its clients renew their
    # credentials and follow no redirect.
    "go": Client(go, lacks_features=frozenset({Feature.CREDENTIALS, Feature.REQUESTS})),
    # Node.js cannot read the peer credentials of a Unix socket.
    "node": Client(node, lacks_features=frozenset({Feature.SERVER_UID})),
    "java": Client(java, lacks_features=frozenset({Feature.SERVER_UID})),
    # An example to copy, which implements no releases, ownership or credentials.
    "rust": Client(
        rust,
        lacks_profiles=frozenset({Profile.RELEASE, Profile.SHARDED, Profile.IDENTITY, Profile.FLEET}),
        lacks_features=frozenset({Feature.CREDENTIALS}),
    ),
}
