"""`./dev readme --list`: every shell command in the documents, and the test that runs or checks it.

The exit status is 1 if a command has no test. Only the standard library is needed.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import Enum

from tests.tooling.docs.shell import BLOCKS, ROOT, Block

_COMMANDS = "tests/tooling/docs/test_commands.py"


class Way(Enum):
    """A way in which a command is tested; the value is the test."""

    TYPED = f"{_COMMANDS}::test_documented_commands_print_the_documented_output"
    """Run beside a daemon; the output must be as shown."""
    README = "tests/tooling/docs/test_readme.py::test_readme_commands_lead_to_a_working_operator"
    GO_README = "tests/tooling/docs/test_readme.py::test_go_readme_leads_to_a_first_reconcile_within_ten_minutes"
    BUILT = f"{_COMMANDS}::test_documented_kustomizations_are_built_by_tests"
    IN_A_CLUSTER = f"{_COMMANDS}::test_documented_kubectl_commands_and_flags_exist"
    """Needs a cluster, and is listed below; kubectl must accept the command and its flags."""
    LASTING = f"{_COMMANDS}::test_arguments_of_documented_long_running_commands_are_accepted"
    """Takes minutes; its arguments are parsed, and CI runs the commands that are short."""
    PUBLISHED = "tests/tooling/deploy/test_workflows.py"
    """Applies to a published release: names and identities are compared with the workflow."""
    IMAGE = "tests/tooling/deploy/test_image.py"
    """Needs a container engine: the steps of the Dockerfile are run without one."""
    FOUND = f"{_COMMANDS}::test_documented_log_events_exist"
    CALLED = f"{_COMMANDS}::test_documented_grpc_methods_exist"
    """Uses a third-party gRPC tool; the method that it calls must exist."""
    INSTALLED = "tests/tooling/deploy/test_packages.py"
    EXAMPLE = "tests/end_to_end/examples"
    GO_MODULES = "tests/end_to_end/go_modules"
    PUBLISHING = f"{_COMMANDS}::test_arguments_of_documented_publisher_commands_are_accepted"
    """Run by tests/end_to_end/real/test_publishing; its arguments are parsed."""
    SIGNALLED = "tests/integration/telemetry/test_logging.py"
    SERVICE = "tests/tooling/docs/test_objects.py::test_documented_service_tells_which_project_has_a_namespace"
    TUTORIAL = "tests/tooling/docs/test_tutorial.py"


NEED_A_CLUSTER = (
    "kubectl -n my-operator logs -f deploy/my-operator",
    "kubectl -n milo-discovery-demo logs -f deploy/demo -c subscriber",
    "kubectl -n NAMESPACE describe pod POD",
    "kubectl -n NAMESPACE exec POD -c milo-discoveryd",
    "kubectl -n NAMESPACE logs POD -c milo-discoveryd",
    "kubectl -n NAMESPACE logs POD -c milo-discoveryd --previous",
    "kubectl -n NAMESPACE logs POD -c milo-discoveryd --since=15m",
    "kubectl -n NAMESPACE logs POD -c OPERATOR",
    "kubectl -n NAMESPACE logs POD -c OPERATOR --tail=200",
    "kubectl -n NAMESPACE logs POD -c publish-objects",
    "kubectl -n NAMESPACE get leases -l discovery.miloapis.com/shard-group=GROUP",
    "kubectl -n NAMESPACE port-forward POD 8082",
    "kubectl -n NAMESPACE port-forward POD 9464",
    "kubectl -n NAMESPACE top pod POD --containers",
    "kubectl get pods -A -l discovery.miloapis.com/daemon=milo-discoveryd",
)
"""Commands that no test runs; their flags are tested."""


PACKAGES = {"./clients/cli", "./objects", "./objects[nats]", "./controllers", "./publishing"}


class UntestedError(Exception):
    """A command that no test runs or checks."""


def way(block: Block, words: Sequence[str]) -> Way:
    """Return how a command is tested.

    Raises UntestedError.
    """
    match words:
        case _ if block.document == ROOT / "README.md":
            return Way.README
        case _ if block.document == ROOT / "clients" / "go" / "multicluster" / "README.md":
            return Way.GO_README
        case _ if block.document == ROOT / "docs" / "tutorial.md":
            return Way.TUTORIAL
        case ["milo-discovery", "publish", *_]:
            return Way.PUBLISHING
        case ["milo-discovery" | "milo-discoveryd", *_] | ["kubectl", "--kubeconfig", *_]:
            return Way.TYPED
        case [variable, "milo-discoveryd", *_] if re.match(r"MILO_\w+=", variable):
            return Way.TYPED
        case ["kubectl", "kustomize", _] | ["kubectl", "apply", "-k", _]:
            return Way.BUILT
        case ["kubectl", *_] if " ".join(words) in NEED_A_CLUSTER:
            return Way.IN_A_CLUSTER
        case ["./dev", *_] | ["export" | "." | "cd", _]:
            return Way.LASTING
        case ["cosign" | "gh" | "helm", *_]:
            return Way.PUBLISHED
        case ["docker", "build", *_]:
            return Way.IMAGE
        case ["grep", *_]:
            return Way.FOUND
        case ["grpcurl", *_]:
            return Way.CALLED
        case ["pip", "install", "./kube", "./clients/python", *rest] if set(rest) <= PACKAGES:
            return Way.INSTALLED
        case ["go", "get", *_]:
            return Way.GO_MODULES
        case ["go" | "npm" | "mvn" | "cargo", *_] | ["milo-objects", "publish", *_]:
            return Way.EXAMPLE
        case [_, "python", "service.py"] | ["curl", "localhost:8080/namespaces/UID"]:
            return Way.SERVICE
        case ["sh", "-c", "kill -USR1 1" | "kill -USR2 1" | "kill -HUP 1"]:
            return Way.SIGNALLED
    raise UntestedError(f"{block.document.relative_to(ROOT)}: {shlex.join(words)}")


def listed() -> Iterator[tuple[str, str, Way | None]]:
    """Yield each command with its document and how it is tested; None if no test covers it."""
    for block in BLOCKS:
        for command in block.commands:
            for words in command.parts():
                try:
                    found = way(block, words)
                except UntestedError:
                    found = None
                yield str(block.document.relative_to(ROOT)), shlex.join(words), found


def summary() -> str:
    counts = Counter(found for _, _, found in listed())
    return (
        f"{counts.total()} commands are documented; {counts[None]} have no test, and "
        f"{counts[Way.IN_A_CLUSTER]} need a cluster and are parsed only"
    )


def main() -> int:
    rows = list(listed())
    for document, words, found in rows:
        if found is None:
            sys.stderr.write(f"{document}: no test runs: {words}\n")
        else:
            sys.stdout.write(f"{document}: {words}\n    {found.value}\n")
    sys.stdout.write(f"{summary()}\n")
    return 1 if any(found is None for _, _, found in rows) else 0
