"""The operators of examples and tutorials in pods: they work in a project, and end at SIGTERM as first processes."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discoveryd import __version__
from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.pods import IMAGE
from tests.end_to_end.cluster.test_pods import (
    DEFINITION,
    OF_PROMETHEUS,
    ended,
    eventually,
    make_tenant,
)
from tests.end_to_end.conformance.clients import java_operator, rust_operator
from tests.end_to_end.examples.building import BUILT, EXAMPLES, go_program, go_subscriber, node_packages, run, tool
from tests.tooling.deploy.manifests import DEPLOY, MULTI_TENANT, OPERATOR, ROOT, manifests

pytestmark = pytest.mark.timeout(1800)  # the first builds download and compile libraries

ENDS_WITHIN_S = 5.0
"""Generous, for a busy machine and for timestamps in whole seconds: a program ends in about 1 s on an idle machine."""
SIGTERM_OF_JAVA = 143
"""The exit status of a JVM that ends at SIGTERM, also after its shutdown hooks."""
FILE = re.compile(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONTAINER = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
LIKE_PYTHON_IMAGE = "RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED\n"
"""Makes the Debian Python of the base image like the Python of the image `python`."""
MODULES = "java.se,jdk.unsupported,jdk.crypto.ec,jdk.naming.dns,jdk.zipfs"


def of_go_examples(directory: Path) -> None:
    for [program] in (go_program(EXAMPLES / "go-operator/cmd", "greeting-operator"), go_subscriber()):
        shutil.copy(program, directory)
    image(directory, "COPY greeting-operator subscriber /", "/greeting-operator")


def of_node(directory: Path) -> None:
    shutil.copytree(node_packages(), directory / "packages", symlinks=True)
    shutil.copy(tool("node"), directory)
    image(directory, "COPY packages /packages\nCOPY node /", "/node", "/packages/examples/node/operator.mjs")


def of_java(directory: Path) -> None:
    _, *options, _, classes, main = java_operator()
    run([tool("jlink"), "--add-modules", MODULES, "--output", str(directory / "java")], directory)
    paths = []
    for number, path in enumerate(map(Path, classes.split(":"))):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        (directory / "classes").mkdir(exist_ok=True)
        paths.append(
            "/" + str(Path(copy(path, directory / "classes" / f"{number}-{path.name}")).relative_to(directory))
        )
    entry = ("/java/bin/java", *options, "-cp", ":".join(paths), main)
    image(directory, "COPY java /java\nCOPY classes /classes", *entry)


def of_rust(directory: Path) -> None:
    [program] = rust_operator()
    shutil.copy(program, directory / "operator")
    image(directory, "COPY operator /", "/operator")


def of_python_examples(directory: Path) -> None:
    """Write the context of the tutorial's image, with kopf, and with the Python examples instead of its program."""
    of_tutorial(directory)
    shutil.copytree(EXAMPLES / "python", directory / "python", ignore=shutil.ignore_patterns(*BUILT))
    content = (directory / "Dockerfile").read_text().replace("/src/client ", "'/src/client[kopf]' ")
    (directory / "Dockerfile").write_text(content.replace("COPY my_operator.py /", "COPY python /"))


def of_tutorial(directory: Path) -> None:
    """Write the context of the tutorial's image, with copies of the directories that its Dockerfile needs."""
    files = dict(FILE.findall((ROOT / "docs/tutorial.md").read_text()))
    for source in re.findall(r"^COPY --from=milo-discoveryd (\S+)", files["Dockerfile"], re.MULTILINE):
        shutil.copytree(ROOT / source, directory / source, ignore=shutil.ignore_patterns(*BUILT))
    (directory / "my_operator.py").write_text(files["my_operator.py"])
    first, rest = files["Dockerfile"].replace("--from=milo-discoveryd ", "").split("\n", 1)
    (directory / "Dockerfile").write_text(f"{first}\n{LIKE_PYTHON_IMAGE}{rest}")


