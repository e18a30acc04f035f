"""The operators in Python as processes, in projects whose control planes serve their kinds."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milo_discovery.testing import ControlPlane, MiloSandbox, eventually_blocking
from tests.end_to_end.examples.building import EXAMPLES

pytestmark = pytest.mark.timeout(600)

PYTHON = EXAMPLES / "python"
DEFINITION = EXAMPLES / "go-operator" / "config" / "crd" / "greetings.yaml"
GREETINGS = "example.miloapis.com/v1alpha1/greetings"
CONFIG_MAPS = "v1/configmaps"
SECRETS = "v1/secrets"
# On a busy machine, the first start of an interpreter can take most of this time.
eventually = partial(eventually_blocking, within_s=120)
ROLE = "replicate.example.com/role"
PROJECTS = "replicate.example.com/projects"


@contextmanager
def running(program: str, *arguments: str, **environ: str) -> Iterator[None]:
    command = [sys.executable, str(PYTHON / program), *arguments]
    with subprocess.Popen(command, env={**os.environ, **environ}) as process:
        try:
            yield
            assert process.poll() is None, f"{program} exited with status {process.returncode}"
        finally:
            process.kill()


def greeting(text: str = "Hello") -> dict[str, Any]:
    metadata = {"name": "hello"}
    return {
        "apiVersion": "example.miloapis.com/v1alpha1",
        "kind": "Greeting",
        "metadata": metadata,
        "spec": {"text": text},
    }


def greeting_of(project: ControlPlane) -> tuple[str, str]:
    data = project.get(CONFIG_MAPS, "hello")["data"]
    return data["text"], data["project"]


def is_gone(project: ControlPlane) -> bool:
    return project.find(GREETINGS, "hello") is None and project.find(CONFIG_MAPS, "hello") is None


@pytest.fixture
def projects(milo_sandbox: MiloSandbox) -> list[ControlPlane]:
    created = milo_sandbox.create_control_planes("alpha", "beta")
    for project in created:
        project.install(DEFINITION)
    return created


def test_greeter_reconciles_greetings(milo_sandbox: MiloSandbox, projects: list[ControlPlane]) -> None:
    alpha, beta = projects
    with running("greeter.py", MILO_DISCOVERY_ADDRESS=milo_sandbox.address):
        for project in projects:
            project.create(greeting())
        assert eventually(lambda: greeting_of(alpha) == ("Hello", "alpha"))
        assert eventually(lambda: greeting_of(beta) == ("Hello", "beta"))
        assert eventually(lambda: alpha.list("v1/events"))[0]["reason"] == "Greeted"
        (condition,) = alpha.get(GREETINGS, "hello")["status"]["conditions"]
        assert (condition["type"], condition["status"], condition["observedGeneration"]) == ("Ready", "True", 1)

        alpha.delete(CONFIG_MAPS, "hello")
        assert eventually(lambda: greeting_of(alpha) == ("Hello", "alpha"))
        alpha.patch(CONFIG_MAPS, "hello", {"data": {"text": "tampered with"}})
        assert eventually(lambda: greeting_of(alpha) == ("Hello", "alpha"))
        alpha.patch(GREETINGS, "hello", {"spec": {"text": "Good morning"}})
        assert eventually(lambda: greeting_of(alpha) == ("Good morning", "alpha"))

        assert alpha.get(GREETINGS, "hello")["metadata"]["finalizers"] == ["example.miloapis.com/greeter"]
        alpha.delete(GREETINGS, "hello")
        assert eventually(lambda: is_gone(alpha))
        assert greeting_of(beta) == ("Hello", "beta")


def test_greeter_reconciles_clusters_whose_crd_is_installed_later(milo_sandbox: MiloSandbox) -> None:
    late, early = milo_sandbox.create_control_planes("late", "early")
    early.install(DEFINITION)
    early.create(greeting())
    with running("greeter.py", MILO_DISCOVERY_ADDRESS=milo_sandbox.address):
        assert eventually(lambda: greeting_of(early) == ("Hello", "early"))
        late.install(DEFINITION)
        late.create(greeting())
        assert eventually(lambda: greeting_of(late) == ("Hello", "late"))


def test_greeter_runs_in_one_cluster_without_a_daemon(
    milo_sandbox: MiloSandbox, projects: list[ControlPlane], tmp_path: Path
) -> None:
    alpha, _ = projects
    milo_sandbox.stop_daemon()
    with running("greeter.py", "--single", KUBECONFIG=str(alpha.write_kubeconfig(tmp_path / "kubeconfig"))):
        alpha.create(greeting())
        assert eventually(lambda: greeting_of(alpha) == ("Hello", "cluster"))
        alpha.delete(GREETINGS, "hello")
        assert eventually(lambda: is_gone(alpha))


def test_secret_replicator_copies_secrets_to_selected_projects(milo_sandbox: MiloSandbox) -> None:
    (shared,) = milo_sandbox.create_control_planes("shared")
    first, second = milo_sandbox.create_control_planes("first", "second", labels={"env": "prod"})
    (other,) = milo_sandbox.create_control_planes("other", labels={"env": "dev"})
    metadata = {"name": "registry", "labels": {ROLE: "source"}, "annotations": {PROJECTS: "env=prod"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": "one"}}

    def token(project: ControlPlane) -> str:
        return base64.b64decode(project.get(SECRETS, "registry")["data"]["token"]).decode()

    with running("secret_replicator.py", MILO_DISCOVERY_ADDRESS=milo_sandbox.address):
        shared.create(secret)
        assert eventually(lambda: token(first) == token(second) == "one")
        shared.patch(SECRETS, "registry", {"stringData": {"token": "two"}})
        assert eventually(lambda: token(first) == token(second) == "two")
        second.delete(SECRETS, "registry")
        assert eventually(lambda: token(second) == "two")

        (later,) = milo_sandbox.create_control_planes("later", labels={"env": "prod"})
        assert eventually(lambda: token(later) == "two")
        assert other.find(SECRETS, "registry") is None

        shared.delete(SECRETS, "registry")
        assert eventually(lambda: not any(project.find(SECRETS, "registry") for project in (first, second, later)))


def test_kopf_greeter_runs_in_each_project(milo_sandbox: MiloSandbox, projects: list[ControlPlane]) -> None:
    alpha, beta = projects
    with running("kopf_greeter.py", MILO_DISCOVERY_ADDRESS=milo_sandbox.address):
        for project in projects:
            project.create(greeting())
        assert eventually(lambda: greeting_of(alpha) == ("Hello", "alpha"))
        assert eventually(lambda: greeting_of(beta) == ("Hello", "beta"))
        alpha.patch(GREETINGS, "hello", {"spec": {"text": "Good morning"}})
        assert eventually(lambda: greeting_of(alpha) == ("Good morning", "alpha"))
        alpha.delete(GREETINGS, "hello")
        assert eventually(lambda: is_gone(alpha))
