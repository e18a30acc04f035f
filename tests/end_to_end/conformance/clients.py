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


def java() -> Command:
    """Build with Maven in a copy, so that nothing is written into this repository."""
    maven, built = tool("mvn"), CACHE / "java"
    target = built / "clients/java"
    for source in ("clients/java", "clients/testdata", "proto"):
        kept = shutil.ignore_patterns("target")
        shutil.copytree(ROOT / source, built / source, dirs_exist_ok=True, ignore=kept)
    classpath = ["dependency:build-classpath", "-Dmdep.outputFile=target/classpath", "-DincludeScope=test"]
    run([maven, "--quiet", "--batch-mode", "test-compile", *classpath], target)
    entries = [
        str(target / "target/classes"),
        str(target / "target/test-classes"),
        (target / "target/classpath").read_text(),
    ]
    # Processes that live for seconds.
    options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", ":".join(entries)]
    return [tool("java"), *options, "com.miloapis.discovery.ConformanceSubscriber"]


CLIENTS = {
    "python": Client(python),
    # The provider for multicluster-runtime renews the credentials of API clients, and not the client below it.
    "go": Client(go, lacks_features=frozenset({Feature.CREDENTIALS})),
    # Node.js cannot tell who serves a Unix socket.
    "node": Client(node, lacks_features=frozenset({Feature.SERVER_UID})),
    "java": Client(java, lacks_features=frozenset({Feature.SERVER_UID})),
}