def of_go_tutorial(directory: Path) -> None:
    """Write the context of the last stage of the tutorial's image, with the program built as in the first stage."""
    page = (ROOT / "docs/tutorial-go.md").read_text()
    files = dict(FILE.findall(page))
    module, clone = directory.parent / "module", directory.parent / "milo-discoveryd"
    module.mkdir()
    if not clone.exists():
        clone.symlink_to(ROOT)
    for name in ("main.go", "main_test.go"):
        (module / name).write_text(files[name])
    stage, last = files["Dockerfile"].split("FROM scratch")
    [built] = re.findall(r"^RUN (.*) -o /operator \.$", stage, re.MULTILINE)
    commands = [*re.findall(r"^go mod .*$", page, re.MULTILINE), f"{built} -o {directory}/operator ."]
    run(["sh", "-ec", "\n".join(commands)], module)
    (directory / "Dockerfile").write_text(
        "FROM scratch" + last.replace("--from=build ", "").replace("/operator ", "operator ", 1)
    )


def image(directory: Path, copies: str, *entry: str) -> None:
    lines = ("FROM scratch", copies, "USER 65532", f"ENTRYPOINT {json.dumps(entry)}")
    (directory / "Dockerfile").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Program:
    image: str
    context: Callable[[Path], None]
    directory: Path = OPERATOR
    """The directory of the manifests in which the program's container replaces that of the operator."""
    page: str = ""
    """The documentation page that shows the container's manifest."""
    command: Sequence[str] = ()
    keeps: Sequence[str] = ()
    """Fields of the operator's container in the manifests that this program needs, and that the others do without."""
    status: int = 0
    logs: str = ""
    """Text that the program logs once it works; a program without such a text writes the ConfigMap `greeting`."""
    unpacks: bool = False
    """Whether the program needs a /tmp."""

    def container(self, shown: dict[str, Any]) -> dict[str, Any]:
        ours = {"name": shown["name"], "image": f"{self.image}:{__version__}"}
        ours |= {"command": [*self.command]} if self.command else {}
        if self.page:
            [found] = CONTAINER.findall((ROOT / self.page).read_text())
            container: dict[str, Any] = yaml.safe_load(found)
            return container | ours | {"securityContext": shown["securityContext"] | container["securityContext"]}
        left_out = {"args", "livenessProbe", "readinessProbe"} - {*self.keeps}
        return {key: value for key, value in shown.items() if key not in left_out} | ours


TENANT = "tenant"
ENGAGED = f"ENGAGED {TENANT}"
OF_TUTORIAL = (MULTI_TENANT / "operator", "docs/tutorial.md")
PROGRAMS = {
    "go-operator": Program("example-go", of_go_examples, keeps=("args", "livenessProbe", "readinessProbe")),
    "go": Program("example-go", of_go_examples, DEPLOY / "examples/operator", command=["/subscriber"], logs=ENGAGED),
    "node": Program("example-node", of_node),
    "node-subscriber": Program(
        "example-node", of_node, command=["/node", "/packages/examples/node/subscriber.mjs"], logs=ENGAGED
    ),
    "java": Program("example-java", of_java, status=SIGTERM_OF_JAVA, unpacks=True),
    "rust": Program("example-rust", of_rust),
    "greeter": Program(
        "example-python",
        of_python_examples,
        page="docs/tutorial.md",
        command=["env", "LEASE=greeter", "python", "/greeter.py"],
    ),
    "kopf-greeter": Program("example-python", of_python_examples, command=["python", "/kopf_greeter.py"]),
    "secret-replicator": Program(  # has one project here, and so nothing to copy
        "example-python",
        of_python_examples,
        *OF_TUTORIAL,
        command=["python", "/secret_replicator.py"],
        logs="serving probes",
    ),
    "tutorial": Program("my-operator", of_tutorial, *OF_TUTORIAL),
    "tutorial-go": Program("my-operator-in-go", of_go_tutorial, MULTI_TENANT / "operator", "docs/tutorial-go.md"),
}


