"""The operator in Go as a process, in projects whose control planes serve its kind."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milo_discovery.testing import ControlPlane, MiloSandbox, eventually_blocking
from tests.end_to_end.examples.building import EXAMPLES, Command, go_program

pytestmark = [pytest.mark.builds, pytest.mark.timeout(600)]  # the first build compiles controller-runtime

OPERATOR = EXAMPLES / "go-operator"
GREETINGS = "example.miloapis.com/v1alpha1/greetings"
CONFIG_MAPS = "v1/configmaps"


@pytest.fixture(scope="session")
def command() -> Command:
    return go_program(OPERATOR / "cmd", "greeting-operator")


@pytest.fixture
def projects(milo_sandbox: MiloSandbox, command: Command, tmp_path: Path) -> Iterator[list[ControlPlane]]:
    """Two projects with the operator's kind, in which the operator runs."""
    projects = milo_sandbox.create_control_planes("alpha", "beta")
    for project in projects:
        project.install(OPERATOR / "config" / "crd" / "greetings.yaml")
    own_cluster = projects[0].write_kubeconfig(tmp_path / "kubeconfig")
    environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo_sandbox.address, "KUBECONFIG": str(own_cluster)}
    arguments = ["-metrics-bind-address=0", "-health-probe-bind-address=0"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen([*command, *arguments], env=environ, stderr=log) as it:
        yield projects
        it.terminate()


def greeting(text: str = "Hello") -> dict[str, Any]:
    return {
        "apiVersion": "example.miloapis.com/v1alpha1",
        "kind": "Greeting",
        "metadata": {"name": "hello"},
        "spec": {"text": text},
    }


def greeted(project: ControlPlane, text: str = "Hello") -> bool:
    made = project.get(CONFIG_MAPS, "hello")
    (condition,) = project.get(GREETINGS, "hello")["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Ready", "True")
    assert made["data"] == {"text": text, "project": project.project, "organization": "acme"}
    (owner,) = made["metadata"]["ownerReferences"]
    return (owner["kind"], owner["controller"]) == ("Greeting", True)


def test_go_operator_reconciles_greetings_until_they_are_deleted(projects: list[ControlPlane]) -> None:
    alpha, beta = projects
    for project in projects:
        project.create(greeting())
    for project in projects:
        assert eventually_blocking(lambda project=project: greeted(project))
    alpha.delete(CONFIG_MAPS, "hello")
    assert eventually_blocking(lambda: greeted(alpha))
    alpha.patch(GREETINGS, "hello", {"spec": {"text": "Good morning"}})
    assert eventually_blocking(lambda: greeted(alpha, "Good morning"))
    alpha.delete(GREETINGS, "hello")
    eventually_blocking(lambda: alpha.find(GREETINGS, "hello") is None)
    assert alpha.find(CONFIG_MAPS, "hello") is None
    assert greeted(beta)