@pytest.fixture(scope="module")
def tenant(node: Node) -> Iterator[None]:
    """A project whose API server is the cluster's, with all rights in it, and a Greeting."""
    definitions = [DEFINITION.read_text(), (EXAMPLES / "go-operator/config/crd/greetings.yaml").read_text()]
    given = "\n---\n".join(definitions)
    node.kubectl("apply", "-f", "-", given=given)
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=given)
    node.kubectl("delete", "projectcontrolplanes", "--all")
    namespace = make_tenant(node, TENANT)
    bound = ["--clusterrole=cluster-admin", f"--serviceaccount={namespace}:default"]
    node.kubectl("create", "clusterrolebinding", "tenant", *bound)
    greeting = {"apiVersion": "example.miloapis.com/v1alpha1", "kind": "Greeting", "spec": {"text": "Hello"}}
    node.kubectl("apply", "-f", "-", given=yaml.safe_dump(greeting | {"metadata": {"name": "greeting"}}))
    yield
    node.kubectl("delete", "clusterrolebinding", "tenant")
    node.kubectl("delete", "projectcontrolplanes", "--all")
    node.kubectl("delete", "namespace", namespace)


@contextmanager
def running(node: Node, name: str, context: Path) -> Iterator[tuple[str, str, str]]:
    """Start a program; yield the namespace of its pods, its workload, and the name of its container."""
    program = PROGRAMS[name]
    context.mkdir()
    program.context(context)
    node.load(parts.images({program.image: context}, say))
    objects = [manifest for manifest in manifests(program.directory) if manifest["kind"] not in OF_PROMETHEUS]
    [deployment] = [obj for obj in objects if obj["kind"] == "Deployment"]
    pod, namespace = deployment["spec"]["template"]["spec"], deployment["metadata"]["namespace"]
    [operator], [daemon] = pod["containers"], pod["initContainers"]
    daemon["image"] = IMAGE
    pod["containers"] = [program.container(operator)]
    if program.unpacks:
        pod["volumes"].append({"name": "tmp", "emptyDir": {}})
        pod["containers"][0]["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"})
    workload, given = f"deployment/{deployment['metadata']['name']}", yaml.safe_dump_all(objects)
    node.kubectl("apply", "-f", "-", given=given)
    try:
        node.kubectl("-n", namespace, "rollout", "status", workload, "--timeout=180s")
        yield namespace, workload, operator["name"]
    finally:
        node.kubectl("delete", "-f", "-", given=given)


@pytest.mark.usefixtures("tenant")
@pytest.mark.parametrize("name", PROGRAMS)
def test_operator_works_in_a_project_and_ends_at_sigterm(node: Node, name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    node.kubectl("delete", "configmap", "greeting", "--ignore-not-found")
    with running(node, name, tmp_path / "context") as (namespace, workload, container):
        logs = ["-n", namespace, "logs", workload, "-c", container]
        if program.logs:
            eventually(lambda: program.logs in " ".join(node.kubectl(*logs).split()))
        else:
            eventually(lambda: ended(node, "get", "configmap", "greeting"))
        node.kubectl("-n", namespace, "scale", workload, "--replicas=1")
        eventually(lambda: len(node.get("-n", namespace, "pods")["items"]) == 1)
        begun = time.time()
        node.kubectl("-n", namespace, "exec", workload, "-c", container, "--", "sh", "-c", "kill 1")
        state = eventually(lambda: end_of(node, namespace, container))
        assert state["exitCode"] == program.status
        assert datetime.fromisoformat(state["finishedAt"]).timestamp() - begun <= ENDS_WITHIN_S


def end_of(node: Node, namespace: str, container: str) -> dict[str, Any] | None:
    """Return the current or last `terminated` state of the container in the only pod; None if it has not terminated."""
    [pod] = node.get("-n", namespace, "pods")["items"]
    [found] = [status for status in pod["status"]["containerStatuses"] if status["name"] == container]
    state: dict[str, Any] | None = found["state"].get("terminated") or found["lastState"].get("terminated")
    return state
